//! The words every part of Pinion speaks, and the seam between serving and models.
//!
//! Knows ids, times, events, the fold, the worker's frames and the two traits a model fulfils. Refuses to know HTTP,
//! storage, async runtimes and tensors: a crate that depends on this one builds in seconds.

mod error;
mod event;
mod fold;
pub mod frame;
mod id;
mod model;
mod run;
mod time;

pub use error::PredictError;
pub use event::{Event, Numbered, Outcome, Output};
pub use fold::{Prediction, Request, Status, Transition, WebhookEvent};
pub use id::{Id, random_seed, secret_text};
pub use model::{Job, Kept, LoadSpec, Loaded, Model, Weights};
pub use run::Run;
pub use time::Timestamp;

/// A JSON object: a prediction's input, its metrics.
pub type Map = serde_json::Map<String, serde_json::Value>;
