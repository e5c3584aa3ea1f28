//! Stable Diffusion XL: two readings of a prompt (`clip`), the network that takes noise away (`unet`), and the way between
//! pixels and latents (`vae`). `weights` opens a diffusers folder or a single checkpoint file and builds them.

pub mod clip;
pub mod config;
mod fields;
mod layers;
mod original;
mod reader;
mod sizes;
pub mod synth;
#[cfg(test)]
mod tests;
pub mod unet;
mod unet_blocks;
pub mod vae;
mod vae_tiles;
pub mod weights;
