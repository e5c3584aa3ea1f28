//! Attention where each row says how much it sees: all of a memory (an encoder, a decoder over what was heard) or what
//! stands before it (a decoder over its own words). Refuses to know which of them it serves.
//!
//! A memory holds the keys and values of one sequence: per head a run of blocks of 64 positions, keys as `[dim][64]` and
//! values as `[64][width]`, `width` being `dim` rounded up to 16, so that neither product sums across lanes. A unit of work is some rows of one memory under one
//! head: their queries meet block after block, with the running maximum and sum of an online softmax; scores never leave
//! the cache. Blocks stand at fixed positions and sums have a fixed order: a row's result depends on nothing beside it.
//!
//! Floors for Whisper base (8 heads, 64 wide, 6 layers, 1,500 positions): encoding a window is 27.6 GFLOP, 138 ms at 200
//! GFLOP/s; one decoded token reads 37 MB of f32 or half of that in f16, 1.3 or 0.7 ms at 28 GB/s.

use std::cell::RefCell;

use half::f16;
use half::slice::HalfBitsSliceExt;

use crate::attention::{BLOCK, Stored};
use crate::linear::LANES;
use crate::linear::tile::{self, PlainTile};
use crate::online::{NOTHING_SEEN, Softmax, weigh};
use crate::pool::{Pool, Shares};

/// Queries that meet a block together: their scores, queries and sums stay in the second-level cache, and the block in the
/// first-level one.
const QUERIES: usize = 96;

/// The sizes of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub positions: usize,
    pub heads: usize,
    pub dim: usize,
}

impl Shape {
    /// Lanes that one position's values take.
    fn width(&self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    /// Keys and values of one head.
    fn per_head(&self) -> (usize, usize) {
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

    fn read<R>(&self, read: impl Reader<R>) -> R {
        match &self.values {
            Values::F32 { keys, values } => read.read::<f32>(keys, values),
            Values::F16 { keys, values } => read.read::<f16>(keys.reinterpret_cast(), values.reinterpret_cast()),
        }
    }
}

/// What is done with a memory, whatever it holds.
trait Reader<R> {
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
    let write = |head: usize| {
        // SAFETY: a head belongs to one unit.
        let (keys, values) = unsafe { (keys.share(head * key, key), values.share(head * value, value)) };
        // A block's columns are filled from sixteen rows at a time, so that whole cache lines are written.
        let mut row = 0;
        while row < rows {
            let at = first + row;
            let n = (rows - row).min(LANES - at % LANES);
            let block = &mut keys[at / BLOCK * BLOCK * dim..][..BLOCK * dim];
            let mut columns = [0f32; LANES];
            for (d, to) in block.chunks_exact_mut(BLOCK).enumerate() {
                for (i, value) in columns[..n].iter_mut().enumerate() {
                    *value = k.0[(row + i) * k.1 + head * dim + d];
                }
                T::put(&columns[..n], &mut to[at % BLOCK..][..n]);
            }
            for i in 0..n {
                T::put(&v.0[(row + i) * v.1 + head * dim..][..dim], &mut values[(at + i) * width..][..dim]);
            }
            row += n;
        }
    };
    if rows * dim < VALUES_PER_UNIT {
        (0..shape.heads).for_each(write);
    } else {
        pool.run(shape.heads, write);
    }
}

/// Values that one unit of work stores at least.
const VALUES_PER_UNIT: usize = 8 << 10;

/// Queries `[rows, heads, dim]`, rows `stride` apart.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub scale: f32,
}

/// What one row looks at: the first `seen` positions, at least one, all written before.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    pub memory: &'a Memory,
    pub seen: usize,
}

/// Row `r` of `y` (`[rows, heads * dim]`) attends to what `sights[r]` says. Memories of one shape.
pub fn attend(q: Queries, sights: &[Sight], y: &mut [f32], pool: &Pool) {
    let Some(first) = sights.first() else { return };
    let Shape { heads, dim, .. } = first.memory.shape;
    let width = heads * dim;
    for Sight { memory, seen } in sights {
        assert!(memory.shape.heads == heads && memory.shape.dim == dim && (1..=memory.shape.positions).contains(seen));
    }
    assert!(y.len() == sights.len() * width && q.stride >= width, "y is [rows, {width}]");
    let tiles = tiles(sights, pool.threads().div_ceil(heads));
    let y = Shares::new(y);
    pool.run(tiles.len() * heads, |unit| {
        let ((row, rows), head) = (tiles[unit / heads], unit % heads);
        let tile = Tile { q: &q, sights: &sights[row..row + rows], row, head };
        SCRATCH.with_borrow_mut(|scratch| {
            sights[row].memory.read(Attending { tile: &tile, scratch, pool });
            let sums = scratch.sums.chunks(first.memory.shape.width());
            for (i, (sums, softmax)) in sums.zip(&scratch.softmax).enumerate() {
                // SAFETY: a row's head belongs to one unit.
                let y = unsafe { y.share((row + i) * width + head * dim, dim) };
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum / softmax.total);
            }
        });
    });
}

/// Runs of rows that look at one memory, cut so that there are at least `parts` of a long one.
fn tiles(sights: &[Sight], parts: usize) -> Vec<(usize, usize)> {
    let most = QUERIES.min(sights.len().div_ceil(parts)).max(1);
    let mut tiles: Vec<(usize, usize)> = Vec::new();
    for (row, sight) in sights.iter().enumerate() {
        match tiles.last_mut() {
            Some((_, n)) if *n < most && std::ptr::eq(sights[row - 1].memory, sight.memory) => *n += 1,
            _ => tiles.push((row, 1)),
        }
    }
    tiles
}

struct Tile<'a> {
    q: &'a Queries<'a>,
    sights: &'a [Sight<'a>],
    row: usize,
    head: usize,
}

#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    softmax: Vec<Softmax>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Attending<'a> {
    tile: &'a Tile<'a>,
    scratch: &'a mut Scratch,
    pool: &'a Pool,
}

impl Reader<()> for Attending<'_> {
    fn read<T: Stored>(self, keys: &[T], values: &[T]) {
        let Attending { tile: Tile { q, sights, row, head }, scratch: s, pool } = self;
        let (n, shape) = (sights.len(), sights[0].memory.shape);
        let (dim, width, (key, value)) = (shape.dim, shape.width(), shape.per_head());
        let (keys, values) = (&keys[head * key..][..key], &values[head * value..][..value]);
        s.queries.clear();
        for r in *row..row + n {
            s.queries.extend(q.values[r * q.stride + head * dim..][..dim].iter().map(|v| v * q.scale));
        }
        s.scores.resize(n * BLOCK, 0.0);
        s.sums.clear();
        s.sums.resize(n * width, 0.0);
        s.softmax.clear();
        s.softmax.resize(n, NOTHING_SEEN);
        let end = sights.iter().map(|sight| sight.seen).max().unwrap_or(0);
        for base in (0..end).step_by(BLOCK) {
            let seen = BLOCK.min(end - base);
            let scores = PlainTile {
                rows: n,
                panels: seen.div_ceil(LANES),
                k: dim,
                x: s.queries.as_ptr(),
                x_stride: dim,
                w: keys[base * dim..][..BLOCK * dim].as_ptr(),
                w_step: BLOCK,
                panel_step: LANES,
                y: s.scores.as_mut_ptr(),
                y_stride: BLOCK,
                last_lanes: LANES,
                add: false,
            };
            // SAFETY: n queries of `dim`, a block of `dim` x 64 keys, n x 64 scores.
            unsafe { tile::plain(pool.simd(), &scores) };
            for (i, (scores, sight)) in s.scores.chunks_exact_mut(BLOCK).zip(*sights).enumerate() {
                let visible = sight.seen.saturating_sub(base).min(BLOCK);
                let faded = weigh(pool.simd(), scores, visible, &mut s.softmax[i]);
                if faded != 1.0 {
                    s.sums[i * width..][..width].iter_mut().for_each(|sum| *sum *= faded);
                }
            }
            let sums = PlainTile {
                rows: n,
                panels: width / LANES,
                // Positions behind the last one seen may never have been written: they are not read.
                k: seen,
                x: s.scores.as_ptr(),
                x_stride: BLOCK,
                w: values[base * width..][..BLOCK * width].as_ptr(),
                w_step: width,
                panel_step: LANES,
                y: s.sums.as_mut_ptr(),
                y_stride: width,
                last_lanes: LANES,
                add: true,
            };
            // SAFETY: n x 64 weights, a block of 64 x `width` values, n x `width` sums.
            unsafe { tile::plain(pool.simd(), &sums) };
        }
    }
}

/// The scores before their softmax of all rows under one head, over the first `positions`: `[rows, positions]`.
pub fn scores(q: Queries, rows: usize, head: usize, memory: &Memory, positions: usize, pool: &Pool) -> Vec<f32> {
    assert!(head < memory.shape.heads && positions <= memory.shape.positions);
    memory.read(Scoring { q: &q, rows, head, shape: memory.shape, positions, pool })
}

struct Scoring<'a> {
    q: &'a Queries<'a>,
    rows: usize,
    head: usize,
    shape: Shape,
    positions: usize,
    pool: &'a Pool,
}

impl Reader<Vec<f32>> for Scoring<'_> {
    fn read<T: Stored>(self, keys: &[T], _: &[T]) -> Vec<f32> {
        let Scoring { q, rows, head, shape, positions, pool } = self;
        let (dim, width) = (shape.dim, positions.next_multiple_of(BLOCK));
        let from = head * shape.per_head().0;
        let mut y = vec![0f32; rows * width];
        assert!(rows == 0 || q.values.len() >= (rows - 1) * q.stride + (head + 1) * dim);
        for base in (0..positions).step_by(BLOCK) {
            let tile = PlainTile {
                rows,
                panels: BLOCK / LANES,
                k: dim,
                x: q.values[head * dim..].as_ptr(),
                x_stride: q.stride,
                w: keys[from + base * dim..][..BLOCK * dim].as_ptr(),
                w_step: BLOCK,
                panel_step: LANES,
                y: y[base..].as_mut_ptr(),
                y_stride: width,
                last_lanes: LANES,
                add: false,
            };
            // SAFETY: the queries were checked, a block is whole, and `y` has whole blocks in every row.
            unsafe { tile::plain(pool.simd(), &tile) };
        }
        y.chunks_exact(width).flat_map(|row| row[..positions].iter().map(|score| score * q.scale)).collect()
    }
}

#[cfg(test)]
#[path = "attend_tests.rs"]
mod tests;
