//! What image networks do between convolutions, on `[batch, height, width, channels]`: group norm, doubling, and channels
//! side by side. As everywhere in `op`: a fused kernel on the CPU, candle's own words elsewhere.

use candle_core::{Result, Tensor};

use super::place::{gpu, launches};
use super::{Rows, composed, fused, output};
use crate::Pool;
use crate::cuda::image::Walk;
use crate::group_norm::{self, Norm};
use crate::pool::Shares;

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
    pool: &Pool,
) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    if groups == 0 || !channels.is_multiple_of(groups) || channels * height * width == 0 {
        candle_core::bail!("{groups} groups of the channels of {:?}", x.dims());
    }
    if weight.dims1()? != channels || bias.dims1()? != channels {
        candle_core::bail!("a norm of {:?} with {:?} and {:?}", x.dims(), weight.dims(), bias.dims());
    }
    if gpu(x.device()) {
        let fused = fused::group_norm(x, groups, (weight, bias), eps, silu)?;
        return fused.map_or_else(|| composed::group_norm(x, groups, weight, bias, eps, silu), Ok);
    }
    let mut y = output(x.elem_count());
    let (x, weight, bias) = (x.contiguous()?, weight.unsqueeze(0)?, bias.unsqueeze(0)?);
    Rows::of(&weight)?.with(|weight, _| {
        Rows::of(&bias)?.with(|bias, _| {
            let norm = Norm { groups, weight: &weight[..channels], bias: &bias[..channels], eps, silu };
            Rows::of(&x)?.with(|x, _| group_norm::group_norm(&x[..y.len()], height * width, &norm, &mut y, pool))
        })?
    })??;
    Tensor::from_vec(y, x.dims(), x.device())
}

/// Every pixel four times: `[batch, height, width, channels]` to twice the height and width.
pub fn upsample_nearest_2x(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    if launches(x.device()) && x.elem_count() > 0 {
        // A convolution's window of one pixel, over the doubled image.
        let (pixel_bytes, rows, columns) = (channels * x.dtype().size_in_bytes(), 2 * height, 2 * width);
        let walk =
            Walk { height, width, pixel_bytes, kernel: 1, stride: 1, top: 0, left: 0, rows, columns, doubled: true };
        let y = fused::columns(x, &walk, (0, batch * rows * columns))?;
        return y.reshape((batch, rows, columns, channels));
    }
    if gpu(x.device()) || x.elem_count() == 0 {
        return composed::upsample_nearest_2x(x);
    }
    let (x, line) = (x.contiguous()?, width * channels);
    let mut y = output(4 * x.elem_count());
    Rows::of(&x)?.with(|x, _| {
        pool.chunks(&mut y, 4 * line, |unit, y| {
            let (first, second) = y.split_at_mut(2 * line);
            let pixels = x[unit * line..][..line].chunks_exact(channels);
            for (pixel, two) in pixels.zip(first.chunks_exact_mut(2 * channels)) {
                two[..channels].copy_from_slice(pixel);
                two[channels..].copy_from_slice(pixel);
            }
            second.copy_from_slice(first);
        });
    })?;
    Tensor::from_vec(y, (batch, 2 * height, 2 * width, channels), x.device())
}

/// The channels of several images of one size, side by side.
pub fn concat_channels(parts: &[&Tensor], pool: &Pool) -> Result<Tensor> {
    let Some(first) = parts.first() else { candle_core::bail!("no images to put side by side") };
    let (batch, height, width, _) = first.dims4()?;
    for part in parts {
        let (b, h, w, _) = part.dims4()?;
        if (b, h, w) != (batch, height, width) {
            candle_core::bail!("images of {:?} and {:?} side by side", first.dims(), part.dims());
        }
    }
    if gpu(first.device()) {
        return Tensor::cat(parts, 3);
    }
    let (pixels, all) = (batch * height * width, parts.iter().map(|part| part.dims()[3]).sum::<usize>());
    let mut y = output(pixels * all);
    let to = Shares::new(&mut y);
    let mut before = 0;
    for part in parts {
        let part = part.flatten(0, 2)?;
        let channels = part.dim(1)?;
        Rows::of(&part)?.with(|part, stride| {
            pool.run(pixels.div_ceil(PIXELS_PER_UNIT), |unit| {
                for pixel in unit * PIXELS_PER_UNIT..pixels.min((unit + 1) * PIXELS_PER_UNIT) {
                    // SAFETY: a part's channels of one pixel are written once.
                    let to = unsafe { to.share(pixel * all + before, channels) };
                    to.copy_from_slice(&part[pixel * stride..][..channels]);
                }
            });
        })?;
        before += channels;
    }
    Tensor::from_vec(y, (batch, height, width, all), first.device())
}

/// Pixels that one unit of work copies.
const PIXELS_PER_UNIT: usize = 64;
