//! The ops on candle tensors that models are written in. A CPU tensor takes the fused kernel; a GPU's takes a CUDA kernel of ours
//! (`fused`) where there is one for the op, its type and its shape, and else `composed`, the same op in candle's own words, which is
//! also the plain reference in the tests.
//!
//! Activations are f32, on a GPU also f16 or bf16, `[rows, features]` or `[rows, heads, dim]`; a row is one token of one sequence or
//! one pixel of one image. Images are `[batch, height, width, channels]`. Inputs may be views whose rows are strided (a `narrow` of a
//! wider tensor) as long as each row itself is contiguous.

mod activate;
mod cache;
mod composed;
mod conv;
mod dense;
mod fused;
#[cfg(test)]
mod fused_tests;
mod image;
#[cfg(test)]
mod image_tests;
mod kept;
mod linear;
mod memory;
mod place;
mod scene;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor};

use crate::Pool;
pub use crate::attend::Shape as MemoryShape;
pub use crate::attention::Places;
use crate::fresh::zeros as output;
pub use crate::linear::Part;
pub use crate::rope::RopeTable;
pub use crate::sample::{Ask, NotANumber};
pub use activate::{geglu, quick_gelu, silu};
pub use cache::KvCache;
pub use conv::{Conv2d, ConvShape, WINDOW_BYTES};
pub use dense::{Dense, layer_norm};
pub use image::{concat_channels, group_norm, upsample_nearest_2x};
pub use kept::{HostTensors, LayerTensors, kept_bytes};
pub use linear::Linear;
pub use memory::{Memory, attend};
#[cfg(any(test, feature = "emulator"))]
pub use place::{Emulating, emulate};
pub use place::{activations, attends_in_one_kernel, gpu, launches, prepare};
pub use scene::Scene;

/// `x / sqrt(mean(x^2) + eps) * weight`, over each row of `[rows, features]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32, pool: &Pool) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if weight.dims1()? != width || width == 0 {
        candle_core::bail!("a norm of {:?} with a weight of {:?}", x.dims(), weight.dims());
    }
    if gpu(x.device()) {
        return composed::rms_norm(x, weight, eps);
    }
    let mut y = output(rows * width);
    let weight = weight.unsqueeze(0)?;
    Rows::of(&weight)?.with(|weight, _| {
        Rows::of(x)?.with(|x, stride| crate::norm::rms_norm(x, stride, &weight[..width], eps, &mut y, pool))
    })??;
    Tensor::from_vec(y, (rows, width), x.device())
}

/// Rotates the two halves of every head against each other (the "rotate_half" layout of HF checkpoints) by the angle of
/// the row's position. `[rows, heads, dim]` in and out.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &[u32], pool: &Pool) -> Result<Tensor> {
    let (rows, heads, dim) = x.dims3()?;
    if dim != table.dim() || rows != positions.len() {
        candle_core::bail!("{:?} turned by a table for {} and {} positions", x.dims(), table.dim(), positions.len());
    }
    if let Some(position) = positions.iter().find(|p| **p as usize >= table.context_tokens()) {
        candle_core::bail!("position {position} is outside the context of {} tokens", table.context_tokens());
    }
    if gpu(x.device()) {
        return composed::rope(x, table, positions);
    }
    let mut y = output(rows * heads * dim);
    Rows::of(x)?.with(|x, stride| crate::rope::rope(x, stride, heads, table, positions, &mut y, pool))?;
    Tensor::from_vec(y, (rows, heads, dim), x.device())
}

/// Causal grouped-query attention: row `r` of `q` (`[rows, heads, dim]`) sees positions `0..=positions[r]` of its sequence,
/// which must have been written. Gives `[rows, heads * dim]`.
pub fn attention(q: &Tensor, cache: &KvCache, places: &Places, scale: f32) -> Result<Tensor> {
    cache.attention(q, places, scale)
}

/// `silu(gate) * up`, where each row of `gate_up` is the gate half, then the up half. `[rows, 2 * ff]` to `[rows, ff]`.
pub fn swiglu(gate_up: &Tensor, pool: &Pool) -> Result<Tensor> {
    let (rows, both) = gate_up.dims2()?;
    if both == 0 || both % 2 != 0 {
        candle_core::bail!("{both} features are not a gate and an up of one width");
    }
    if gpu(gate_up.device()) {
        return composed::swiglu(gate_up);
    }
    let mut y = output(rows * both / 2);
    let x = gate_up.contiguous()?;
    Rows::of(&x)?.with(|x, _| crate::swiglu::swiglu(&x[..rows * both], both / 2, &mut y, pool))?;
    Tensor::from_vec(y, (rows, both / 2), &Device::Cpu)
}

/// Chooses one token per row of `logits` (`[rows, vocabulary]` f32, scratch afterwards), as [`crate::sample`] says.
pub fn sample(logits: &Tensor, asks: &[Ask], pool: &Pool) -> Result<Vec<std::result::Result<u32, NotANumber>>> {
    let (rows, vocabulary) = logits.dims2()?;
    if rows != asks.len() || vocabulary == 0 {
        candle_core::bail!("logits of {:?} for {} rows", logits.dims(), asks.len());
    }
    let sampling = Sampling { asks, vocabulary, chosen: RefCell::new(vec![Err(NotANumber); rows]), pool };
    // On another device the logits come here: rows of one step, 4 bytes a token of the vocabulary.
    logits.to_device(&Device::Cpu)?.contiguous()?.inplace_op1(&sampling)?;
    Ok(sampling.chosen.into_inner())
}

/// Reads and spoils the logits where they lie.
struct Sampling<'a> {
    asks: &'a [Ask<'a>],
    vocabulary: usize,
    chosen: RefCell<Vec<std::result::Result<u32, NotANumber>>>,
    pool: &'a Pool,
}

impl InplaceOp1 for Sampling<'_> {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { candle_core::bail!("logits are f32") };
        let logits = &mut values[layout.start_offset()..][..self.asks.len() * self.vocabulary];
        crate::sample::sample(logits, self.vocabulary, self.asks, &mut self.chosen.borrow_mut(), self.pool);
        Ok(())
    }
}

/// A CPU tensor of f32 whose rows (all dimensions but the first) are contiguous, `stride` values apart.
struct Rows<'a> {
    tensor: &'a Tensor,
    start: usize,
    stride: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    fn of(tensor: &'a Tensor) -> Result<Rows<'a>> {
        let (dims, strides) = (tensor.dims(), tensor.stride());
        let mut width = 1;
        for (dim, stride) in dims.iter().zip(strides).skip(1).rev() {
            if *dim > 1 && *stride != width {
                candle_core::bail!("rows of {dims:?} with strides {strides:?} are not contiguous");
            }
            width *= dim;
        }
        if tensor.dtype() != DType::F32 || !tensor.device().is_cpu() {
            candle_core::bail!("activations are f32 on the CPU, not {:?} on {:?}", tensor.dtype(), tensor.device());
        }
        let stride = if dims[0] > 1 { strides[0] } else { width };
        if stride < width {
            candle_core::bail!("rows of {dims:?} with strides {strides:?} overlap");
        }
        Ok(Rows { tensor, start: tensor.layout().start_offset(), stride, width })
    }

    /// Gives the values from the first row's start on, and the distance of rows.
    fn with<R>(&self, read: impl FnOnce(&[f32], usize) -> R) -> Result<R> {
        let (storage, _) = self.tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok(read(&storage.as_slice::<f32>()?[self.start..], self.stride)),
            _ => candle_core::bail!("activations are on the CPU"),
        }
    }

    /// A copy, without gaps.
    fn to_vec(&self) -> Result<Vec<f32>> {
        let rows = self.tensor.dim(0)?;
        self.with(|values, stride| {
            let mut copy = Vec::with_capacity(rows * self.width);
            (0..rows).for_each(|row| copy.extend_from_slice(&values[row * stride..][..self.width]));
            copy
        })
    }
}
