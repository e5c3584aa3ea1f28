//! What dispatch is told once: devices, what is served on them, and limits. Refuses to know where that was written down.

use std::fmt;

use prediction::LoadSpec;

use crate::Silence;
use crate::recover::{INTERRUPTED, RUN_ATTEMPTS};

#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose leases these are: stable per data directory, so that a restart knows its own from an earlier life.
    pub owner: String,
    /// One worker each; never empty.
    pub devices: Vec<Device>,
    /// What can be loaded, one per target.
    pub served: Vec<Served>,
    /// Predictions that may wait; one more is refused.
    pub waiting_limit: u64,
    /// A prediction running longer has failed.
    pub run_seconds: u64,
    /// Input, output and logs of an ended prediction are removed after this long.
    pub retention_seconds: u64,
    /// How long `drain` lets running predictions finish.
    pub drain_seconds: u64,
    /// How long a worker may say nothing before it is replaced; none where it cannot be ended (a thread).
    pub silence: Option<Silence>,
    pub lost: Lost,
}

/// What is done about a worker that was lost with something inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// How often a prediction is given to a worker, if nobody has read from it: 1 is never again.
    pub runs: u32,
    /// Workers that a model may take down while it loads before the load counts as failed.
    pub loads: u32,
    /// What a prediction that does not run again fails with.
    pub error: String,
}

impl Default for Lost {
    fn default() -> Self {
        Self { runs: RUN_ATTEMPTS, loads: 2, error: INTERRUPTED.to_owned() }
    }
}

impl Settings {
    /// One device, `cpu`, without a budget.
    pub fn new(owner: impl Into<String>, served: Vec<Served>) -> Self {
        Self {
            owner: owner.into(),
            devices: vec![Device { device: "cpu".into(), budget_bytes: None }],
            served,
            waiting_limit: 256,
            run_seconds: 1800,
            retention_seconds: 3600,
            drain_seconds: 20,
            silence: None,
            lost: Lost::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// What the models on it may hold together. None: what is free when its worker starts, less a reserve; without a bound
    /// where the device does not tell.
    pub budget_bytes: Option<u64>,
}

/// A model that predictions may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// Its `device` is set to that of the place it is loaded on.
    pub spec: LoadSpec,
    /// Which devices may have it.
    pub on: On,
    /// Loaded at the start, never unloaded to make room.
    pub pinned: bool,
    /// Loaded at the start; may leave.
    pub preload: bool,
    /// Idle this long it is unloaded, 0 at once; none: it stays until another needs the room.
    pub keep_alive_seconds: Option<u64>,
    /// The version's digest, where everything is pinned: noted for each prediction that runs, as is the next.
    pub version: Option<String>,
    /// What names the weights' bytes.
    pub weights: Option<String>,
}

impl Served {
    /// On any device, loaded when it is asked for, there until another needs the room.
    pub fn new(spec: LoadSpec) -> Self {
        let (on, version, weights) = (On::Any, None, None);
        Self { spec, on, pinned: false, preload: false, keep_alive_seconds: None, version, weights }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum On {
    Any,
    /// `cpu`, `cuda` (any of these) or `cuda:N`.
    Device(String),
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any device"),
            Self::Device(device) => f.write_str(device),
        }
    }
}

impl On {
    pub fn allows(&self, device: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Device(wanted) => wanted == device || device.split_once(':').is_some_and(|(kind, _)| kind == wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_device_allows_all_of_it_and_a_number_only_that() {
        let on = |wanted: &str| On::Device(wanted.into());
        let table = [
            (On::Any, "cuda:1", true),
            (on("cpu"), "cpu", true),
            (on("cpu"), "cuda:0", false),
            (on("cuda"), "cuda:1", true),
            (on("cuda"), "cpu", false),
            (on("cuda:1"), "cuda:1", true),
            (on("cuda:1"), "cuda:10", false),
        ];
        for (on, device, allowed) in table {
            assert_eq!(on.allows(device), allowed, "{on:?} {device}");
        }
    }
}
