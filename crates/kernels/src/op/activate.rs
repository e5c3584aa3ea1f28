//! Activations that stand between products, on tensors of any shape. As everywhere in `op`: a fused kernel on the CPU,
//! candle's own words elsewhere.

use candle_core::{Result, Tensor};

use super::composed;
use crate::Pool;

/// `x * gelu(gate)`, by the error function, where each row of `both` (`[rows, 2 * ff]`) is the x half, then the gate half:
/// the order of diffusers' GEGLU. Gives `[rows, ff]`.
pub fn geglu(both: &Tensor, _pool: &Pool) -> Result<Tensor> {
    let (_, width) = both.dims2()?;
    if width == 0 || width % 2 != 0 {
        candle_core::bail!("{width} features are not two halves of one width");
    }
    composed::geglu(both)
}

/// `x / (1 + e^-x)`.
pub fn silu(x: &Tensor, _pool: &Pool) -> Result<Tensor> {
    x.silu()
}

/// `x / (1 + e^(-1.702 x))`: the GELU of OpenAI's CLIP.
pub fn quick_gelu(x: &Tensor, _pool: &Pool) -> Result<Tensor> {
    composed::quick_gelu(x)
}
