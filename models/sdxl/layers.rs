//! What the networks share: norms, resnets, and how wide a head may be. Images are `[batch, height, width, channels]`, in what
//! the device computes in.
//! Refuses to know where in a network it stands.

use candle_core::{Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Conv2d, ConvShape, Dense, MemoryShape};
use prediction::PredictError;

use super::reader::Reader;

/// Gain and offset of `[features]` or `[channels]`.
pub struct Norm {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl Norm {
    /// Over each row of `[rows, features]`.
    pub fn layer(&self, x: &Tensor, eps: f32, pool: &Pool) -> Result<Tensor> {
        op::layer_norm(x, &self.weight, &self.bias, eps, pool)
    }

    /// Over each image and group of channels.
    pub fn group(&self, x: &Tensor, groups: &Groups, pool: &Pool) -> Result<Tensor> {
        op::group_norm(x, groups.count, &self.weight, &self.bias, groups.eps, groups.silu, pool)
    }
}

/// How a group norm divides, and whether SiLU follows.
#[derive(Clone, Copy)]
pub struct Groups {
    pub count: usize,
    pub eps: f64,
    pub silu: bool,
}

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))`; where the channels change, x goes through a layer of its own.
pub struct Resnet {
    norm1: Norm,
    conv1: Conv2d,
    norm2: Norm,
    conv2: Conv2d,
    shortcut: Option<Dense>,
    groups: Groups,
    out: usize,
    /// Where its features of the time embedding begin.
    time: Option<usize>,
}

impl Resnet {
    pub fn load(
        reader: &Reader,
        inputs: usize,
        out: usize,
        groups: Groups,
        time: Option<usize>,
    ) -> std::result::Result<Self, PredictError> {
        let shortcut = (inputs != out).then(|| reader.dense("conv_shortcut", out, inputs)).transpose()?;
        Ok(Self {
            norm1: reader.norm("norm1", inputs)?,
            conv1: reader.conv("conv1", same(inputs, out))?,
            norm2: reader.norm("norm2", out)?,
            conv2: reader.conv("conv2", same(out, out))?,
            shortcut,
            groups: Groups { silu: true, ..groups },
            out,
            time,
        })
    }

    /// `time` is `[batch, features of all resnets]`.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>, pool: &Pool) -> Result<Tensor> {
        let y = self.norm1.group(x, &self.groups, pool)?;
        let y = match (time, self.time) {
            (Some(time), Some(first)) => self.conv1.forward_shifted(&y, &time.narrow(1, first, self.out)?)?,
            _ => self.conv1.forward(&y)?,
        };
        let y = self.norm2.group(&y, &self.groups, pool)?;
        match &self.shortcut {
            None => self.conv2.forward_add(&y, x),
            Some(shortcut) => {
                let (batch, height, width, channels) = x.dims4()?;
                let x = shortcut.forward(&x.reshape((batch * height * width, channels))?)?;
                self.conv2.forward_add(&y, &x.reshape((batch, height, width, self.out))?)
            }
        }
    }

    /// Multiplications and additions for an image of so many pixels, its time aside.
    pub fn operations(&self, pixels: u64) -> u64 {
        let shortcut = self.shortcut.as_ref().map_or(0, |dense| operations(dense, pixels));
        conv_operations(&self.conv1, pixels) + conv_operations(&self.conv2, pixels) + shortcut
    }

    pub fn bytes(&self) -> u64 {
        self.conv1.bytes() + self.conv2.bytes() + self.shortcut.as_ref().map_or(0, Dense::bytes)
    }
}

/// A 3 x 3 convolution that keeps the image's size.
pub fn same(in_: usize, out: usize) -> ConvShape {
    ConvShape { in_, out, kernel: 3, stride: 1, pad: [1; 4] }
}

/// The memory of `positions` for `heads` that share `width` features.
pub fn heads(positions: usize, width: usize, heads: usize) -> std::result::Result<MemoryShape, PredictError> {
    let dim = width / heads;
    if dim * heads != width {
        return Err(PredictError::Operator(format!("{heads} heads do not share {width} features evenly")));
    }
    Ok(MemoryShape { positions, heads, dim })
}

/// What scores are multiplied by.
pub fn scale(shape: MemoryShape) -> f32 {
    1.0 / (shape.dim as f32).sqrt()
}

/// Multiplications and additions of a dense layer over so many rows.
pub fn operations(dense: &Dense, rows: u64) -> u64 {
    2 * rows * (dense.linear().in_features() * dense.linear().out_features()) as u64
}

/// Multiplications and additions of a convolution for so many pixels of its result.
pub fn conv_operations(conv: &Conv2d, pixels: u64) -> u64 {
    let ConvShape { in_, out, kernel, .. } = conv.shape();
    2 * pixels * (in_ * out * kernel * kernel) as u64
}

/// Multiplications and additions of rows that each look at `seen` positions, `width` features in all heads.
pub fn attention_operations(rows: u64, seen: u64, width: usize) -> u64 {
    4 * rows * seen * width as u64
}
