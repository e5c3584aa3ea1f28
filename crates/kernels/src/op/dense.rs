//! What encoders and decoders with biases are written in, on candle tensors: dense layers, layer norm, and attention over
//! memories. As everywhere in `op`: a fused kernel on the CPU, candle's own words elsewhere.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};

use super::{Linear, Part, Rows, output};
use crate::attend::{self, Queries, Shape, Sight};
use crate::gelu::gelu;
use crate::pool::Pool;

/// A linear layer with an optional bias.
pub struct Dense {
    linear: Linear,
    /// `[out]`, f32; none where there is none.
    bias: Option<Tensor>,
    pool: Arc<Pool>,
}

impl Dense {
    /// Weights that read the same input, one below the other, and all their biases.
    pub fn new(parts: &[Part], in_: usize, bias: Option<Vec<f32>>, device: &Device, pool: &Arc<Pool>) -> Result<Dense> {
        let linear = Linear::stack(parts, in_, device, pool)?;
        let out = linear.out_features();
        if let Some(bias) = &bias
            && bias.len() != out
        {
            candle_core::bail!("{} biases for {out} outputs", bias.len());
        }
        let bias = bias.map(|bias| Tensor::from_vec(bias, out, device)).transpose()?;
        Ok(Dense { linear, bias, pool: pool.clone() })
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, None, false)
    }

    /// `gelu(forward(x))`.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, None, true)
    }

    /// `residual + forward(x)`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.product(x, Some(residual), false)
    }

    fn product(&self, x: &Tensor, residual: Option<&Tensor>, activate: bool) -> Result<Tensor> {
        let (rows, out) = (x.dim(0)?, self.linear.out_features());
        if let Some(residual) = residual
            && residual.dims2()? != (rows, out)
        {
            candle_core::bail!("a residual of {:?} beside a result of [{rows}, {out}]", residual.dims());
        }
        if !x.device().is_cpu() {
            let mut y = self.linear.forward(x)?;
            if let Some(bias) = &self.bias {
                y = y.broadcast_add(bias)?;
            }
            y = if activate { y.gelu_erf()? } else { y };
            return residual.map_or(Ok(y.clone()), |residual| y + residual);
        }
        let bias = self.bias.as_ref().map(|bias| bias.to_vec1::<f32>()).transpose()?;
        let y = match (residual, bias) {
            (None, None) => output(rows * out),
            (None, Some(bias)) => bias.repeat(rows),
            (Some(residual), None) => Rows::of(residual)?.to_vec()?,
            (Some(residual), Some(bias)) => {
                let mut y = Rows::of(residual)?.to_vec()?;
                self.pool.chunks(&mut y, out * ROWS_PER_UNIT, |_, y| {
                    for row in y.chunks_exact_mut(out) {
                        row.iter_mut().zip(&bias).for_each(|(y, bias)| *y += bias);
                    }
                });
                y
            }
        };
        let mut y = self.linear.onto(x, y)?;
        if activate {
            gelu(&mut y, &self.pool);
        }
        Tensor::from_vec(y, (rows, out), &Device::Cpu)
    }

    /// The layer without its bias: an embedding's rows.
    pub fn linear(&self) -> &Linear {
        &self.linear
    }

    pub fn bytes(&self) -> u64 {
        self.linear.bytes() + self.bias.as_ref().map_or(0, |bias| 4 * bias.elem_count() as u64)
    }
}

/// Rows of a bias that one unit of work adds.
const ROWS_PER_UNIT: usize = 64;

/// `(x - mean) / sqrt(variance + eps) * weight + bias`, over each row of `[rows, features]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32, pool: &Pool) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if weight.dims1()? != width || bias.dims1()? != width || width == 0 {
        candle_core::bail!("a norm of {:?} with {:?} and {:?}", x.dims(), weight.dims(), bias.dims());
    }
    if !x.device().is_cpu() {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        return x.broadcast_div(&(variance + eps as f64)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias);
    }
    let mut y = output(rows * width);
    let (weight, bias) = (weight.unsqueeze(0)?, bias.unsqueeze(0)?);
    Rows::of(&weight)?.with(|weight, _| {
        Rows::of(&bias)?.with(|bias, _| {
            Rows::of(x)?.with(|x, stride| {
                crate::layer_norm::layer_norm(x, stride, &weight[..width], &bias[..width], eps, &mut y, pool)
            })
        })?
    })??;
    Tensor::from_vec(y, (rows, width), x.device())
}

/// Keys and values of one layer and one sequence.
pub enum Memory {
    Cpu { memory: attend::Memory, pool: Arc<Pool> },
    Composed { shape: Shape, keys: Tensor, values: Tensor },
}

impl Memory {
    /// Room for `shape.positions` in `dtype`, f16 or f32; other types are kept as f32 on the CPU.
    pub fn new(shape: Shape, dtype: DType, device: &Device, pool: &Arc<Pool>) -> Result<Memory> {
        if device.is_cpu() {
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
        let Memory::Composed { shape, keys, values } = run[0].0 else {
            candle_core::bail!("memories on two devices");
        };
        let seen = run.iter().map(|(_, seen)| *seen).max().unwrap_or(1);
        let heads_first = |t: &Tensor| t.narrow(0, 0, seen)?.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous();
        let q = q.narrow(0, first, run.len())?.reshape((run.len(), shape.heads, shape.dim))?;
        let scores = q.transpose(0, 1)?.contiguous()?.matmul(&heads_first(keys)?.transpose(1, 2)?.contiguous()?)?;
        let mut scores = (scores * f64::from(scale))?;
        if run.iter().any(|(_, sees)| *sees < seen) {
            let hidden = run
                .iter()
                .flat_map(|(_, sees)| (0..seen).map(move |p| if p < *sees { 0f32 } else { f32::NEG_INFINITY }));
            let hidden = Tensor::from_vec(hidden.collect::<Vec<_>>(), (1, run.len(), seen), q.device())?;
            scores = scores.broadcast_add(&hidden)?;
        }
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let y = weights.matmul(&heads_first(values)?)?.transpose(0, 1)?.contiguous()?;
        parts.push(y.reshape((run.len(), shape.heads * shape.dim))?);
        first += run.len();
    }
    Tensor::cat(&parts, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;
    use crate::testing::Random;

    fn close(a: &Tensor, b: &Tensor) {
        let largest = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest < 1e-4, "they differ by {largest}");
    }

    #[test]
    fn a_dense_layer_adds_its_bias_and_what_it_is_given() {
        let mut random = Random::fresh();
        let pool = Arc::new(Pool::new(2));
        let (rows, in_, out) = (150, 48, 33);
        let (w, b) = (random.normal(out * in_), random.normal(out));
        let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
        let part = Part { format: Format::F32, out, bytes: &bytes };
        let dense = Dense::new(&[part], in_, Some(b.clone()), &Device::Cpu, &pool).unwrap();
        let x = Tensor::from_vec(random.normal(rows * in_), (rows, in_), &Device::Cpu).unwrap();
        let r = Tensor::from_vec(random.normal(rows * out), (rows, out), &Device::Cpu).unwrap();
        let w = Tensor::from_vec(w, (out, in_), &Device::Cpu).unwrap();
        let b = Tensor::from_vec(b, out, &Device::Cpu).unwrap();
        let plain = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
        close(&dense.forward(&x).unwrap(), &plain);
        close(&dense.forward_gelu(&x).unwrap(), &plain.gelu_erf().unwrap());
        close(&dense.forward_add(&x, &r).unwrap(), &(plain + &r).unwrap());
        assert!(Dense::new(&[part], in_, Some(vec![0.0]), &Device::Cpu, &pool).is_err());
        assert!(dense.forward_add(&x, &x).is_err());
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

    #[test]
    fn a_norm_equals_candles_own_words() {
        let mut random = Random::fresh();
        let pool = Pool::new(1);
        let tensor = |v: Vec<f32>, dims: &[usize]| Tensor::from_vec(v, dims, &Device::Cpu).unwrap();
        let (x, w, b) = (
            tensor(random.normal(20 * 33), &[20, 33]),
            tensor(random.normal(33), &[33]),
            tensor(random.normal(33), &[33]),
        );
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let plain = centred.broadcast_div(&(variance + 1e-5).unwrap().sqrt().unwrap()).unwrap();
        let plain = plain.broadcast_mul(&w).unwrap().broadcast_add(&b).unwrap();
        close(&layer_norm(&x, &w, &b, 1e-5, &pool).unwrap(), &plain);
        assert!(layer_norm(&x, &w, &x, 1e-5, &pool).is_err());
    }
}
