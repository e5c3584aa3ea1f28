//! Whisper: speech to text, tiny to large-v3 and turbo, English-only and multilingual, from CTranslate2's file or from
//! safetensors.
//!
//! A prediction's way: `input` (what was asked) → `audio`, `mel` and `recording` (what the net reads) → `pipeline` and
//! `running` (whose turn it is) → `net` (the forwards) → `decoding` under its `rules` (a window's tokens) → `clip` (its
//! segments) → `words` (when each word was said) → `output`.

mod audio;
mod bench;
mod clip;
mod config;
mod decoding;
pub mod golden;
mod input;
mod languages;
mod mel;
mod net;
mod output;
mod pipeline;
mod recording;
mod rules;
mod running;
mod silence;
mod synth;
#[cfg(test)]
pub(crate) mod tests;
mod timeline;
mod vocabulary;
mod weights;
mod words;

use std::sync::Arc;

pub const ENTRY: crate::Entry = crate::Entry {
    name: "whisper",
    schema: || schema::ModelSchema { input: input::Input::fields(), output: schema::Output::Object(input::output()) },
    model: || Arc::new(pipeline::Whisper),
    lock: include_str!("weights.lock"),
    manifest: include_str!("cog.yaml"),
    bench: bench::run,
    golden: golden::compare,
    synth: synth::SHAPES,
};
