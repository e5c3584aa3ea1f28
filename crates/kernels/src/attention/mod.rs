//! Causal grouped-query attention over a cache with a position per row. Refuses to know which prediction a slot serves.
//!
//! A unit of work is a few consecutive rows of one slot under one key/value head: their queries (rows x the heads of the
//! group) meet block after block of 64 keys, with the running maximum and sum of an online softmax. The blocks are cut at
//! fixed positions and every sum has a fixed order, so a row's result does not depend on the rows beside it, on how a
//! prompt was chunked, or on threads; a key that a row may not see weighs exactly 0.
//!
//! Floors for SmolLM2 (9 heads, 3 key/value heads, 64 wide, 30 layers, f16 cache): one row at context 512 reads 12 MB, 0.42
//! ms at 28 GB/s; a prompt of 512 is 9.1 GFLOP of f32 below the diagonal, 45 ms at 200 GFLOP/s.

mod store;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use half::f16;

use crate::linear::LANES;
use crate::linear::tile::{self, PlainTile};
use crate::math::exp;
use crate::pool::{Pool, Shares};
use crate::simd::per_path;
pub use store::{BLOCK, Shape};
use store::{Store, Stored};

/// Queries that meet a block of keys together: a multiple of what the tiles of every path take at once.
const QUERIES: usize = 24;

/// Keys and values of one layer, in f16 or f32.
pub enum Cache {
    F16(Store<f16>),
    F32(Store<f32>),
}

impl Cache {
    pub fn f16(shape: Shape) -> Cache {
        Cache::F16(Store::new(shape))
    }

    pub fn f32(shape: Shape) -> Cache {
        Cache::F32(Store::new(shape))
    }

    pub fn shape(&self) -> Shape {
        match self {
            Cache::F16(store) => store.shape,
            Cache::F32(store) => store.shape,
        }
    }

    /// What it takes once every position has been written.
    pub fn bytes(&self) -> usize {
        match self {
            Cache::F16(store) => store.bytes(),
            Cache::F32(store) => store.bytes(),
        }
    }

    /// Stores one position per row: `k` and `v` are `[rows, kv_heads, head_dim]`, each with the distance of its rows.
    pub fn write(&mut self, k: (&[f32], usize), v: (&[f32], usize), slots: &[u32], positions: &[u32], pool: &Pool) {
        assert_eq!(slots.len(), positions.len());
        match self {
            Cache::F16(store) => store.write(k, v, slots, positions, pool),
            Cache::F32(store) => store.write(k, v, slots, positions, pool),
        }
    }
}

/// Queries `[rows, heads, head_dim]`, rows `stride` apart.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub heads: usize,
    pub scale: f32,
}

/// Row `r` of `y` (`[rows, heads * head_dim]`) attends to positions `0..=positions[r]` of its slot, all written before.
pub fn attention(q: Queries, cache: &Cache, slots: &[u32], positions: &[u32], y: &mut [f32], pool: &Pool) {
    match cache {
        Cache::F16(store) => over(q, store, slots, positions, y, pool),
        Cache::F32(store) => over(q, store, slots, positions, y, pool),
    }
}

/// Consecutive rows of one slot.
struct Tile {
    first: usize,
    rows: usize,
}

fn tiles(slots: &[u32], positions: &[u32], most: usize) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = Vec::new();
    for row in 0..slots.len() {
        match tiles.last_mut() {
            Some(tile)
                if tile.rows < most && slots[row] == slots[row - 1] && positions[row] == positions[row - 1] + 1 =>
            {
                tile.rows += 1;
            }
            _ => tiles.push(Tile { first: row, rows: 1 }),
        }
    }
    tiles
}

#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    /// Of every query: the largest score so far, and the sum of the weights relative to it.
    softmax: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn over<T: Stored>(q: Queries, store: &Store<T>, slots: &[u32], positions: &[u32], y: &mut [f32], pool: &Pool) {
    let Shape { kv_heads, head_dim: dim, .. } = store.shape;
    let (rows, width) = (slots.len(), q.heads * dim);
    assert!(
        q.heads.is_multiple_of(kv_heads) && positions.len() == rows && y.len() == rows * width && q.stride >= width
    );
    let group = q.heads / kv_heads;
    let tiles = tiles(slots, positions, (QUERIES / group).max(1));
    let y = Shares::new(y);
    let units = tiles.len() * kv_heads;
    pool.run(units, |unit| {
        // The last tiles of a prompt see the most: they go first.
        let unit = units - 1 - unit;
        let (tile, head) = (&tiles[unit / kv_heads], unit % kv_heads);
        let slot = slots[tile.first] as usize;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.take_queries(&q, tile, head * group, group, dim, store.value_width());
            attend(scratch, store, slot, head, positions[tile.first] as usize, tile.rows, pool);
            for (i, (sums, (_, total))) in scratch.sums.chunks(store.value_width()).zip(&scratch.softmax).enumerate() {
                let at = (tile.first + i / group) * width + (head * group + i % group) * dim;
                // SAFETY: a row's heads of one group belong to one unit.
                let y = unsafe { y.share(at, dim) };
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum / total);
            }
        });
    });
}

impl Scratch {
    /// The tile's queries under one key/value head, row by row, scaled.
    fn take_queries(&mut self, q: &Queries, tile: &Tile, head: usize, group: usize, dim: usize, value_width: usize) {
        let n = tile.rows * group;
        self.queries.clear();
        for row in tile.first..tile.first + tile.rows {
            let heads = &q.values[row * q.stride + head * dim..][..group * dim];
            self.queries.extend(heads.iter().map(|v| v * q.scale));
        }
        self.scores.resize(n * BLOCK, 0.0);
        self.sums.clear();
        self.sums.resize(n * value_width, 0.0);
        self.softmax.clear();
        self.softmax.resize(n, (f32::NEG_INFINITY, 0.0));
    }
}

/// All queries of a tile over their slot's blocks. The first row stands at `position`.
fn attend<T: Stored>(
    s: &mut Scratch,
    store: &Store<T>,
    slot: usize,
    head: usize,
    position: usize,
    rows: usize,
    pool: &Pool,
) {
    let (dim, width, n) = (store.shape.head_dim, store.value_width(), s.softmax.len());
    let end = position + rows;
    for base in (0..end).step_by(BLOCK) {
        let (keys, values) = store.block(slot, head, base);
        let seen = BLOCK.min(end - base);
        let scores = PlainTile {
            rows: n,
            panels: seen.div_ceil(LANES),
            k: dim,
            x: s.queries.as_ptr(),
            x_stride: dim,
            w: keys.as_ptr(),
            w_step: BLOCK,
            panel_step: LANES,
            y: s.scores.as_mut_ptr(),
            y_stride: BLOCK,
            last_lanes: LANES,
            add: false,
        };
        // SAFETY: n queries of `dim`, a block of `dim` x 64 keys, n x 64 scores.
        unsafe { tile::plain(pool.simd(), &scores) };
        for (i, scores) in s.scores.chunks_exact_mut(BLOCK).take(n).enumerate() {
            // A row sees up to its own position; before its first key of this block, nothing changes.
            let visible = (position + i / (n / rows) + 1).saturating_sub(base).min(BLOCK);
            let (largest, total) = &mut s.softmax[i];
            let faded = weigh(pool.simd(), scores, visible, largest, total);
            if faded != 1.0 {
                s.sums[i * width..][..width].iter_mut().for_each(|sum| *sum *= faded);
            }
        }
        let sums = PlainTile {
            rows: n,
            panels: width / LANES,
            // Keys behind the last row's position may never have been written: they are not read.
            k: seen,
            x: s.scores.as_ptr(),
            x_stride: BLOCK,
            w: values.as_ptr(),
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

per_path! {
    /// Turns a block's scores into weights relative to the largest score so far, brings `largest` and `total` up to date,
    /// and gives what older sums fade by.
    fn weigh(scores: &mut [f32], visible: usize, largest: &mut f32, total: &mut f32) -> f32 {
        scores[visible..].fill(f32::NEG_INFINITY);
        let mut most = [f32::NEG_INFINITY; LANES];
        for scores in scores.chunks_exact(LANES) {
            for (most, score) in most.iter_mut().zip(scores) {
                *most = if *score > *most { *score } else { *most };
            }
        }
        let before = *largest;
        *largest = most.iter().fold(before, |a, b| if *b > a { *b } else { a });
        let mut sums = [0f32; LANES];
        for scores in scores.chunks_exact_mut(LANES) {
            for (sum, score) in sums.iter_mut().zip(scores) {
                *score = exp(*score - *largest);
                *sum += *score;
            }
        }
        let mut lanes = LANES;
        while lanes > 1 {
            lanes /= 2;
            for i in 0..lanes {
                sums[i] += sums[i + lanes];
            }
        }
        let faded = exp(before - *largest);
        *total = total.mul_add(faded, sums[0]);
        faded
    }
}
