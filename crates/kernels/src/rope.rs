//! Rotary positions in the "rotate_half" layout of HF checkpoints: value `i` of a head turns against value `i + dim/2`.
//! Refuses to know how a model scales its frequencies.
//!
//! Floors for SmolLM2 (12 heads of 64 a row, 30 layers): 4 operations per value, 0.1 us a row; a table line of 256 bytes.

use std::sync::OnceLock;

use crate::pool::Pool;
use crate::simd::per_path;

/// Positions whose angles are computed together, on first use: a table of a whole 128k context would cost a second at
/// load.
const CHUNK_POSITIONS: usize = 64;

/// Values one unit of work turns at least: about 5 us.
const VALUES_PER_UNIT: usize = 16 << 10;

/// Cosines and sines by position.
pub struct RopeTable {
    frequencies: Vec<f32>,
    /// One entry per chunk; within it `[position][cosines, sines]`.
    chunks: Vec<OnceLock<Box<[f32]>>>,
    context: usize,
}

impl RopeTable {
    /// `frequencies` is HF's `inv_freq`: one per pair of a head's values, already scaled as the model wants it.
    pub fn new(frequencies: &[f32], context_tokens: usize) -> RopeTable {
        let chunks = (0..context_tokens.div_ceil(CHUNK_POSITIONS)).map(|_| OnceLock::new()).collect();
        RopeTable { frequencies: frequencies.to_vec(), chunks, context: context_tokens }
    }

    pub fn dim(&self) -> usize {
        self.frequencies.len() * 2
    }

    pub fn context_tokens(&self) -> usize {
        self.context
    }

    /// The cosines and the sines of one position, which must be within the context.
    pub fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let (half, position) = (self.frequencies.len(), position as usize);
        assert!(position < self.context, "position {position} is outside the context of {} tokens", self.context);
        let chunk = self.chunks[position / CHUNK_POSITIONS].get_or_init(|| {
            let first = position / CHUNK_POSITIONS * CHUNK_POSITIONS;
            let mut values = Vec::with_capacity(CHUNK_POSITIONS * half * 2);
            for p in first..first + CHUNK_POSITIONS {
                // The angle is rounded to f32 as the reference does it; its cosine is not rounded twice.
                let angles = self.frequencies.iter().map(|f| (p as f32 * f) as f64);
                values.extend(angles.clone().map(|a| a.cos() as f32));
                values.extend(angles.map(|a| a.sin() as f32));
            }
            values.into_boxed_slice()
        });
        chunk[position % CHUNK_POSITIONS * half * 2..][..half * 2].split_at(half)
    }
}

/// Turns every head of `[rows, heads, dim]` by its row's position; rows of `x` are `x_stride` apart.
pub fn rope(
    x: &[f32],
    x_stride: usize,
    heads: usize,
    table: &RopeTable,
    positions: &[u32],
    y: &mut [f32],
    pool: &Pool,
) {
    let width = heads * table.dim();
    assert!(width > 0 && y.len() == positions.len() * width && x_stride >= width, "y is [rows, {width}]");
    let per_unit = (VALUES_PER_UNIT / width).max(1);
    pool.chunks(y, per_unit * width, |unit, y| {
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            let row = unit * per_unit + i;
            let (cos, sin) = table.at(positions[row]);
            one(pool.simd(), &x[row * x_stride..][..width], cos, sin, y);
        }
    });
}

per_path! {
    fn one(x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32]) {
        let half = cos.len();
        let sin = &sin[..half];
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
            let ((a, b), (first, second)) = (x.split_at(half), y.split_at_mut(half));
            for i in 0..half {
                first[i] = a[i].mul_add(cos[i], -(b[i] * sin[i]));
                second[i] = b[i].mul_add(cos[i], a[i] * sin[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Simd;
    use crate::testing::{Random, same_bits};

    #[test]
    fn it_equals_f64_on_odd_shapes_and_every_path_and_thread_count() {
        let mut random = Random::fresh();
        for (heads, dim) in [(1, 2), (3, 6), (9, 64), (3, 64), (5, 128)] {
            let (rows, stride) = (1 + random.below(60), heads * dim + 3);
            let frequencies: Vec<f32> = (0..dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / dim as f32)).collect();
            let table = RopeTable::new(&frequencies, 2048);
            let x = random.normal(rows * stride);
            let positions: Vec<u32> = (0..rows).map(|_| random.below(2048) as u32).collect();
            let mut first: Option<Vec<f32>> = None;
            for (simd, threads) in Simd::available().into_iter().flat_map(|s| [(s, 1), (s, 3)]) {
                let mut y = vec![f32::NAN; rows * heads * dim];
                rope(&x, stride, heads, &table, &positions, &mut y, &Pool::with_simd(threads, simd));
                let case = || format!("{heads} heads of {dim} on {}, seed {}", simd.name(), random.seed);
                same_bits(first.get_or_insert_with(|| y.clone()), &y, case);
                for (at, y) in y.iter().enumerate() {
                    let (row, head, i) = (at / (heads * dim), at / dim % heads, at % dim);
                    let x = |i: usize| x[row * stride + head * dim + i] as f64;
                    let angle = (positions[row] as f32 * frequencies[i % (dim / 2)]) as f64;
                    let other = if i < dim / 2 { -x(i + dim / 2) } else { x(i - dim / 2) };
                    let expected = x(i) * angle.cos() + other * angle.sin();
                    assert!((*y as f64 - expected).abs() <= 2e-6, "{}: {y} not {expected}", case());
                }
            }
        }
    }
}
