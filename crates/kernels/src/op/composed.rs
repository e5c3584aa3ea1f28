//! The ops in candle's own words: what runs on a device without a kernel of ours, and the reference of the tests.

use candle_core::{D, DType, IndexOp, Result, Tensor};

use super::RopeTable;

pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps as f64)?.sqrt()?)?.broadcast_mul(weight)
}

pub fn rope(x: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<Tensor> {
    let (rows, _heads, dim) = x.dims3()?;
    let both: Vec<(&[f32], &[f32])> = positions.iter().map(|p| table.at(*p)).collect();
    let cos: Vec<f32> = both.iter().flat_map(|(cos, _)| cos.iter().copied()).collect();
    let sin: Vec<f32> = both.iter().flat_map(|(_, sin)| sin.iter().copied()).collect();
    let cos = Tensor::from_vec(cos, (rows, 1, dim / 2), x.device())?;
    let sin = Tensor::from_vec(sin, (rows, 1, dim / 2), x.device())?;
    let (a, b) = (x.narrow(2, 0, dim / 2)?, x.narrow(2, dim / 2, dim / 2)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)
}

pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let ff = gate_up.dim(1)? / 2;
    gate_up.narrow(1, 0, ff)?.silu()? * gate_up.narrow(1, ff, ff)?
}

/// Attention of `q` `[n, heads, dim]`, consecutive rows of one slot, the first at `position`, over that slot's keys and
/// values `[context, kv_heads, dim]`.
pub fn attention(q: &Tensor, keys: &Tensor, values: &Tensor, position: usize, scale: f32) -> Result<Tensor> {
    let (n, heads, dim) = q.dims3()?;
    let (seen, group) = (position + n, heads / keys.dim(1)?);
    let spread = |t: &Tensor| -> Result<Tensor> {
        let t = t.narrow(0, 0, seen)?.to_dtype(DType::F32)?.transpose(0, 1)?;
        let (kv_heads, _, _) = t.dims3()?;
        t.unsqueeze(1)?.expand((kv_heads, group, seen, dim))?.reshape((heads, seen, dim))
    };
    let scores = (q.transpose(0, 1)?.contiguous()?.matmul(&spread(keys)?.t()?)? * scale as f64)?;
    let hidden: Vec<f32> =
        (0..n).flat_map(|r| (0..seen).map(move |p| if p > position + r { f32::NEG_INFINITY } else { 0.0 })).collect();
    let scores = scores.broadcast_add(&Tensor::from_vec(hidden, (1, n, seen), q.device())?)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&spread(values)?)?.transpose(0, 1)?.reshape((n, heads * dim))
}

/// The runs of rows that follow one another in one slot: `(first row, rows)`.
pub fn runs(slots: &[u32], positions: &[u32]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for row in 0..slots.len() {
        match runs.last_mut() {
            Some((_, n)) if slots[row] == slots[row - 1] && positions[row] == positions[row - 1] + 1 => *n += 1,
            _ => runs.push((row, 1)),
        }
    }
    runs
}

/// Writes rows into `[slots, context, kv_heads, dim]`, one copy per run.
pub fn write(cache: &Tensor, rows: &Tensor, slots: &[u32], positions: &[u32]) -> Result<()> {
    let (slot_count, context, kv_heads, dim) = cache.dims4()?;
    let flat = cache.reshape((slot_count * context, kv_heads, dim))?;
    let rows = rows.to_dtype(cache.dtype())?.contiguous()?;
    for (first, n) in runs(slots, positions) {
        let at = slots[first] as usize * context + positions[first] as usize;
        flat.slice_set(&rows.narrow(0, first, n)?.contiguous()?, 0, at)?;
    }
    Ok(())
}

/// The whole op over a cache `[slots, context, kv_heads, dim]`.
pub fn attention_over(
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    slots: &[u32],
    positions: &[u32],
    scale: f32,
) -> Result<Tensor> {
    let parts = runs(slots, positions)
        .into_iter()
        .map(|(first, n)| {
            let slot = slots[first] as usize;
            attention(&q.narrow(0, first, n)?, &keys.i(slot)?, &values.i(slot)?, positions[first] as usize, scale)
        })
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}
