//! Causal grouped-query attention over a cache of blocks. Refuses to know which prediction a sequence is.
//!
//! A unit of work is a few consecutive rows of one sequence under one key/value head: their queries (rows x the heads of the
//! group) meet block after block of 64 keys, with the running maximum and sum of an online softmax. Every 256 positions the
//! softmax starts anew, and the parts are merged in order: so a long context can be shared among threads by its parts. All
//! cuts are at fixed positions and every sum has a fixed order, so a row's result does not depend on the rows beside it, on
//! how a prompt was chunked, on which blocks hold it, or on threads; a key that a row may not see weighs exactly 0.
//!
//! Floors for SmolLM2 (9 heads, 3 key/value heads, 64 wide, 30 layers, f16 cache): one row at context 512 reads 12 MB, 0.42
//! ms at 28 GB/s; a prompt of 512 is 9.1 GFLOP of f32 below the diagonal, 45 ms at 200 GFLOP/s.

mod places;
mod store;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use half::f16;

use crate::linear::LANES;
use crate::linear::tile::{self, PlainTile};
use crate::online::{NOTHING_SEEN, Softmax, fold, weigh};
use crate::pool::{Pool, Shares};
pub use places::{Places, Run};
use store::Store;
pub(crate) use store::Stored;
pub use store::{BLOCK, Shape};

/// Positions whose softmax is summed on its own: whole blocks.
const PART: usize = 4 * BLOCK;

/// With fewer units than this per thread, the parts of a context are units of their own.
const UNITS_PER_THREAD: usize = 4;

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
    pub fn write(&mut self, k: (&[f32], usize), v: (&[f32], usize), places: &Places, pool: &Pool) {
        match self {
            Cache::F16(store) => store.write(k, v, places, pool),
            Cache::F32(store) => store.write(k, v, places, pool),
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

/// Row `r` of `y` (`[rows, heads * head_dim]`) attends to positions `0..=positions[r]` of its sequence, all written before.
pub fn attention(q: Queries, cache: &Cache, places: &Places, y: &mut [f32], pool: &Pool) {
    match cache {
        Cache::F16(store) => over(q, store, places, y, pool),
        Cache::F32(store) => over(q, store, places, y, pool),
    }
}

#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    part: Sums,
    whole: Sums,
}

/// Of every query over some positions: the weighted sum of the values, and the softmax it is relative to.
#[derive(Default)]
struct Sums {
    values: Vec<f32>,
    softmax: Vec<Softmax>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// The parts of the caller's last shared contexts: kept, so that attention allocates next to nothing.
    static PARTS: RefCell<Sums> = RefCell::default();
}

/// What every unit of one attention needs.
struct Job<'a, T> {
    q: Queries<'a>,
    store: &'a Store<T>,
    places: &'a Places<'a>,
    group: usize,
    pool: &'a Pool,
}

fn over<T: Stored>(q: Queries, store: &Store<T>, places: &Places, y: &mut [f32], pool: &Pool) {
    let Shape { kv_heads, head_dim: dim, .. } = store.shape;
    let (rows, width) = (places.rows(), q.heads * dim);
    assert!(q.heads.is_multiple_of(kv_heads) && y.len() == rows * width && q.stride >= width);
    let job = Job { group: q.heads / kv_heads, q, store, places, pool };
    let runs = places.runs((QUERIES / job.group).max(1));
    let (units, parts) = (runs.len() * kv_heads, runs.iter().map(|run| job.parts(*run)).sum::<usize>());
    if parts > runs.len() && units < UNITS_PER_THREAD * pool.threads() && pool.threads() > 1 {
        return PARTS.with_borrow_mut(|parts| job.by_parts(&runs, y, parts));
    }
    let y = Shares::new(y);
    pool.run(units, |unit| {
        // The last runs of a prompt see the most: they go first.
        let unit = units - 1 - unit;
        let (run, head) = (runs[unit / kv_heads], unit % kv_heads);
        SCRATCH.with_borrow_mut(|scratch| {
            job.take_queries(scratch, run, head);
            for part in 0..job.parts(run) {
                job.attend(scratch, run, head, part);
                let Scratch { part: sums, whole, .. } = scratch;
                job.merge(run, part, (&sums.values, &sums.softmax), whole);
            }
            // SAFETY: a row's heads of one group belong to one unit.
            job.finish(run, head, &scratch.whole, |at| unsafe { y.share(at, dim) });
        });
    });
}

impl<T: Stored> Job<'_, T> {
    fn position(&self, run: Run) -> usize {
        self.places.positions()[run.first] as usize
    }

    fn parts(&self, run: Run) -> usize {
        (self.position(run) + run.rows).div_ceil(PART)
    }

    /// The same with every part of a context a unit of its own: few rows keep all threads busy.
    fn by_parts(&self, runs: &[Run], y: &mut [f32], parts: &mut Sums) {
        let Shape { kv_heads, head_dim: dim, .. } = self.store.shape;
        let width = self.store.value_width();
        // Every part of every run, and its first query among all parts' queries under one head.
        let mut units = Vec::new();
        let mut queries = 0;
        for &run in runs {
            for part in 0..self.parts(run) {
                units.push((run, part, queries));
                queries += run.rows * self.group;
            }
        }
        parts.values.resize(queries * kv_heads * width, 0.0);
        parts.softmax.resize(queries * kv_heads, NOTHING_SEEN);
        let (values, softmax) = (Shares::new(&mut parts.values), Shares::new(&mut parts.softmax));
        self.pool.run(units.len() * kv_heads, |unit| {
            let ((run, part, first), head) = (units[unit / kv_heads], unit % kv_heads);
            let (first, n) = (head * queries + first, run.rows * self.group);
            SCRATCH.with_borrow_mut(|scratch| {
                self.take_queries(scratch, run, head);
                self.attend(scratch, run, head, part);
                // SAFETY: these queries' sums over this part are this unit's alone.
                let (values, softmax) = unsafe { (values.share(first * width, n * width), softmax.share(first, n)) };
                values.copy_from_slice(&scratch.part.values);
                softmax.copy_from_slice(&scratch.part.softmax);
            });
        });
        let y = Shares::new(y);
        SCRATCH.with_borrow_mut(|scratch| {
            for head in 0..kv_heads {
                for &(run, part, first) in &units {
                    let (first, n) = (head * queries + first, run.rows * self.group);
                    let sums = (&parts.values[first * width..][..n * width], &parts.softmax[first..][..n]);
                    self.merge(run, part, sums, &mut scratch.whole);
                    if part + 1 == self.parts(run) {
                        // SAFETY: one share at a time.
                        self.finish(run, head, &scratch.whole, |at| unsafe { y.share(at, dim) });
                    }
                }
            }
        });
    }

    /// The run's queries under one key/value head, row by row, scaled.
    fn take_queries(&self, s: &mut Scratch, run: Run, head: usize) {
        let (q, group, dim) = (&self.q, self.group, self.store.shape.head_dim);
        s.queries.clear();
        for row in run.first..run.first + run.rows {
            let heads = &q.values[row * q.stride + head * group * dim..][..group * dim];
            s.queries.extend(heads.iter().map(|v| v * q.scale));
        }
        s.scores.resize(run.rows * group * BLOCK, 0.0);
    }

    /// All queries of a run over one part of their context.
    fn attend(&self, s: &mut Scratch, run: Run, head: usize, part: usize) {
        let (dim, width, n) = (self.store.shape.head_dim, self.store.value_width(), run.rows * self.group);
        let Sums { values: sums, softmax } = &mut s.part;
        sums.clear();
        sums.resize(n * width, 0.0);
        softmax.clear();
        softmax.resize(n, NOTHING_SEEN);
        let (position, simd) = (self.position(run), self.pool.simd());
        let table = self.places.table(self.places.sequences()[run.first]);
        let end = (position + run.rows).min((part + 1) * PART);
        for base in (part * PART..end).step_by(BLOCK) {
            let (keys, values) = self.store.block(table[base / BLOCK] as usize, head);
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
            unsafe { tile::plain(simd, &scores) };
            for (i, scores) in s.scores.chunks_exact_mut(BLOCK).take(n).enumerate() {
                // A row sees up to its own position; before its first key of this block, nothing changes.
                let visible = (position + i / self.group + 1).saturating_sub(base).min(BLOCK);
                let faded = weigh(simd, scores, visible, &mut softmax[i]);
                if faded != 1.0 {
                    sums[i * width..][..width].iter_mut().for_each(|sum| *sum *= faded);
                }
            }
            let weighted = PlainTile {
                rows: n,
                panels: width / LANES,
                // Keys behind the last row's position may never have been written: they are not read.
                k: seen,
                x: s.scores.as_ptr(),
                x_stride: BLOCK,
                w: values.as_ptr(),
                w_step: width,
                panel_step: LANES,
                y: sums.as_mut_ptr(),
                y_stride: width,
                last_lanes: LANES,
                add: true,
            };
            // SAFETY: n x 64 weights, a block of 64 x `width` values, n x `width` sums.
            unsafe { tile::plain(simd, &weighted) };
        }
    }

    /// Adds a run's sums over one part to those over all parts before it.
    fn merge(&self, run: Run, part: usize, (values, softmax): (&[f32], &[Softmax]), whole: &mut Sums) {
        if part == 0 {
            whole.values.clear();
            whole.values.extend_from_slice(values);
            whole.softmax.clear();
            whole.softmax.extend_from_slice(softmax);
            return;
        }
        let width = self.store.value_width();
        for (i, softmax) in softmax.iter().enumerate() {
            // A row that stands before this part saw nothing of it.
            if self.position(run) + i / self.group >= part * PART {
                let (at, values) = (&mut whole.values[i * width..][..width], &values[i * width..][..width]);
                fold(self.pool.simd(), at, &mut whole.softmax[i], values, *softmax);
            }
        }
    }

    /// Writes the run's results under one head to the places in `y` that start at `at`.
    fn finish<'y>(&self, run: Run, head: usize, whole: &Sums, mut y: impl FnMut(usize) -> &'y mut [f32]) {
        let (group, dim, row) = (self.group, self.store.shape.head_dim, self.q.heads * self.store.shape.head_dim);
        let sums = whole.values.chunks(self.store.value_width()).zip(&whole.softmax);
        for (i, (sums, softmax)) in sums.enumerate() {
            let y = y((run.first + i / group) * row + (head * group + i % group) * dim);
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum / softmax.total);
        }
    }
}
