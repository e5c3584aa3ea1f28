//! Stable Diffusion XL: two readings of a prompt (`tokenizer`, `clip`), the network that takes noise away (`unet`), step by
//! step (`generate` with a `scheduler` and `noise`), and the way between pixels and latents (`vae`). `weights` opens a
//! diffusers folder or a single checkpoint file and builds the networks, with a `lora` if there is one.

pub mod clip;
pub mod config;
mod fields;
pub mod generate;
pub mod golden;
mod layers;
pub mod lora;
pub mod noise;
mod original;
mod reader;
pub mod scheduler;
mod sizes;
pub mod synth;
#[cfg(test)]
mod tests;
pub mod tokenizer;
pub mod unet;
mod unet_blocks;
pub mod vae;
mod vae_tiles;
pub mod weights;
