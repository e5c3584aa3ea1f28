//! What a prediction says while it runs. Events are the only output: polling, streams, webhooks and replay read these.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Timestamp;

/// One thing that happened to one prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "snake_case")]
pub enum Event {
    /// The model took it up.
    Started,
    Output(Output),
    /// Text to append to the logs, with its own line ends.
    Log(String),
    /// Sets one metric. Counts must be JSON integers: one client refuses `12.0`.
    Metric {
        name: String,
        value: Value,
    },
    /// The last event, exactly one per prediction.
    Ended(Outcome),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "as", content = "value", rename_all = "snake_case")]
pub enum Output {
    /// One more element of a list that grows (an iterator model).
    Item(Value),
    /// The whole output, in place of whatever was there.
    Whole(Value),
}

impl Output {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Item(Value::String(text.into()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    /// `error` is what the client reads: plain text, never empty.
    Failed {
        error: String,
    },
    Canceled,
    /// The deadline passed before it started. Only for callers that set one: some clients poll for ever on this word.
    Aborted,
}

/// An event with its place in its prediction's sequence: 1, 2, 3, … without gaps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    pub seq: u64,
    pub at: Timestamp,
    pub event: Event,
}
