//! What surrounds an input: the strict top level of a create. Inside `input` unknown keys are ignored, here they are not.

use axum::http::StatusCode;
use prediction::{Map, WebhookEvent};
use schema::Invalid;
use serde_json::Value;

use crate::errors::Problem;

/// Whether the body or the path says which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Version,
    Path,
}

/// A create's body, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// As sent; empty where the path names the model.
    pub version: String,
    pub input: Map,
    pub webhook: Option<String>,
    pub webhook_events_filter: Option<Vec<WebhookEvent>>,
}

/// The keys a create may have. `stream` has no effect any more and `webhook_completed` is the old way to ask for the
/// last event only; old clients send both.
const KEYS: [&str; 5] = ["input", "stream", "webhook", "webhook_events_filter", "webhook_completed"];

const EVENTS: [(&str, WebhookEvent); 4] = [
    ("start", WebhookEvent::Start),
    ("output", WebhookEvent::Output),
    ("logs", WebhookEvent::Logs),
    ("completed", WebhookEvent::Completed),
];

impl Envelope {
    /// Everything that is wrong at this level at once: what is missing, what should not be there, what has the wrong type.
    pub fn read(mut body: Map, by: By) -> Result<Self, Problem> {
        refuse_a_client_as_input(&body)?;
        let wants_version = by == By::Version;
        let required = ["version", "input"].into_iter().filter(|key| *key != "version" || wants_version);
        let missing = required.filter(|key| !body.contains_key(*key)).map(|key| Invalid::required("", key));
        let known = |key: &String| KEYS.contains(&key.as_str()) || (wants_version && key == "version");
        let unknown = body.keys().filter(|key| !known(key)).map(|key| Invalid::additional_property("", key));
        let mut errors: Vec<_> = missing.chain(unknown).collect();
        // Null is as good as absent for what may be absent.
        let mut take =
            |key: &str| body.shift_remove(key).filter(|value| !value.is_null() || key == "input" || key == "version");
        let version = take("version").filter(|_| wants_version).and_then(|value| text("version", value, &mut errors));
        let input = take("input").and_then(|value| object(value, &mut errors));
        if let Some(value) = take("stream").filter(|value| !value.is_boolean()) {
            errors.push(Invalid::invalid_type("stream", "boolean", &value));
        }
        let webhook = take("webhook").and_then(|value| text("webhook", value, &mut errors));
        let filter = take("webhook_events_filter").and_then(|value| events(value, &mut errors));
        let completed = take("webhook_completed").and_then(|value| text("webhook_completed", value, &mut errors));
        if !errors.is_empty() {
            return Err(Problem::invalid(&errors));
        }
        let (webhook, webhook_events_filter) = match (webhook, completed) {
            (None, Some(url)) => (Some(url), Some(vec![WebhookEvent::Completed])),
            (webhook, _) => (webhook, filter),
        };
        let (version, input) = (version.unwrap_or_default(), input.unwrap_or_default());
        Ok(Self { version, input, webhook, webhook_events_filter })
    }
}

fn text(key: &str, value: Value, errors: &mut Vec<Invalid>) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        other => {
            errors.push(Invalid::invalid_type(key, "string", &other));
            None
        }
    }
}

fn object(value: Value, errors: &mut Vec<Invalid>) -> Option<Map> {
    match value {
        Value::Object(map) => Some(map),
        other => {
            errors.push(Invalid::invalid_type("input", "object", &other));
            None
        }
    }
}

fn events(value: Value, errors: &mut Vec<Invalid>) -> Option<Vec<WebhookEvent>> {
    let Value::Array(items) = value else {
        errors.push(Invalid::invalid_type("webhook_events_filter", "array", &value));
        return None;
    };
    let mut events = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("webhook_events_filter.{index}");
        match (item.as_str(), EVENTS.iter().find(|(name, _)| item.as_str() == Some(name))) {
            (_, Some((_, event))) => events.push(*event),
            (Some(_), None) => errors.push(Invalid::not_one_of(&path, &path, &EVENTS.map(|(name, _)| name))),
            (None, None) => errors.push(Invalid::invalid_type(&path, "string", item)),
        }
    }
    Some(events)
}

/// One client's `fileEncodingStrategy: "data-uri"` sends the client itself as the input, its token in clear. That is
/// refused before anything is kept.
fn refuse_a_client_as_input(body: &Map) -> Result<(), Problem> {
    let is_client = |input: &Map| input.contains_key("auth") && input.contains_key("fileEncodingStrategy");
    if !body.get("input").and_then(Value::as_object).is_some_and(is_client) {
        return Ok(());
    }
    let detail = "input is the client object itself, with its API token in clear, in place of the model's input: the \
                  JavaScript client 1.4.0 sends this with fileEncodingStrategy: \"data-uri\". Use \"default\" or \
                  \"upload\", or put data URIs into the input yourself. Nothing was stored or logged; consider the \
                  token as seen by whatever stands between you and this server.";
    Err(Problem::titled(StatusCode::UNPROCESSABLE_ENTITY, "Input validation failed", detail))
}
