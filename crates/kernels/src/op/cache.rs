//! One layer's keys and values, in blocks of 64 positions. Refuses to know who holds a block.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};

use super::place::gpu;
use super::{Rows, composed, output};
use crate::Pool;
use crate::attention::{BLOCK, Cache, Places, Queries, Shape, attention};
use crate::linear::LANES;

pub struct KvCache {
    shape: Shape,
    inner: Inner,
}

enum Inner {
    Cpu { cache: Cache, pool: Arc<Pool> },
    Composed { keys: Tensor, values: Tensor },
}

impl KvCache {
    /// Room for `blocks` blocks of 64 positions, in `dtype` f16 or f32. On the CPU the memory is touched only as positions
    /// are written.
    pub fn new(
        blocks: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
        pool: &Arc<Pool>,
    ) -> Result<KvCache> {
        let shape = Shape { blocks, kv_heads, head_dim };
        if gpu(device) {
            return KvCache::composed(shape, dtype, device);
        }
        let cache = match dtype {
            DType::F16 => Cache::f16(shape),
            DType::F32 => Cache::f32(shape),
            other => candle_core::bail!("a cache holds f16 or f32, not {other:?}"),
        };
        Ok(KvCache { shape, inner: Inner::Cpu { cache, pool: pool.clone() } })
    }

    /// The same cache as candle tensors `[blocks * 64, kv_heads, head_dim]`, on any device.
    pub(super) fn composed(shape: Shape, dtype: DType, device: &Device) -> Result<KvCache> {
        let dims = (shape.blocks * BLOCK, shape.kv_heads, shape.head_dim);
        let (keys, values) = (Tensor::zeros(dims, dtype, device)?, Tensor::zeros(dims, dtype, device)?);
        Ok(KvCache { shape, inner: Inner::Composed { keys, values } })
    }

    /// Stores one position per row: `k` and `v` are `[rows, kv_heads, dim]`. Nobody else may hold the blocks they go to.
    pub fn write(&mut self, k: &Tensor, v: &Tensor, places: &Places) -> Result<()> {
        places.fit(self.shape.blocks).map_err(Error::msg)?;
        let expected = (places.rows(), self.shape.kv_heads, self.shape.head_dim);
        if k.dims3()? != expected || v.dims3()? != expected {
            candle_core::bail!("keys of {:?} and values of {:?} for a cache row of {expected:?}", k.dims(), v.dims());
        }
        match &mut self.inner {
            Inner::Cpu { cache, pool } => Rows::of(k)?.with(|k, k_stride| {
                Rows::of(v)?.with(|v, v_stride| cache.write((k, k_stride), (v, v_stride), places, pool))
            })?,
            Inner::Composed { keys, values } => {
                composed::write(keys, k, places)?;
                composed::write(values, v, places)
            }
        }
    }

    pub(super) fn attention(&self, q: &Tensor, places: &Places, scale: f32) -> Result<Tensor> {
        places.fit(self.shape.blocks).map_err(Error::msg)?;
        let (rows, heads, dim) = q.dims3()?;
        if rows != places.rows() || dim != self.shape.head_dim || heads % self.shape.kv_heads != 0 {
            candle_core::bail!("queries of {:?} for {} rows over {:?}", q.dims(), places.rows(), self.shape);
        }
        match &self.inner {
            Inner::Cpu { cache, pool } => {
                let mut y = output(rows * heads * dim);
                Rows::of(q)?.with(|values, stride| {
                    attention(Queries { values, stride, heads, scale }, cache, places, &mut y, pool)
                })?;
                Tensor::from_vec(y, (rows, heads * dim), &Device::Cpu)
            }
            Inner::Composed { keys, values } => composed::attention_over(q, (keys, values), places, scale),
        }
    }

    /// What `bytes` of so many blocks of 64 positions will be, before there are any.
    pub fn bytes_for(blocks: usize, kv_heads: usize, head_dim: usize, dtype: DType, device: &Device) -> u64 {
        // The CPU keeps values in whole vectors.
        let value_width = if gpu(device) { head_dim } else { head_dim.next_multiple_of(LANES) };
        (blocks * BLOCK * kv_heads * (head_dim + value_width) * dtype.size_in_bytes()) as u64
    }

    /// What it takes once every position has been written.
    pub fn bytes(&self) -> u64 {
        match &self.inner {
            Inner::Cpu { cache, .. } => cache.bytes() as u64,
            Inner::Composed { keys, .. } => 2 * (keys.elem_count() * keys.dtype().size_in_bytes()) as u64,
        }
    }
}
