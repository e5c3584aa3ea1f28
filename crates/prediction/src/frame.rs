//! What the server and a worker say to each other. Plain values: today over a channel, later length-prefixed on a pipe.

use serde::{Deserialize, Serialize};

use crate::{Event, Id, Job, LoadSpec, PredictError};

/// What `Hello` names: server and worker are of one build or do not talk.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// First frame in both directions. A worker of another build is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub build: String,
    /// `cpu` or `cuda:N`, with the device's name, for people.
    pub device: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", content = "with", rename_all = "snake_case")]
pub enum ToWorker {
    Hello(Hello),
    Load(LoadSpec),
    Unload {
        target: String,
    },
    /// Answered by events for this id, the last of them `Ended`.
    Admit {
        target: String,
        attempt: u32,
        job: Job,
    },
    /// Answered by `Ended(Canceled)` unless the prediction ended first.
    Cancel {
        id: Id,
    },
    /// Finish what is inside, then say `Bye`.
    Drain,
    /// Stop now: the channel closes without a word.
    Exit,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", content = "with", rename_all = "snake_case")]
pub enum FromWorker {
    Hello(Hello),
    /// A line of load progress.
    Loading {
        target: String,
        line: String,
    },
    Loaded {
        target: String,
        bytes: u64,
        capacity: u32,
        seconds: f64,
    },
    LoadFailed {
        target: String,
        error: PredictError,
    },
    Unloaded {
        target: String,
    },
    /// Everything one step emitted, in order.
    Events(Vec<Emitted>),
    /// Alive, between steps; sent at most once a second.
    Heartbeat,
    Bye,
}

/// An event before it has a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Emitted {
    pub id: Id,
    /// The attempt it belongs to: a late word of an earlier attempt is dropped.
    pub attempt: u32,
    pub event: Event,
}
