//! Keys and values of one layer and one sequence, in the order that attention reads them. Refuses to know who looks at them.
//!
//! Per head a run of blocks of 64 positions, keys as `[dim][64]` and values as `[64][width]`, `width` being `dim` rounded
//! up to 32, so that neither product sums across lanes.

use std::ops::Range;

use half::f16;
use half::slice::HalfBitsSliceExt;

use crate::attention::{BLOCK, Stored};
use crate::linear::LANES;
use crate::linear::micro::WIDTH;
use crate::pool::{Pool, Shares};

/// The sizes of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub positions: usize,
    pub heads: usize,
    pub dim: usize,
}

impl Shape {
    /// Lanes that one position's values take.
    pub fn width(&self) -> usize {
        self.dim.next_multiple_of(WIDTH)
    }

    /// Keys and values of one head.
    pub fn per_head(&self) -> (usize, usize) {
        let positions = self.positions.next_multiple_of(BLOCK);
        (positions * self.dim, positions * self.width())
    }
}

/// Keys and values of one layer and one sequence. Its pages are touched only as positions are written.
#[derive(Clone)]
pub struct Memory {
    shape: Shape,
    values: Values,
}

#[derive(Clone)]
enum Values {
    F32 { keys: Vec<f32>, values: Vec<f32> },
    // As bits, because zeroed integers come from the system untouched.
    F16 { keys: Vec<u16>, values: Vec<u16> },
}

impl Memory {
    /// Room for `shape.positions`, in f16 with `half`, else in f32.
    pub fn new(shape: Shape, half: bool) -> Memory {
        assert!(shape.dim > 0, "a head of no width");
        let (keys, values) = shape.per_head();
        let (keys, values) = (shape.heads * keys, shape.heads * values);
        let values = match half {
            true => Values::F16 { keys: vec![0; keys], values: vec![0; values] },
            false => Values::F32 { keys: vec![0.0; keys], values: vec![0.0; values] },
        };
        Memory { shape, values }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Once every position has been written.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32 { keys, values } => 4 * (keys.len() + values.len()),
            Values::F16 { keys, values } => 2 * (keys.len() + values.len()),
        }
    }

    /// Stores `rows` positions from `first` on: `k` and `v` hold `[heads, dim]` per row, each with the distance of its rows.
    pub fn write(&mut self, first: usize, rows: usize, k: (&[f32], usize), v: (&[f32], usize), pool: &Pool) {
        assert!(first + rows <= self.shape.positions, "{rows} rows from {first} on in {:?}", self.shape);
        let shape = self.shape;
        match &mut self.values {
            Values::F32 { keys, values } => put(shape, keys, values, first, rows, k, v, pool),
            Values::F16 { keys, values } => {
                let (keys, values) = (keys.reinterpret_cast_mut::<f16>(), values.reinterpret_cast_mut::<f16>());
                put(shape, keys, values, first, rows, k, v, pool);
            }
        }
    }

    /// The first `positions` of another memory of this shape and precision, in place of its own.
    pub fn copy_from(&mut self, other: &Memory, positions: usize) {
        assert!(self.shape == other.shape && positions <= self.shape.positions);
        fn copy<T: Copy>(to: &mut [T], from: &[T], head: usize, used: usize) {
            for (to, from) in to.chunks_exact_mut(head).zip(from.chunks_exact(head)) {
                to[..used].copy_from_slice(&from[..used]);
            }
        }
        let (key, value) = self.shape.per_head();
        let blocks = positions.next_multiple_of(BLOCK);
        let (used_keys, used_values) = (blocks * self.shape.dim, blocks * self.shape.width());
        match (&mut self.values, &other.values) {
            (Values::F32 { keys, values }, Values::F32 { keys: k, values: v }) => {
                copy(keys, k, key, used_keys);
                copy(values, v, value, used_values);
            }
            (Values::F16 { keys, values }, Values::F16 { keys: k, values: v }) => {
                copy(keys, k, key, used_keys);
                copy(values, v, value, used_values);
            }
            _ => panic!("memories of two precisions"),
        }
    }

    pub fn read<R>(&self, read: impl Reader<R>) -> R {
        match &self.values {
            Values::F32 { keys, values } => read.read::<f32>(keys, values),
            Values::F16 { keys, values } => read.read::<f16>(keys.reinterpret_cast(), values.reinterpret_cast()),
        }
    }
}

/// What is done with a memory, whatever it holds.
pub trait Reader<R> {
    fn read<T: Stored>(self, keys: &[T], values: &[T]) -> R;
}

#[allow(clippy::too_many_arguments)]
fn put<T: Stored + Send>(
    shape: Shape,
    keys: &mut [T],
    values: &mut [T],
    first: usize,
    rows: usize,
    k: (&[f32], usize),
    v: (&[f32], usize),
    pool: &Pool,
) {
    let (dim, width, (key, value)) = (shape.dim, shape.width(), shape.per_head());
    let (keys, values) = (Shares::new(keys), Shares::new(values));
    let runs: Vec<Range<usize>> = cut(first..first + rows).collect();
    let write = |unit: usize| {
        let (run, head) = (&runs[unit / shape.heads], unit % shape.heads);
        let (from, len) = (run.start / BLOCK * BLOCK, run.end.next_multiple_of(BLOCK) - run.start / BLOCK * BLOCK);
        // SAFETY: a head's blocks of one run belong to one unit.
        let keys = unsafe { keys.share(head * key + from * dim, len * dim) };
        // SAFETY: as above.
        let values = unsafe { values.share(head * value + from * width, len * width) };
        // A block's columns are filled from sixteen rows at a time, so that whole cache lines are written.
        let mut at = run.start;
        while at < run.end {
            let (n, row) = ((run.end - at).min(LANES - at % LANES), at - first);
            let block = &mut keys[(at - from) / BLOCK * BLOCK * dim..][..BLOCK * dim];
            let mut columns = [0f32; LANES];
            for (d, to) in block.chunks_exact_mut(BLOCK).enumerate() {
                for (i, value) in columns[..n].iter_mut().enumerate() {
                    *value = k.0[(row + i) * k.1 + head * dim + d];
                }
                T::put(&columns[..n], &mut to[at % BLOCK..][..n]);
            }
            for i in 0..n {
                T::put(&v.0[(row + i) * v.1 + head * dim..][..dim], &mut values[(at - from + i) * width..][..dim]);
            }
            at += n;
        }
    };
    let units = runs.len() * shape.heads;
    if rows * dim < VALUES_PER_UNIT { (0..units).for_each(write) } else { pool.run(units, write) }
}

/// Positions in runs that share no block.
fn cut(mut positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        let start = positions.start;
        positions.start = positions.end.min((start / RUN + 1) * RUN);
        (start < positions.end).then_some(start..positions.start)
    })
}

/// Positions that one unit of work stores at most: whole blocks.
const RUN: usize = 4 * BLOCK;

/// Values that one unit of work stores at least.
const VALUES_PER_UNIT: usize = 8 << 10;
