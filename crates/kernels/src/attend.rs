//! Attention where each row says how much it sees: all of a memory (an encoder, a decoder over what was heard) or what
//! stands before it (a decoder over its own words). Refuses to know which of them it serves.
//!
//! A unit of work is some rows of one memory under one head: their queries meet block after block of 64 positions, with the
//! running maximum and sum of an online softmax; scores never leave the cache. Blocks stand at fixed positions and sums have
//! a fixed order, the same for few queries and for many: a row's result depends on nothing beside it.
//!
//! Floors for Whisper base (8 heads, 64 wide, 6 layers, 1,500 positions): encoding a window is 27.6 GFLOP, 138 ms at 200
//! GFLOP/s; one decoded token reads 37 MB of f32 or half of that in f16, 1.3 or 0.7 ms at 28 GB/s. For SDXL's 4,096 pixels
//! (10 heads, 64 wide): 43 GFLOP, 86 ms at 500 GFLOP/s, and 168 million exponentials, 10 ms more.

mod memory;

use std::cell::RefCell;
use std::ops::Range;

use crate::attention::{BLOCK, Stored};
use crate::linear::LANES;
use crate::linear::micro::{Micro, ROWS, WIDTH, micro, unpack};
use crate::linear::tile::{self, PlainTile};
use crate::online::{NOTHING_SEEN, Softmax, weigh};
use crate::pool::{Pool, Shares};
use crate::simd::{Simd, per_path};
use memory::Reader;
pub use memory::{Memory, Shape};

/// Queries that meet a block together: the more, the less often it is read; but their values and sums stay in the
/// second-level cache.
const QUERIES: Range<usize> = 96..256;

/// Values of the queries that meet a block together.
const QUERY_VALUES: usize = 48 << 10;

/// From so many queries on, a block is unpacked once for all of them.
const MANY_QUERIES: usize = 8;

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
    let Shape { heads, dim, .. } = first.memory.shape();
    let width = heads * dim;
    for Sight { memory, seen } in sights {
        let shape = memory.shape();
        assert!(shape.heads == heads && shape.dim == dim && (1..=shape.positions).contains(seen));
    }
    assert!(y.len() == sights.len() * width && q.stride >= width, "y is [rows, {width}]");
    let tiles = tiles(sights, dim, pool.threads().div_ceil(heads));
    let y = Shares::new(y);
    pool.run(tiles.len() * heads, |unit| {
        let ((row, rows), head) = (tiles[unit / heads], unit % heads);
        let tile = Tile { q: &q, sights: &sights[row..row + rows], row, head };
        SCRATCH.with_borrow_mut(|scratch| {
            sights[row].memory.read(Attending { tile: &tile, scratch, pool });
            let sums = scratch.sums.chunks(first.memory.shape().width());
            for (i, (sums, softmax)) in sums.zip(&scratch.softmax).enumerate() {
                // SAFETY: a row's head belongs to one unit.
                let y = unsafe { y.share((row + i) * width + head * dim, dim) };
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum / softmax.total);
            }
        });
    });
}

/// Runs of rows that look at one memory, cut so that there are at least `parts` of a long one.
fn tiles(sights: &[Sight], dim: usize, parts: usize) -> Vec<(usize, usize)> {
    let most = (QUERY_VALUES / dim).clamp(QUERIES.start, QUERIES.end).min(sights.len().div_ceil(parts)).max(1);
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
    /// One block, unpacked: keys as `[64 / WIDTH][dim][WIDTH]`, values as `[width / WIDTH][64][WIDTH]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// A block's part of some rows' sums.
    part: Vec<f32>,
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
        let (n, shape) = (sights.len(), sights[0].memory.shape());
        let (dim, width, (key, value)) = (shape.dim, shape.width(), shape.per_head());
        let (keys, values) = (&keys[head * key..][..key], &values[head * value..][..value]);
        s.queries.clear();
        for r in *row..row + n {
            s.queries.extend(q.values[r * q.stride + head * dim..][..dim].iter().map(|v| v * q.scale));
        }
        s.scores.resize(n.max(ROWS) * BLOCK, 0.0);
        s.sums.clear();
        s.sums.resize(n * width, 0.0);
        s.softmax.clear();
        s.softmax.resize(n, NOTHING_SEEN);
        let end = sights.iter().map(|sight| sight.seen).max().unwrap_or(0);
        for base in (0..end).step_by(BLOCK) {
            let seen = BLOCK.min(end - base);
            if n >= MANY_QUERIES {
                let (keys, values) = (&keys[base * dim..][..BLOCK * dim], &values[base * width..][..BLOCK * width]);
                many(pool.simd(), sights, (base, seen), dim, (keys, values), s);
                continue;
            }
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

/// All queries over one block, of which they see the first `seen` at most.
fn many<T: Stored>(
    simd: Simd,
    sights: &[Sight],
    (base, seen): (usize, usize),
    dim: usize,
    (keys, values): (&[T], &[T]),
    s: &mut Scratch,
) {
    let width = values.len() / BLOCK;
    s.keys.resize(dim * BLOCK, 0.0);
    s.values.resize(BLOCK * width, 0.0);
    s.part.resize(ROWS * width, 0.0);
    let halves = seen.div_ceil(WIDTH);
    for (half, to) in s.keys.chunks_exact_mut(dim * WIDTH).enumerate().take(halves) {
        // SAFETY: a block has `dim` rows of 64 keys.
        unsafe { unpack(simd, keys[half * WIDTH..].as_ptr(), BLOCK, dim, to.as_mut_ptr()) };
    }
    for (part, to) in s.values.chunks_exact_mut(BLOCK * WIDTH).enumerate() {
        // SAFETY: a block has 64 rows of `width` values. Those behind the last one seen may never have been written.
        unsafe { unpack(simd, values[part * WIDTH..].as_ptr(), width, seen, to.as_mut_ptr()) };
    }
    let cuts = sights.len().div_ceil(ROWS);
    for cut in 0..cuts {
        let (first, end) = (sights.len() * cut / cuts, sights.len() * (cut + 1) / cuts);
        let scores = &mut s.scores[..(end - first) * BLOCK];
        for (half, keys) in s.keys.chunks_exact(dim * WIDTH).enumerate().take(halves) {
            let product = Micro {
                rows: end - first,
                inputs: dim,
                x: s.queries[first * dim..end * dim].as_ptr(),
                x_stride: dim,
                w: keys.as_ptr(),
                sums: scores[half * WIDTH..].as_mut_ptr(),
                sums_stride: BLOCK,
                fresh: true,
            };
            // SAFETY: these rows' queries of `dim`, half a block of keys, half a row of 64 scores each.
            unsafe { micro(simd, &product) };
        }
        let mut faded = [1f32; ROWS];
        for (i, faded) in faded[..end - first].iter_mut().enumerate() {
            let visible = sights[first + i].seen.saturating_sub(base).min(BLOCK);
            *faded = weigh(simd, &mut scores[i * BLOCK..][..BLOCK], visible, &mut s.softmax[first + i]);
        }
        for (part, values) in s.values.chunks_exact(BLOCK * WIDTH).enumerate() {
            let product = Micro {
                rows: end - first,
                inputs: seen,
                x: scores.as_ptr(),
                x_stride: BLOCK,
                w: values.as_ptr(),
                sums: s.part[part * WIDTH..].as_mut_ptr(),
                sums_stride: width,
                fresh: true,
            };
            // SAFETY: these rows' 64 weights, `seen` of them, as many rows of values, part of a row of sums each.
            unsafe { micro(simd, &product) };
        }
        for (i, faded) in faded[..end - first].iter().enumerate() {
            add(simd, &mut s.sums[(first + i) * width..][..width], *faded, &s.part[i * width..][..width]);
        }
    }
}

per_path! {
    /// Rounded twice, as where few queries fade first and add then.
    fn add(sums: &mut [f32], faded: f32, part: &[f32]) {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum = part + *sum * faded);
    }
}

/// The scores before their softmax of all rows under one head, over the first `positions`: `[rows, positions]`.
pub fn scores(q: Queries, rows: usize, head: usize, memory: &Memory, positions: usize, pool: &Pool) -> Vec<f32> {
    assert!(head < memory.shape().heads && positions <= memory.shape().positions);
    memory.read(Scoring { q: &q, rows, head, shape: memory.shape(), positions, pool })
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
mod tests;
