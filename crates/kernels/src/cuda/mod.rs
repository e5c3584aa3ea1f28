//! Our CUDA kernels, the calls that launch them, and the order of a decoder's step. Refuses to know models and who asks.
//!
//! The kernels' source is `crates/kernels/cuda`; a build with the feature `cuda` compiles and embeds them. Everything up to the
//! launch itself (packing of weights, grids, parameters) is in here without that feature too, for the tests: they run the same
//! source on the CPU, where the hardware is emulated and nothing else.

pub mod attend;
pub mod attention;
pub mod call;
#[cfg(any(feature = "cuda", feature = "emulator", test))]
pub mod check;
pub mod decoder;
#[cfg(feature = "cuda")]
pub mod device;
pub mod exchange;
#[cfg(feature = "cuda")]
pub mod graph;
pub mod image;
pub mod inputs;
pub mod kept;
pub mod params;
pub mod product;
pub mod rows;
pub mod stream;
pub mod upload;
pub mod weight;

#[cfg(any(test, feature = "emulator"))]
pub mod emulated;
#[cfg(any(test, feature = "emulator"))]
pub mod emulator;
