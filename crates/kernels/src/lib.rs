//! One op per file, for the CPU: what candle lacks. Knows slices and a thread pool; refuses to know models.
//!
//! Every op gives row `r` of its result the same bits whatever the other rows are, however many there are, how many
//! threads work and which SIMD path runs: the order of every sum is fixed by the inner dimension alone.

pub mod activate;
pub mod attend;
pub mod attention;
pub mod bandwidth;
pub mod convert;
pub mod cuda;
pub mod format;
mod fresh;
pub mod gelu;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
mod math;
pub mod norm;
mod online;
pub mod op;
pub mod peak;
pub mod pool;
pub mod rope;
pub mod sample;
pub mod simd;
pub mod softmax;
pub mod swiglu;
#[cfg(test)]
mod testing;

pub use format::Format;
pub use pool::Pool;
pub use simd::Simd;
