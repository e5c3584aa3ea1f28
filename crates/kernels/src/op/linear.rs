//! A weight matrix and its product with rows of activations. Refuses to know what the matrix is for.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use crate::{Format, Pool};

/// One part of a stacked weight: its format, its output features, its bytes (GGUF blocks or plain row-major).
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub format: Format,
    pub out: usize,
    pub bytes: &'a [u8],
}

pub struct Linear {
    out: usize,
    in_: usize,
    weight: Tensor,
    _pool: Arc<Pool>,
}

impl Linear {
    pub fn from_bytes(
        format: Format,
        out: usize,
        in_: usize,
        bytes: &[u8],
        device: &Device,
        pool: &Arc<Pool>,
    ) -> Result<Linear> {
        Linear::stack(&[Part { format, out, bytes }], in_, device, pool)
    }

    /// Weights that read the same input, one below the other (q, k and v; gate and up): one product instead of several.
    /// The formats may differ.
    pub fn stack(parts: &[Part], in_: usize, device: &Device, pool: &Arc<Pool>) -> Result<Linear> {
        let mut tensors = Vec::new();
        for part in parts {
            let size = part.format.size(part.out, in_).map_err(candle_core::Error::msg)?;
            if size != part.bytes.len() {
                candle_core::bail!(
                    "a {} weight of [{}, {in_}] is {size} bytes, not {}",
                    part.format.name(),
                    part.out,
                    part.bytes.len()
                );
            }
            let storage = QStorage::from_data(Cow::Borrowed(part.bytes), device, part.format.ggml())?;
            tensors.push(QTensor::new(storage, (part.out, in_))?.dequantize(device)?.to_dtype(DType::F32)?);
        }
        let weight = Tensor::cat(&tensors, 0)?;
        Ok(Linear { out: weight.dim(0)?, in_, weight, _pool: pool.clone() })
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight.t()?)
    }

    /// `residual + forward(x)`, in one pass over the result.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward(x)? + residual
    }

    /// The weight's own rows, as f32: an embedding lookup. `[ids, in]`.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        self.weight.index_select(&Tensor::new(ids, self.weight.device())?, 0)
    }

    pub fn out_features(&self) -> usize {
        self.out
    }

    pub fn in_features(&self) -> usize {
        self.in_
    }

    /// The memory it holds.
    pub fn bytes(&self) -> u64 {
        (self.weight.elem_count() * 4) as u64
    }
}
