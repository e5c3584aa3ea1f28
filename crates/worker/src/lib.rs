//! Frames in, events out: the loop that owns the device. It loads models, lets predictions join and leave between
//! steps, and steps the loaded models in turn. A panic in a model costs that model's predictions, never the loop.
//!
//! Refuses to know the store, HTTP, async runtimes, which models exist (a `Registry` is handed in), and whether it is a
//! thread or a process.

pub mod echo;
mod echo_files;
mod kept;
mod memory;
pub mod pipe;
mod process;
mod pulse;
mod seat;
mod shell;
mod turn;

use std::collections::BTreeMap;
use std::sync::Arc;

use prediction::frame::DeviceMemory;

pub use process::serve_pipes;
pub use turn::run;

/// The kinds of model this worker can load, by folder name, e.g. `llama`.
pub type Registry = BTreeMap<String, Arc<dyn prediction::Model>>;

/// What the worker owns, as it says in its hello. The loop never touches a device itself: whoever starts it knows how.
pub struct Owned {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// For people, e.g. the model of the processor.
    pub name: String,
    /// Asked at the start and around each load; none where the device does not tell.
    pub memory: Box<dyn Fn() -> Option<DeviceMemory>>,
    /// Of the host's memory, what copies of unloaded models may take; 0: none are made.
    pub host_cache_bytes: u64,
}

impl Owned {
    /// The CPU, of which nothing is known.
    pub fn cpu() -> Self {
        Self { device: "cpu".into(), name: String::new(), memory: Box::new(|| None), host_cache_bytes: 0 }
    }
}
