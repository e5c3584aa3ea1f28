//! One folder per model, everything of a model in its folder. Refuses to know HTTP, store, dispatch and each other.

pub mod llama;
pub mod whisper;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::prediction::{LoadSpec, PredictError};
use candle_core::Device;
use runner::synth::Shape;
use serde::Serialize;

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
    /// How fast the net is on this machine, without text and store.
    pub bench: Bench,
    /// The folder's numbers beside the reference's.
    pub golden: Golden,
    /// True shapes that random weights can be made of, for measuring.
    pub synth: &'static [Shape],
}

/// Loads, telling lines of progress, and measures.
pub type Bench = fn(&LoadSpec, &BenchShape, &mut dyn FnMut(&str)) -> Result<BenchResult, PredictError>;

/// Compares weights with a golden file on a device, on the inputs that the model needs besides, and prints the largest
/// error per tensor; true where all are within the model's own tolerance.
pub type Golden = fn(&Path, &[PathBuf], &Path, &Device, &mut dyn Write) -> Result<bool, PredictError>;

/// What a bench run asks of a model that reads and says tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchShape {
    pub prompt_tokens: usize,
    pub decode_tokens: usize,
    /// Predictions at once.
    pub batch: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct BenchResult {
    /// Files to the first possible step, tokenizer included.
    pub load_s: f64,
    /// From the ids of one prompt to its first token.
    pub time_to_first_token_s: f64,
    /// All prompts together.
    pub prefill_tokens_per_s: f64,
    /// All predictions together.
    pub decode_tokens_per_s: f64,
    pub prompt_tokens: usize,
    pub decode_tokens: usize,
    pub batch: usize,
    pub threads: usize,
    pub weights_bytes: u64,
}

/// Every model there is.
pub const ALL: &[Entry] = &[llama::ENTRY, whisper::ENTRY];

impl Entry {
    /// The model in this folder.
    pub fn named(name: &str) -> Option<&'static Entry> {
        ALL.iter().find(|entry| entry.name == name)
    }

    /// This model's shape of that name.
    pub fn shape(&self, name: &str) -> Result<&'static Shape, PredictError> {
        self.synth.iter().find(|shape| shape.name == name).ok_or_else(|| no_shape(name, self.synth.iter()))
    }

    /// The shape of this name and the model that it is of; an unknown one is refused with those there are.
    pub fn of_shape(name: &str) -> Result<(&'static Entry, &'static Shape), PredictError> {
        let found = ALL.iter().find_map(|entry| Some((entry, entry.synth.iter().find(|shape| shape.name == name)?)));
        found.ok_or_else(|| no_shape(name, ALL.iter().flat_map(|entry| entry.synth)))
    }
}

/// A `tokenizer.json`. Some that lie make their reader panic: here that is a refusal like any other.
fn read_tokenizer(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let read = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
    read.map_err(|_| "its reader panics at it".to_owned())?.map_err(|error| error.to_string())
}

fn no_shape<'a>(name: &str, all: impl Iterator<Item = &'a Shape>) -> PredictError {
    let known: Vec<&str> = all.filter(|shape| shape.listed).map(|shape| shape.name).collect();
    PredictError::FixInput(format!("no shape is called {name:?}; there is {}", known.join(", ")))
}
