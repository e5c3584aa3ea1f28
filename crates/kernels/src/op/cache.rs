//! One layer's keys and values: a slot per prediction, a position per row. Refuses to know who holds a slot.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::composed;
use crate::Pool;

pub struct KvCache {
    keys: Tensor,
    values: Tensor,
    _pool: Arc<Pool>,
}

impl KvCache {
    /// Room for `slots` sequences of `context_tokens`, in `dtype` f16 or f32.
    pub fn new(
        slots: usize,
        context_tokens: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
        pool: &Arc<Pool>,
    ) -> Result<KvCache> {
        let shape = (slots, context_tokens, kv_heads, head_dim);
        let keys = Tensor::zeros(shape, dtype, device)?;
        let values = Tensor::zeros(shape, dtype, device)?;
        Ok(KvCache { keys, values, _pool: pool.clone() })
    }

    /// Stores one position per row: `k` and `v` are `[rows, kv_heads, dim]`.
    pub fn write(&mut self, k: &Tensor, v: &Tensor, slots: &[u32], positions: &[u32]) -> Result<()> {
        composed::write(&self.keys, k, slots, positions)?;
        composed::write(&self.values, v, slots, positions)
    }

    /// What it takes once every position has been written.
    pub fn bytes(&self) -> u64 {
        (2 * self.keys.elem_count() * self.keys.dtype().size_in_bytes()) as u64
    }

    pub(super) fn attention(&self, q: &Tensor, slots: &[u32], positions: &[u32], scale: f32) -> Result<Tensor> {
        composed::attention_over(q, (&self.keys, &self.values), slots, positions, scale)
    }
}
