//! Stable Diffusion XL: two readings of a prompt, the network that takes noise away, and the way between pixels and latents.

pub mod config;
mod fields;
mod sizes;
pub mod synth;
