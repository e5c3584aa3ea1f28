//! The ops on candle tensors that the Llama is written in. A CPU tensor takes the fused kernel; any other device takes
//! `composed`, the same op in candle's own words, which is also the plain reference in the tests.
//!
//! Activations are f32, `[rows, features]` or `[rows, heads, dim]`; a row is one token of one slot. Inputs may be views
//! whose rows are strided (a `narrow` of a wider tensor) as long as each row itself is contiguous.

mod cache;
mod composed;
mod linear;
mod rope;

use candle_core::{Result, Tensor};

use crate::Pool;
pub use cache::KvCache;
pub use linear::{Linear, Part};
pub use rope::RopeTable;

/// `x / sqrt(mean(x^2) + eps) * weight`, over each row of `[rows, features]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32, _pool: &Pool) -> Result<Tensor> {
    composed::rms_norm(x, weight, eps)
}

/// Rotates the two halves of every head against each other (the "rotate_half" layout of HF checkpoints) by the angle of
/// the row's position. `[rows, heads, dim]` in and out.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &[u32], _pool: &Pool) -> Result<Tensor> {
    composed::rope(x, table, positions)
}

/// Causal grouped-query attention: row `r` of `q` (`[rows, heads, dim]`) sees positions `0..=positions[r]` of its slot,
/// which must have been written. Gives `[rows, heads * dim]`.
pub fn attention(q: &Tensor, cache: &KvCache, slots: &[u32], positions: &[u32], scale: f32) -> Result<Tensor> {
    cache.attention(q, slots, positions, scale)
}

/// `silu(gate) * up`, where each row of `gate_up` is the gate half, then the up half. `[rows, 2 * ff]` to `[rows, ff]`.
pub fn swiglu(gate_up: &Tensor, _pool: &Pool) -> Result<Tensor> {
    composed::swiglu(gate_up)
}
