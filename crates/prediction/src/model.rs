//! What a model must be able to do. Stepwise, so that one thread can serve many predictions: tensors never cross here.

use std::any::Any;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Event, Id, Map, PredictError};

/// A kind of model (one folder in `models/`): it can be loaded.
pub trait Model: Send + Sync {
    /// Device memory that `load` will take, in bytes: weights, caches and the most that a step needs beside them. Read from
    /// the files' headers before the device is touched; weights that are absent are fetched first.
    fn needs(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<u64, PredictError>;

    /// Loads weights and makes everything ready for the first step. `report` takes a line of progress for people; it
    /// ends up in the logs of the predictions that wait.
    fn load(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError>;

    /// `load` with what was kept of an earlier one. A model takes it only where it is of the very same weights, and says in a
    /// line which it was; what it does not take is dropped.
    fn load_kept(
        &self,
        spec: &LoadSpec,
        kept: Box<dyn Kept>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Loaded>, PredictError> {
        drop(kept);
        self.load(spec, report)
    }
}

/// What a model that was unloaded left in the host's memory, so that it comes back faster. Only its model knows what is in it.
pub trait Kept: Any {
    /// Of the host's memory.
    fn bytes(&self) -> u64;
}

/// A loaded model. It stays on the thread that loaded it.
pub trait Loaded {
    /// Takes one prediction in. Everything that can be refused is refused here, before device work. It joins at the
    /// next step; the model's own events for it begin there. Never called while `active() == capacity()`.
    fn admit(&mut self, job: Job) -> Result<(), PredictError>;

    /// Advances every active prediction by one unit of work (a token, a denoising step) and emits what came of it.
    /// A prediction that is done emits `Event::Ended` and is gone. An error is the whole model's: it is unloaded, and who was inside runs once
    /// more if nothing was read from it, else ends with the error.
    fn step(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError>;

    /// Forgets a prediction at once; nothing more is emitted for it. Unknown ids are fine.
    fn cancel(&mut self, id: &Id);

    /// Predictions inside, admitted and not ended.
    fn active(&self) -> usize;

    /// How many may be inside at once.
    fn capacity(&self) -> usize;

    /// Device memory held, in bytes: weights and preallocated caches.
    fn bytes(&self) -> u64;

    /// The host's memory that `keep` would take, in bytes; 0: it has nothing to keep.
    fn kept_bytes(&self) -> u64 {
        0
    }

    /// Copies to the host what makes the next load fast. Asked of an idle model that is dropped next, whatever comes of it.
    fn keep(&self) -> Result<Option<Box<dyn Kept>>, PredictError> {
        Ok(None)
    }
}

/// One prediction, as a model sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: Id,
    pub input: Map,
    /// Used when the input names no seed. Drawn when the prediction was created, so a retry repeats it.
    pub seed: u64,
}

/// What to load and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadSpec {
    /// The served name, e.g. `smollm2`: one loaded model per target.
    pub target: String,
    /// The folder in `models/`, e.g. `llama`.
    pub model: String,
    pub weights: Weights,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// `f32`, `f16`, `bf16`, for weights alone `int8`, `fp8`, `q8_0`, `q4_0`, or none: what suits the device and the file.
    pub precision: Option<String>,
    /// Positions per prediction, or none: the model's own, capped by its default.
    pub context_tokens: Option<u32>,
    /// Predictions at once, or none: the model's default.
    pub concurrency: Option<u32>,
    /// CPU threads, or none: all cores.
    pub threads: Option<u32>,
    /// A prediction says the same to the bit in any company, also where that takes time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub batch_invariant: bool,
    /// Input defaults of this deployment, in place of the model's own.
    pub defaults: Map,
    /// What files that the model makes say of their origin: `version` and `weights`, the digests, where they are known.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub provenance: Box<Map>,
}

impl LoadSpec {
    /// On the CPU, everything else left to the model.
    pub fn new(target: impl Into<String>, model: impl Into<String>, weights: Weights) -> Self {
        Self {
            target: target.into(),
            model: model.into(),
            weights,
            device: "cpu".into(),
            precision: None,
            context_tokens: None,
            concurrency: None,
            threads: None,
            batch_invariant: false,
            defaults: Map::new(),
            provenance: Box::default(),
        }
    }
}

/// Where weights come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// An entry of the model's `weights.lock`: fetched if absent, verified always.
    Locked { name: String, offline: bool },
    /// A file or folder that the operator vouches for.
    Path(PathBuf),
    /// Random weights of a true shape, e.g. `llama-3-8b`, made where they are used: for measuring, not for answers.
    Synth { shape: String, dtype: String, seed: u64 },
}
