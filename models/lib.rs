//! One folder per model, everything of a model in its folder. Refuses to know HTTP, store, dispatch and each other.

pub mod llama;

use std::sync::Arc;

/// What the rest of the program knows of a model.
pub struct Entry {
    /// The folder's name.
    pub name: &'static str,
    pub schema: fn() -> schema::ModelSchema,
    pub model: fn() -> Arc<dyn ::prediction::Model>,
    /// The text of weights.lock.
    pub lock: &'static str,
    /// The text of the folder's cog.yaml: mirrors of the weights stand there under `native:`.
    pub manifest: &'static str,
}

/// Every model there is.
pub const ALL: &[Entry] = &[llama::ENTRY];

impl Entry {
    /// The model in this folder.
    pub fn named(name: &str) -> Option<&'static Entry> {
        ALL.iter().find(|entry| entry.name == name)
    }
}
