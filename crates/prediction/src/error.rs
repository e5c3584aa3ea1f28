//! Why something did not happen, sorted by who can act on it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The text is for the person named by the variant and carries the field, the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "who", content = "why", rename_all = "snake_case")]
pub enum PredictError {
    /// The caller can act: change the input. HTTP 422 where it is known before the prediction exists.
    FixInput(String),
    /// Time can act: the same call may work later. HTTP 429 where it is known before the prediction exists.
    RetryLater(String),
    /// The operator can act: weights, device, or a defect of ours.
    Operator(String),
    /// The device had no memory left for it. The same may work once something else is unloaded.
    OutOfMemory(String),
    /// The device answers this process no more (a sticky error): only another process can use it again.
    DeviceLost(String),
}

impl PredictError {
    pub fn text(&self) -> &str {
        match self {
            Self::FixInput(why)
            | Self::RetryLater(why)
            | Self::Operator(why)
            | Self::OutOfMemory(why)
            | Self::DeviceLost(why) => why,
        }
    }
}

impl fmt::Display for PredictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for PredictError {}
