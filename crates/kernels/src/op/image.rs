//! What image networks do between convolutions, on `[batch, height, width, channels]`: group norm, doubling, and channels
//! side by side. As everywhere in `op`: a fused kernel on the CPU, candle's own words elsewhere.

use candle_core::{Result, Tensor};

use super::composed;
use crate::Pool;

/// Group norm over each image's pixels and the neighbouring channels of a group, then SiLU if wanted:
/// `(x - mean) / sqrt(variance + eps) * weight + bias`. `weight` and `bias` are `[channels]`, f32. Statistics are at
/// least f32's on any device, f64's on the CPU.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    silu: bool,
    _pool: &Pool,
) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    if groups == 0 || !channels.is_multiple_of(groups) || channels * height * width == 0 {
        candle_core::bail!("{groups} groups of the channels of {:?}", x.dims());
    }
    if weight.dims1()? != channels || bias.dims1()? != channels {
        candle_core::bail!("a norm of {:?} with {:?} and {:?}", x.dims(), weight.dims(), bias.dims());
    }
    composed::group_norm(x, groups, weight, bias, eps, silu)
}

/// Every pixel four times: `[batch, height, width, channels]` to twice the height and width.
pub fn upsample_nearest_2x(x: &Tensor, _pool: &Pool) -> Result<Tensor> {
    x.dims4()?;
    composed::upsample_nearest_2x(x)
}

/// The channels of several images of one size, side by side.
pub fn concat_channels(parts: &[&Tensor], _pool: &Pool) -> Result<Tensor> {
    let Some(first) = parts.first() else { candle_core::bail!("no images to put side by side") };
    let (batch, height, width, _) = first.dims4()?;
    for part in parts {
        let (b, h, w, _) = part.dims4()?;
        if (b, h, w) != (batch, height, width) {
            candle_core::bail!("images of {:?} and {:?} side by side", first.dims(), part.dims());
        }
    }
    Tensor::cat(parts, 3)
}
