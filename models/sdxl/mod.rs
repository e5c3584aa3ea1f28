//! Stable Diffusion XL: two readings of a prompt (`tokenizer`, `clip`), the network that takes noise away (`unet`), step by
//! step (`generate` with a `scheduler` and `noise`), and the way between pixels and latents (`vae`). `weights` opens a
//! diffusers folder or a single checkpoint file and builds the networks, with what was `trained` if there is any: a `lora`, a
//! `whole` UNet, learned `words`.
//!
//! A prediction's way: `input` (what was asked) → `image` (what was sent) → `pipeline` and `running` (whose turn it is) →
//! `generate` → `watermark` → `safety` → `output`.

mod bench;
mod change;
pub mod clip;
mod clip_layers;
pub mod config;
mod cost;
mod fields;
pub mod generate;
pub mod golden;
mod image;
mod input;
mod layers;
pub mod lora;
pub mod noise;
mod original;
mod output;
mod pipeline;
mod reader;
mod running;
mod safety;
pub mod scheduler;
mod sizes;
pub mod synth;
#[cfg(test)]
mod tests;
pub mod tokenizer;
pub mod trained;
pub mod unet;
mod unet_blocks;
pub mod vae;
mod vae_tiles;
mod vision;
mod vision_image;
mod watermark;
pub mod weights;
mod whole;
mod words;

use std::sync::Arc;

pub const ENTRY: crate::Entry = crate::Entry {
    name: "sdxl",
    schema: || schema::ModelSchema { input: input::Input::fields(), output: schema::Output::UriList },
    model: || Arc::new(pipeline::Sdxl),
    lock: include_str!("weights.lock"),
    manifest: include_str!("cog.yaml"),
    bench: bench::run,
    golden: golden::compare,
    synth: synth::SHAPES,
};
