//! What surrounds an input here: every key may be left out or null, and unknown ones are passed over. The words of a refusal
//! are serde's, as the real server's are: this struct has its keys in its order.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, header};
use prediction::{Map, WebhookEvent};
use serde::Deserialize;
use serde_json::Value;

use super::refuse::{Refusal, Wrong};

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Envelope {
    #[serde(default)]
    pub id: Option<String>,
    /// The model's own; checked against its schema afterwards.
    #[serde(default)]
    input: Option<Value>,
    #[serde(default)]
    pub webhook: Option<String>,
    #[serde(default)]
    pub webhook_events_filter: Option<Vec<WebhookEvent>>,
    /// For the model's code; the models here read nothing from it. Read, so that a wrong one is refused.
    #[serde(default)]
    context: Option<BTreeMap<String, String>>,
}

impl Envelope {
    /// No input is an empty one.
    pub fn input(&mut self) -> Result<Map, Refusal> {
        match self.input.take() {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(input)) => Ok(input),
            Some(other) => {
                let message = format!("{other} is not of type \"object\"");
                Err(Refusal::Input(vec![Wrong { field: "__root__".into(), message, missing: false }]))
            }
        }
    }
}

/// How the caller wants to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The answer is the ended prediction.
    Sync,
    /// The answer comes at once.
    Async,
    /// The answer is a stream of events.
    Stream,
}

impl Mode {
    pub fn of(headers: &HeaderMap) -> Self {
        let any = |name: header::HeaderName, mut is: Box<dyn FnMut(&str) -> bool>| {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).any(|part| is(part.split(';').next().unwrap_or_default().trim()))
        };
        let prefer = |part: &str| part.eq_ignore_ascii_case("respond-async");
        let waits = |part: &str| part.split('=').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("wait"));
        let prefers = header::HeaderName::from_static("prefer");
        if any(header::ACCEPT, Box::new(|part| part.eq_ignore_ascii_case("text/event-stream"))) {
            Self::Stream
        } else if any(prefers.clone(), Box::new(prefer)) && !any(prefers, Box::new(waits)) {
            Self::Async
        } else {
            Self::Sync
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(lines: &[(&'static str, &'static str)]) -> Mode {
        Mode::of(&lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect())
    }

    #[test]
    fn headers_are_read_token_by_token() {
        for (lines, expected) in [
            (&[][..], Mode::Sync),
            (&[("prefer", "respond-async")], Mode::Async),
            (&[("prefer", "Respond-Async")], Mode::Async),
            (&[("prefer", "return=minimal, respond-async")], Mode::Async),
            // As the real server reads it: somebody who waits as well waits.
            (&[("prefer", "respond-async, wait=5")], Mode::Sync),
            (&[("prefer", "wait")], Mode::Sync),
            (&[("accept", "application/json, text/event-stream;q=0.5")], Mode::Stream),
            (&[("accept", "text/event-stream"), ("prefer", "respond-async")], Mode::Stream),
            (&[("accept", "*/*")], Mode::Sync),
        ] {
            assert_eq!(mode(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn nulls_are_as_good_as_nothing() {
        let text = r#"{"id":null,"input":null,"webhook":null,"webhook_events_filter":null,"context":null,"x":1}"#;
        let mut read: Envelope = serde_json::from_str(text).unwrap();
        assert_eq!(read, Envelope::default());
        assert_eq!(read.input().unwrap(), Map::new());
    }
}
