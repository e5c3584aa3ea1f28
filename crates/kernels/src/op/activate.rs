//! Activations that stand between products, on tensors of any shape. As everywhere in `op`: a fused kernel on the CPU,
//! candle's own words elsewhere.

use candle_core::{Result, Tensor};

use super::place::gpu;
use super::{Rows, composed, fused, output};
use crate::cuda::image::Activation;
use crate::{Pool, activate};

/// `x * gelu(gate)`, by the error function, where each row of `both` (`[rows, 2 * ff]`) is the x half, then the gate half:
/// the order of diffusers' GEGLU. Gives `[rows, ff]`.
pub fn geglu(both: &Tensor, pool: &Pool) -> Result<Tensor> {
    let (rows, width) = both.dims2()?;
    if width == 0 || width % 2 != 0 {
        candle_core::bail!("{width} features are not two halves of one width");
    }
    if gpu(both.device()) {
        let fused = fused::finish(both, Activation::Geglu, &fused::Added::default())?;
        return fused.map_or_else(|| composed::geglu(both), Ok);
    }
    let mut y = output(rows * width / 2);
    Rows::of(both)?.with(|both, stride| activate::geglu(both, stride, width / 2, &mut y, pool))?;
    Tensor::from_vec(y, (rows, width / 2), both.device())
}

/// `x / (1 + e^-x)`.
pub fn silu(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    if gpu(x.device()) { x.silu() } else { by_value(x, |x, y| activate::silu(x, y, pool)) }
}

/// `x / (1 + e^(-1.702 x))`: the GELU of OpenAI's CLIP.
pub fn quick_gelu(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    if gpu(x.device()) { composed::quick_gelu(x) } else { by_value(x, |x, y| activate::quick_gelu(x, y, pool)) }
}

fn by_value(x: &Tensor, of: impl FnOnce(&[f32], &mut [f32])) -> Result<Tensor> {
    let flat = x.flatten_all()?.contiguous()?.unsqueeze(0)?;
    let mut y = output(x.elem_count());
    Rows::of(&flat)?.with(|x, _| of(&x[..y.len()], &mut y))?;
    Tensor::from_vec(y, x.dims(), x.device())
}
