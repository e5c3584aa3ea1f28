//! SDXL: text to images, as diffusers does it.
//!
//! A prompt's way: `tokenizer` (tokens) → the text encoders → `generate` (a `scheduler`'s steps, with `noise` of the
//! prediction's seed) → the VAE.

pub mod noise;
pub mod scheduler;
#[cfg(test)]
mod tests;
pub mod tokenizer;
