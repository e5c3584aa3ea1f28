//! One folder per model, everything of a model in its folder. Refuses to know HTTP, store, dispatch and each other.

pub mod llama;
pub mod sdxl;
mod shared;
pub mod whisper;

#[cfg(test)]
mod real;
#[cfg(test)]
mod turns;

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

/// Loads once and measures each shape in turn; a result is told as soon as it is there.
pub type Bench = fn(&LoadSpec, &[BenchShape], &mut dyn FnMut(Told)) -> Result<(), PredictError>;

/// What a bench run has to say.
pub enum Told<'a> {
    /// A line of progress.
    Line(&'a str),
    Result(BenchResult),
    Painted(PaintResult),
}

/// Compares weights with a golden file on a device, on the inputs that the model needs besides, and prints the largest
/// error per tensor; true where all are within the model's own tolerance.
pub type Golden = fn(&Path, &[PathBuf], &Path, &Device, &mut dyn Write) -> Result<bool, PredictError>;

/// What a bench run asks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchShape {
    pub prompt_tokens: usize,
    pub decode_tokens: usize,
    /// Predictions at once.
    pub batch: usize,
    /// Of a model that paints: pixels of both sides, and steps.
    pub side: usize,
    pub steps: usize,
}

/// How fast one image was painted, guided: two calls of the net in one.
#[derive(Debug, Clone, Serialize)]
pub struct PaintResult {
    pub load_s: f64,
    /// Reading the prompts.
    pub prompt_s: f64,
    pub steps_per_s: f64,
    pub step_p50_s: f64,
    /// Latents to pixels.
    pub decode_s: f64,
    /// Prompt, steps and decoding together.
    pub image_s: f64,
    /// What a step comes to, and what the device's multiply-adds come to at most, measured in this run; 0 where nothing
    /// measures it.
    pub operations_per_s: f64,
    pub peak_operations_per_s: f64,
    /// The same of each second that a thread was on a processor, and what one thread's multiply-adds come to: beside other
    /// work these two can be compared.
    pub operations_per_processor_s: f64,
    pub peak_operations_of_one_thread_per_s: f64,
    pub side: usize,
    pub steps: usize,
    pub threads: usize,
    pub weights_bytes: u64,
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
    /// Of the time between two tokens of one prediction, which is that of a step.
    pub token_p50_s: f64,
    pub token_p99_s: f64,
    /// Weights and cache that a step in the middle of the decoding reads, over the median step.
    pub read_bytes_per_s: f64,
    /// What the device reads at most, measured in this run with the same threads.
    pub bandwidth_bytes_per_s: f64,
    pub prompt_tokens: usize,
    pub decode_tokens: usize,
    pub batch: usize,
    pub threads: usize,
    pub weights_bytes: u64,
}

/// The seconds of the steps of one decoding.
#[derive(Debug, Clone, Default)]
pub struct StepTimes(Vec<f64>);

impl StepTimes {
    pub fn push(&mut self, step_s: f64) {
        self.0.push(step_s);
    }

    /// Of all steps together, in seconds.
    pub fn total_s(&self) -> f64 {
        self.0.iter().sum()
    }

    /// The time that `share` (0 to 1) of the steps do not exceed, in seconds; 0 where there were none.
    pub fn quantile_s(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
    }
}

/// Every model there is.
pub const ALL: &[Entry] = &[llama::ENTRY, whisper::ENTRY, sdxl::ENTRY];

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

/// The shape of random weights of this name, of any model.
pub fn shape(name: &str) -> Result<&'static Shape, PredictError> {
    Entry::of_shape(name).map(|(_, shape)| shape)
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

#[cfg(test)]
mod tests {
    use super::StepTimes;

    #[test]
    fn a_quantile_is_a_time_that_was_measured() {
        let times = StepTimes((1..=100).rev().map(f64::from).collect());
        assert_eq!((times.quantile_s(0.5), times.quantile_s(0.99), times.quantile_s(1.0)), (50.0, 99.0, 100.0));
        assert_eq!((StepTimes(vec![7.0]).quantile_s(0.99), StepTimes::default().quantile_s(0.5)), (7.0, 0.0));
        assert_eq!(times.total_s(), 5050.0);
    }
}
