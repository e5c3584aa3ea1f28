//! Llama: any model of that architecture (Llama 2 to 3.3, SmolLM2, TinyLlama), from GGUF or safetensors.
//!
//! A prediction's way: `input` (what was asked) → `template` and `tokenizer` (what the model reads) → `pipeline`, which
//! asks `schedule` (who shares a step) and `blocks` (where it is kept), then an `engine` (the forward, `net`, and the choice of
//! a token by what `sampler` asks) → `running` and `text` (what may be shown).

mod bench;
mod blocks;
mod config;
mod engine;
mod files;
pub mod golden;
mod input;
mod needs;
mod net;
mod pipeline;
mod rows;
mod running;
mod sampler;
mod schedule;
mod synth;
mod template;
#[cfg(test)]
mod tests;
mod text;
mod tokenizer;
mod tokenizer_gguf;
mod weights;

use std::sync::Arc;

pub use pipeline::{DEFAULT_CACHE_TOKENS, DEFAULT_CONCURRENCY, DEFAULT_CONTEXT_TOKENS};

pub const ENTRY: crate::Entry = crate::Entry {
    name: "llama",
    schema: || schema::ModelSchema { input: input::Input::fields(), output: schema::Output::TextIterator },
    model: || Arc::new(pipeline::Llama),
    lock: include_str!("weights.lock"),
    manifest: include_str!("cog.yaml"),
    bench: bench::run,
    golden: golden::compare,
    synth: synth::SHAPES,
};
