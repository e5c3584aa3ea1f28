//! What the server and a worker say to each other. Plain values; refuses to know whether a channel or a pipe carries them.

use serde::{Deserialize, Serialize};

use crate::{Event, Id, Job, LoadSpec, PredictError};

/// What `Hello` names: server and worker are of one build or do not talk.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// First frame in both directions. A worker of another build is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub build: String,
    /// The device that the worker owns: `cpu` or `cuda:N`.
    pub device: String,
    /// What it is called, for people; empty from the server.
    pub name: String,
    /// From the worker: its device's memory before anything is loaded, where the device tells.
    pub memory: Option<DeviceMemory>,
}

/// Bytes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMemory {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", content = "with", rename_all = "snake_case")]
pub enum ToWorker {
    Hello(Hello),
    /// Answered by `Loaded`, `NoRoom` or `LoadFailed`.
    Load {
        spec: LoadSpec,
        /// What it may take; none: whatever the device has.
        room_bytes: Option<u64>,
    },
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
        /// Device memory that it holds, measured.
        bytes: u64,
        capacity: u32,
        seconds: f64,
    },
    /// Nothing was loaded: it needs more than it may take.
    NoRoom {
        target: String,
        needed_bytes: u64,
        room_bytes: u64,
    },
    LoadFailed {
        target: String,
        error: PredictError,
    },
    /// It is gone and its memory is free. With `why` it broke: whoever was inside has not ended, and is for the server to
    /// try again or to end.
    Unloaded {
        target: String,
        why: Option<PredictError>,
    },
    /// What copies of unloaded models take of the host's memory from now on.
    HostCache {
        bytes: u64,
    },
    /// The last word of a worker whose device is lost to it; nobody inside has ended.
    Broken {
        why: String,
    },
    /// Everything one step emitted, in order.
    Events(Vec<Emitted>),
    /// Alive: between steps, or in the middle of a long one that does work. Sent about once a second.
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
