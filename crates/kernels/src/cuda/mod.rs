//! Our CUDA kernels, and the calls that launch them. Refuses to know models: a caller puts the calls in order.
//!
//! The kernels' source is `crates/kernels/cuda`; a build with the feature `cuda` compiles and embeds them. Everything up to the
//! launch itself (packing of weights, grids, parameters) is in here without that feature too, for the tests: they run the same
//! source on the CPU, where the hardware is emulated and nothing else.

pub mod attention;
pub mod call;
pub mod check;
#[cfg(feature = "cuda")]
pub mod device;
#[cfg(feature = "cuda")]
pub mod graph;
pub mod inputs;
pub mod params;
pub mod product;
pub mod rows;
pub mod weight;

#[cfg(test)]
mod emulator;
