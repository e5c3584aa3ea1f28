//! The ops in candle's own words: what runs on a device without a kernel of ours, and the reference of the tests.

use candle_core::{D, DType, Result, Tensor};

use super::{ConvShape, RopeTable};
use crate::attention::{BLOCK, Places};

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

/// Attention of `q` `[n, heads, dim]`, consecutive rows of one sequence, the first at `position`, over the keys and values
/// `[seen, kv_heads, dim]` of positions `0..position + n`.
pub fn attention(q: &Tensor, keys: &Tensor, values: &Tensor, position: usize, scale: f32) -> Result<Tensor> {
    let (n, heads, dim) = q.dims3()?;
    let (seen, group) = (position + n, heads / keys.dim(1)?);
    let spread = |t: &Tensor| -> Result<Tensor> {
        let t = t.to_dtype(DType::F32)?.transpose(0, 1)?;
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

/// Writes rows into `[blocks * 64, kv_heads, dim]`, one copy per run of rows within a block.
pub fn write(cache: &Tensor, rows: &Tensor, places: &Places) -> Result<()> {
    let rows = rows.to_dtype(cache.dtype())?.contiguous()?;
    for run in places.runs(usize::MAX) {
        let mut row = run.first;
        while row < run.first + run.rows {
            let (block, lane) = places.place(row);
            let n = (BLOCK - lane).min(run.first + run.rows - row);
            cache.slice_set(&rows.narrow(0, row, n)?.contiguous()?, 0, block * BLOCK + lane)?;
            row += n;
        }
    }
    Ok(())
}

/// The whole op over a cache `[blocks * 64, kv_heads, dim]`.
pub fn attention_over(q: &Tensor, (keys, values): (&Tensor, &Tensor), places: &Places, scale: f32) -> Result<Tensor> {
    let parts = places.runs(usize::MAX).into_iter().map(|run| {
        let position = places.positions()[run.first] as usize;
        let table = places.table(places.sequences()[run.first]);
        let lies = |p: usize| table[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32;
        let seen: Vec<u32> = (0..position + run.rows).map(lies).collect();
        let seen = Tensor::new(seen, q.device())?;
        let (keys, values) = (keys.index_select(&seen, 0)?, values.index_select(&seen, 0)?);
        attention(&q.narrow(0, run.first, run.rows)?, &keys, &values, position, scale)
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

/// `x` is `[batch, height, width, in]`, `weight` `[out, in, kernel, kernel]`; computed in the weight's precision, given in
/// that of `x`.
pub fn conv(x: &Tensor, weight: &Tensor, shape: ConvShape) -> Result<Tensor> {
    let [top, bottom, left, right] = shape.pad;
    let image = x.to_dtype(weight.dtype())?.permute((0, 3, 1, 2))?.contiguous()?;
    let y = if top == bottom && top == left && top == right {
        image.conv2d(weight, top, shape.stride, 1, 1)?
    } else {
        let image = image.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
        image.contiguous()?.conv2d(weight, 0, shape.stride, 1, 1)?
    };
    y.permute((0, 2, 3, 1))?.contiguous()?.to_dtype(x.dtype())
}

/// In f32, whatever `x` is in.
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64, silu: bool) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let by_group = x.to_dtype(DType::F32)?.reshape((batch, height * width, groups, channels / groups))?;
    let centred = by_group.broadcast_sub(&by_group.mean_keepdim((1, 3))?)?;
    let variance = centred.sqr()?.mean_keepdim((1, 3))?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape(x.dims())?;
    let y = normal.broadcast_mul(&weight.to_dtype(DType::F32)?)?.broadcast_add(&bias.to_dtype(DType::F32)?)?;
    let y = if silu { y.silu()? } else { y };
    y.to_dtype(x.dtype())
}

pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let pixels = x.contiguous()?.reshape((batch, height, 1, width, 1, channels))?;
    let four = pixels.broadcast_as((batch, height, 2, width, 2, channels))?.contiguous()?;
    four.reshape((batch, 2 * height, 2 * width, channels))
}

pub fn geglu(both: &Tensor) -> Result<Tensor> {
    let ff = both.dim(1)? / 2;
    both.narrow(1, 0, ff)? * both.narrow(1, ff, ff)?.gelu_erf()?
}

pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    x / ((x * -1.702)?.exp()? + 1.0)?
}
