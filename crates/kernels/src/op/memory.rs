//! Attention over memories, on candle tensors. As everywhere in `op`: a fused kernel on the CPU, candle's own words
//! elsewhere.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};

use super::place::gpu;
use super::{Rows, output};
use crate::attend::{self, Queries, Shape, Sight};
use crate::pool::Pool;

/// Keys and values of one layer and one sequence.
pub enum Memory {
    Cpu { memory: attend::Memory, pool: Arc<Pool> },
    Composed { shape: Shape, keys: Tensor, values: Tensor },
}

impl Memory {
    /// Room for `shape.positions` in `dtype`, f16 or f32; other types are kept as f32 on the CPU.
    pub fn new(shape: Shape, dtype: DType, device: &Device, pool: &Arc<Pool>) -> Result<Memory> {
        if !gpu(device) {
            let memory = attend::Memory::new(shape, dtype == DType::F16);
            return Ok(Memory::Cpu { memory, pool: pool.clone() });
        }
        let dims = (shape.positions, shape.heads, shape.dim);
        let (keys, values) = (Tensor::zeros(dims, dtype, device)?, Tensor::zeros(dims, dtype, device)?);
        Ok(Memory::Composed { shape, keys, values })
    }

    /// Stores positions from `first` on: `k` and `v` are `[rows, heads * dim]`.
    pub fn write(&mut self, first: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let (rows, width) = k.dims2()?;
        let Shape { positions, heads, dim } = self.shape();
        if v.dims2()? != (rows, width) || width != heads * dim || first + rows > positions {
            candle_core::bail!("keys of {:?} and values of {:?} from {first} on in {positions}", k.dims(), v.dims());
        }
        match self {
            Memory::Cpu { memory, pool } => Rows::of(k)?.with(|k, k_stride| {
                Rows::of(v)?.with(|v, v_stride| {
                    memory.write(first, rows, (k, k_stride), (v, v_stride), pool);
                })
            })?,
            Memory::Composed { keys, values, .. } => {
                let shaped = |t: &Tensor| t.contiguous()?.reshape((rows, heads, dim))?.to_dtype(keys.dtype());
                keys.slice_set(&shaped(k)?, 0, first)?;
                values.slice_set(&shaped(v)?, 0, first)
            }
        }
    }

    /// The first `positions` of another one, in place of its own.
    pub fn copy_from(&mut self, other: &Memory, positions: usize) -> Result<()> {
        match (self, other) {
            (Memory::Cpu { memory, .. }, Memory::Cpu { memory: other, .. }) => memory.copy_from(other, positions),
            (Memory::Composed { keys, values, .. }, Memory::Composed { keys: k, values: v, .. }) => {
                keys.slice_set(&k.narrow(0, 0, positions)?, 0, 0)?;
                values.slice_set(&v.narrow(0, 0, positions)?, 0, 0)?;
            }
            _ => candle_core::bail!("memories on two devices"),
        }
        Ok(())
    }

    pub fn shape(&self) -> Shape {
        match self {
            Memory::Cpu { memory, .. } => memory.shape(),
            Memory::Composed { shape, .. } => *shape,
        }
    }

    /// Once every position has been written.
    pub fn bytes(&self) -> u64 {
        match self {
            Memory::Cpu { memory, .. } => memory.bytes() as u64,
            Memory::Composed { keys, .. } => 2 * (keys.elem_count() * keys.dtype().size_in_bytes()) as u64,
        }
    }

    /// The scores before their softmax of every row of `q` (`[rows, heads * dim]`) under one head, over the first
    /// `positions`: `[rows, positions]`, row by row.
    pub fn scores(&self, q: &Tensor, head: usize, positions: usize, scale: f32) -> Result<Vec<f32>> {
        let rows = q.dim(0)?;
        match self {
            Memory::Cpu { memory, pool } => Rows::of(q)?.with(|values, stride| {
                attend::scores(Queries { values, stride, scale }, rows, head, memory, positions, pool)
            }),
            Memory::Composed { shape, keys, .. } => {
                let q = q.narrow(1, head * shape.dim, shape.dim)?.contiguous()?;
                let keys = keys.narrow(0, 0, positions)?.narrow(1, head, 1)?.squeeze(1)?.to_dtype(DType::F32)?;
                (q.matmul(&keys.t()?.contiguous()?)? * f64::from(scale))?.flatten_all()?.to_vec1()
            }
        }
    }
}

/// Row `r` of `q` (`[rows, heads * dim]`) attends to the first `seen` positions of the memory that `sights[r]` names.
pub fn attend(q: &Tensor, sights: &[(&Memory, usize)], scale: f32) -> Result<Tensor> {
    let (rows, width) = q.dims2()?;
    let Some((first, _)) = sights.first().filter(|_| sights.len() == rows) else {
        candle_core::bail!("{} sights for queries of {:?}", sights.len(), q.dims());
    };
    for (memory, seen) in sights {
        let Shape { positions, heads, dim } = memory.shape();
        if heads * dim != width || *seen == 0 || *seen > positions {
            candle_core::bail!("queries of {:?} look at {seen} of {:?}", q.dims(), memory.shape());
        }
    }
    let Memory::Cpu { pool, .. } = first else { return composed(q, sights, scale) };
    let cpu = sights.iter().map(|(memory, seen)| match memory {
        Memory::Cpu { memory, .. } => Ok(Sight { memory, seen: *seen }),
        Memory::Composed { .. } => candle_core::bail!("memories on two devices"),
    });
    let cpu = cpu.collect::<Result<Vec<_>>>()?;
    let mut y = output(rows * width);
    Rows::of(q)?.with(|values, stride| attend::attend(Queries { values, stride, scale }, &cpu, &mut y, pool))?;
    Tensor::from_vec(y, (rows, width), q.device())
}

/// One product per run of rows that look at one memory.
fn composed(q: &Tensor, sights: &[(&Memory, usize)], scale: f32) -> Result<Tensor> {
    let mut parts = Vec::new();
    let mut first = 0;
    for run in sights.chunk_by(|a, b| std::ptr::eq(a.0, b.0)) {
        let Memory::Composed { keys, values, .. } = run[0].0 else {
            candle_core::bail!("memories on two devices");
        };
        let seen = run.iter().map(|(_, seen)| *seen).max().unwrap_or(1);
        let rows = q.narrow(0, first, run.len())?;
        let sees: Vec<usize> = run.iter().map(|(_, sees)| *sees).collect();
        let (keys, values) = (keys.narrow(0, 0, seen)?, values.narrow(0, 0, seen)?);
        parts.push(in_candles_words(&rows, &keys, &values, &sees, scale)?);
        first += run.len();
    }
    Tensor::cat(&parts, 0)
}

/// Rows `[rows, heads * dim]` over keys and values `[seen, heads, dim]`, in f32 whatever they are in. Row `r` sees the first `sees[r]`.
pub(super) fn in_candles_words(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    sees: &[usize],
    scale: f32,
) -> Result<Tensor> {
    let (rows, width) = q.dims2()?;
    let (seen, heads, dim) = keys.dims3()?;
    let heads_first = |t: &Tensor| t.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous();
    let q32 = q.to_dtype(DType::F32)?.reshape((rows, heads, dim))?;
    let scores = q32.transpose(0, 1)?.contiguous()?.matmul(&heads_first(keys)?.transpose(1, 2)?.contiguous()?)?;
    let mut scores = (scores * f64::from(scale))?;
    if sees.iter().any(|sees| *sees < seen) {
        let of = |sees: usize| (0..seen).map(move |p| if p < sees { 0f32 } else { f32::NEG_INFINITY });
        let hidden: Vec<f32> = sees.iter().flat_map(|sees| of(*sees)).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(hidden, (1, rows, seen), q.device())?)?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let y = weights.matmul(&heads_first(values)?)?.transpose(0, 1)?.contiguous()?;
    y.reshape((rows, width))?.to_dtype(q.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn close(a: &Tensor, b: &Tensor) {
        let largest = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest < 1e-4, "they differ by {largest}");
    }

    #[test]
    fn a_memory_on_the_cpu_and_one_of_candles_own_agree() {
        let mut random = Random::fresh();
        let pool = Arc::new(Pool::new(2));
        let shape = Shape { positions: 90, heads: 2, dim: 32 };
        let mut own = Memory::new(shape, DType::F32, &Device::Cpu, &pool).unwrap();
        let zeros = || Tensor::zeros((90, 2, 32), DType::F32, &Device::Cpu).unwrap();
        let mut other = Memory::Composed { shape, keys: zeros(), values: zeros() };
        let tensor = |random: &mut Random, rows: usize| {
            Tensor::from_vec(random.normal(rows * 64), (rows, 64), &Device::Cpu).unwrap()
        };
        for (first, rows) in [(0, 70), (70, 20)] {
            let (k, v) = (tensor(&mut random, rows), tensor(&mut random, rows));
            own.write(first, &k, &v).unwrap();
            other.write(first, &k, &v).unwrap();
        }
        let q = tensor(&mut random, 7);
        let seen = [1, 90, 64, 65, 3, 80, 90];
        let sights = |memory| seen.map(|seen| (memory, seen));
        close(&attend(&q, &sights(&own), 0.2).unwrap(), &attend(&q, &sights(&other), 0.2).unwrap());
        let (a, b) = (own.scores(&q, 1, 77, 0.2).unwrap(), other.scores(&q, 1, 77, 0.2).unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4) && a.len() == 7 * 77 && b.len() == a.len());
        assert!(attend(&q, &[(&own, 91); 7], 0.2).is_err() && attend(&q, &[(&own, 1); 6], 0.2).is_err());
    }
}
