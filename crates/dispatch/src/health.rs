//! What people are shown: devices, what is on them, who waits. Plain values, as they stood at the last turn of the core.

use serde::{Deserialize, Serialize};

/// For people: what `doctor`, `readyz` and `ps` show.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub devices: Vec<DeviceHealth>,
    pub targets: Vec<TargetHealth>,
    /// Accepted, not yet inside a model.
    pub waiting: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceHealth {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// As its worker calls it; empty before the first said hello.
    pub name: String,
    /// False while the worker is being replaced.
    pub worker: bool,
    /// Where the device tells.
    pub total_bytes: Option<u64>,
    /// What models may hold together; none: no bound is known.
    pub budget_bytes: Option<u64>,
    /// Held by models, and promised to those that load.
    pub used_bytes: u64,
    /// Of the host's memory, held by copies of models that left this device.
    pub host_cache_bytes: u64,
    pub models: Vec<ModelHealth>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelHealth {
    pub target: String,
    #[serde(flatten)]
    pub state: ModelState,
    /// Predictions inside.
    pub active: u32,
    /// Since the last prediction left; none while it is busy or not loaded.
    pub idle_seconds: Option<u64>,
    pub pinned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ModelState {
    Loading {
        line: String,
    },
    Loaded {
        bytes: u64,
        capacity: u32,
    },
    Unloading,
    /// It did not load here; tried again later.
    Failed {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetHealth {
    pub target: String,
    /// Waiting for a place in it.
    pub queued: u64,
    /// Inside it, on all devices.
    pub active: u32,
    /// What its queue waits for, if not for its turn: `loading …`, `memory: …`.
    pub waits_for: Option<String>,
}
