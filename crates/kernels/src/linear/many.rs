//! Products of many rows with a plain weight: of a matrix, or of a convolution's windows over an image, whose rows are
//! found where they lie and never gathered (an "implicit" product). Refuses to know what an image is for.
//!
//! A unit of work is some rows and a few panels of 64 outputs. It goes over the inputs in slabs: a slab of half a panel is
//! unpacked as f32 into the first-level cache, where every tile of up to twelve rows meets it; sums wait in the second-level
//! cache between slabs (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). So 16-bit
//! weights stay 16 bits in memory and are widened once per unit and slab. Each sum is one chain over windows' places and
//! inputs in order, whatever the cuts.
//!
//! Floors at 500 GFLOP/s (two cores of 4 GHz with two 512-bit multiply-adds a cycle) and 28 GB/s: a convolution of
//! 3 x 3 over 64 x 64 pixels, 320 to 320 channels, is 7.5 GFLOP, 15 ms, and reads 9 MB, 0.3 ms; 4,096 rows from 640 to 5,120
//! features are 27 GFLOP, 54 ms, and write 84 MB, 3 ms.

use std::cell::RefCell;
use std::ops::Range;

use super::layout::{Kind, LANES};
use super::micro::{Micro, ROWS, WIDTH, micro, unpack};
use super::tile::Element;
use super::{Section, UNITS_PER_THREAD, Weight};
use crate::pool::{Pool, Shares};
use crate::simd::per_path;
use half::{bf16, f16};

/// From so many rows on, widening a slab costs less than it saves.
pub const MANY_ROWS: usize = 32;

/// Outputs in a panel.
const PANEL: usize = 4 * LANES;

/// Inputs in a slab at most: 24 KiB of weights, beside 9 KiB of a tile's rows.
const SLAB: usize = 192;

/// Rows of a unit: their sums over a panel take 64 KiB.
const CHUNK: usize = 256;

/// Where the rows of a product lie: windows over a batch of images, or plain rows, which are an image of one line seen
/// through windows of one pixel.
#[derive(Clone, Copy)]
pub struct Walk<'a> {
    pub x: &'a [f32],
    /// From one pixel's values to the next one's.
    pub pixel: usize,
    pub channels: usize,
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Zeros above and left of the image.
    pub top: usize,
    pub left: usize,
    /// Of the result.
    pub rows: usize,
    pub columns: usize,
}

/// What becomes of a sum before it is stored: `sum + (residual + (bias + shift))`, then the activation.
#[derive(Clone, Copy, Default)]
pub struct Finish<'a> {
    /// `[out]`.
    pub bias: Option<&'a [f32]>,
    /// `[batch, out]`.
    pub shift: Option<&'a [f32]>,
    pub residual: Residual<'a>,
    pub activation: Activation,
}

#[derive(Clone, Copy, Default)]
pub enum Residual<'a> {
    #[default]
    None,
    /// Rows of `out` values, so far apart.
    Rows(&'a [f32], usize),
    /// What stands where the result goes.
    InPlace,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Activation {
    #[default]
    None,
    Gelu,
    /// The first half of the outputs times the GELU of the second half: half as many results.
    Geglu,
}

/// Neighbouring results of one line of one image.
struct Tile {
    image: usize,
    row: usize,
    column: usize,
    rows: usize,
}

impl<'a> Walk<'a> {
    /// Plain rows of `in_` values, `stride` apart.
    pub fn rows(x: &'a [f32], stride: usize, rows: usize, in_: usize) -> Walk<'a> {
        Walk {
            x,
            pixel: stride,
            channels: in_,
            batch: 1,
            height: 1,
            width: rows,
            kernel: 1,
            stride: 1,
            top: 0,
            left: 0,
            rows: 1,
            columns: rows,
        }
    }

    fn results(&self) -> usize {
        self.batch * self.rows * self.columns
    }

    /// Lines cut evenly.
    fn tiles(&self) -> Vec<Tile> {
        let cuts = self.columns.div_ceil(ROWS);
        let mut tiles = Vec::with_capacity(self.batch * self.rows * cuts);
        for line in 0..self.batch * self.rows {
            for cut in 0..cuts {
                let (column, end) = (self.columns * cut / cuts, self.columns * (cut + 1) / cuts);
                let (image, row) = (line / self.rows, line % self.rows);
                tiles.push(Tile { image, row, column, rows: end - column });
            }
        }
        tiles
    }

    /// Which of a tile's rows see a pixel at place `(ky, kx)` of their window, and where the first one's values are.
    fn seen(&self, tile: &Tile, ky: usize, kx: usize) -> Option<(Range<usize>, usize)> {
        let y = (tile.row * self.stride + ky).checked_sub(self.top).filter(|y| *y < self.height)?;
        let from = self.left.saturating_sub(kx).div_ceil(self.stride).max(tile.column);
        let last = (self.width - 1 + self.left).checked_sub(kx)? / self.stride;
        let end = (last + 1).min(tile.column + tile.rows);
        let x = (from < end).then(|| from * self.stride + kx - self.left)?;
        let at = ((tile.image * self.height + y) * self.width + x) * self.pixel;
        Some((from - tile.column..end - tile.column, at))
    }
}

struct Job<'a> {
    walk: &'a Walk<'a>,
    section: &'a Section,
    in_: usize,
    y: &'a Shares<'a, f32>,
    y_stride: usize,
    finish: &'a Finish<'a>,
    pool: &'a Pool,
}

#[derive(Default)]
struct Scratch {
    slab: Vec<f32>,
    sums: Vec<f32>,
    gates: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Whether `many` can take it.
pub fn fits(w: &Weight, activation: Activation) -> bool {
    let whole = w.sections.len() == 1 && w.out.is_multiple_of(2 * PANEL);
    w.sections.iter().all(|s| !s.kind.quantised()) && (activation != Activation::Geglu || whole)
}

/// Row `r` of `y` (`[results, out]`, or `[results, out / 2]` with GEGLU) is the product of the walk's row `r` with the
/// weight, finished.
pub fn many(walk: &Walk, w: &Weight, y: &mut [f32], finish: &Finish, pool: &Pool) {
    let gated = finish.activation == Activation::Geglu;
    let y_stride = if gated { w.out / 2 } else { w.out };
    assert!(fits(w, finish.activation) && y.len() == walk.results() * y_stride);
    if y.is_empty() {
        return;
    }
    let pixels = walk.batch * walk.height * walk.width;
    assert!(walk.kernel * walk.kernel * walk.channels == w.in_ && walk.pixel >= walk.channels);
    assert!(walk.x.len() >= (pixels - 1) * walk.pixel + walk.channels, "x covers its pixels");
    assert!(finish.bias.is_none_or(|b| b.len() == w.out) && finish.shift.is_none_or(|s| s.len() == walk.batch * w.out));
    match finish.residual {
        Residual::None => {}
        Residual::Rows(rows, stride) => {
            assert!(rows.len() >= (walk.results() - 1) * stride + w.out && stride >= w.out && !gated);
        }
        Residual::InPlace => assert!(finish.bias.is_none() && finish.shift.is_none() && !gated),
    }
    let tiles = walk.tiles();
    let chunks = chunks(&tiles);
    let y = Shares::new(y);
    for section in &w.sections {
        let job = Job { walk, section, in_: w.in_, y: &y, y_stride, finish, pool };
        let panels = section.out.div_ceil(PANEL) / if gated { 2 } else { 1 };
        let groups = (UNITS_PER_THREAD * pool.threads()).div_ceil(chunks.len()).clamp(1, panels);
        // Whichever is larger is read once: all chunks under one group of panels, or all panels over one chunk.
        let panels_first = pixels * walk.channels * panels < w.in_ * section.out * chunks.len();
        let groups = if panels_first { panels } else { groups };
        pool.run(groups * chunks.len(), |unit| {
            let (group, chunk) = match panels_first {
                true => (unit / chunks.len(), unit % chunks.len()),
                false => (unit % groups, unit / groups),
            };
            let tiles = &tiles[chunks[chunk].clone()];
            SCRATCH.with_borrow_mut(|scratch| {
                for panel in panels * group / groups..panels * (group + 1) / groups {
                    job.sum(panel, tiles, &mut scratch.sums, &mut scratch.slab);
                    if gated {
                        job.sum(panel + panels, tiles, &mut scratch.gates, &mut scratch.slab);
                    }
                    job.finish(panel, gated.then_some(panel + panels), tiles, scratch);
                }
            });
        });
    }
}

/// Runs of tiles of about `CHUNK` rows.
fn chunks(tiles: &[Tile]) -> Vec<Range<usize>> {
    let all: usize = tiles.iter().map(|tile| tile.rows).sum();
    let per_chunk = all.div_ceil(all.div_ceil(CHUNK));
    let (mut chunks, mut first, mut rows) = (Vec::new(), 0, 0);
    for (i, tile) in tiles.iter().enumerate() {
        rows += tile.rows;
        if rows >= per_chunk || i + 1 == tiles.len() {
            chunks.push(first..i + 1);
            (first, rows) = (i + 1, 0);
        }
    }
    chunks
}

impl Job<'_> {
    fn sum(&self, panel: usize, tiles: &[Tile], sums: &mut Vec<f32>, slab: &mut Vec<f32>) {
        match self.section.kind {
            Kind::F32 => self.sum_of::<f32>(panel, tiles, sums, slab),
            Kind::F16 => self.sum_of::<f16>(panel, tiles, sums, slab),
            Kind::BF16 => self.sum_of::<bf16>(panel, tiles, sums, slab),
            Kind::Q8 | Kind::Q4 | Kind::Q4Min => unreachable!("`fits` refused it"),
        }
    }

    /// `sums` is `[rows, PANEL]` afterwards.
    fn sum_of<T: Element>(&self, panel: usize, tiles: &[Tile], sums: &mut Vec<f32>, slab: &mut Vec<f32>) {
        let Walk { x, pixel, channels, kernel, stride, .. } = *self.walk;
        let (simd, outs) = (self.pool.simd(), PANEL.min(self.section.out - panel * PANEL));
        sums.clear();
        sums.resize(tiles.iter().map(|tile| tile.rows).sum::<usize>() * PANEL, 0.0);
        slab.resize(SLAB * WIDTH, 0.0);
        let weights = self.section.panel(panel, self.in_);
        let slabs = channels.div_ceil(SLAB);
        for (place, part) in (0..kernel * kernel * slabs).map(|at| (at / slabs, at % slabs)) {
            let (ky, kx) = (place / kernel, place % kernel);
            let inputs = channels * part / slabs..channels * (part + 1) / slabs;
            for first in (0..outs).step_by(WIDTH) {
                let at = (place * channels + inputs.start) * PANEL + first;
                let from = weights[at * size_of::<T>()..].as_ptr().cast::<T>();
                // SAFETY: a panel has `PANEL` values for each of `in_` inputs, on a cache-line border; a slab holds `SLAB`.
                unsafe { unpack(simd, from, PANEL, inputs.len(), slab.as_mut_ptr()) };
                let mut row = 0;
                for tile in tiles {
                    if let Some((rows, at)) = self.walk.seen(tile, ky, kx) {
                        let m = Micro {
                            rows: rows.len(),
                            inputs: inputs.len(),
                            x: x[at + inputs.start..].as_ptr(),
                            x_stride: stride * pixel,
                            w: slab.as_ptr(),
                            sums: sums[(row + rows.start) * PANEL + first..].as_mut_ptr(),
                            sums_stride: PANEL,
                            fresh: false,
                        };
                        // SAFETY: `seen` names pixels of the image, which `x` covers; `sums` has every tile's rows.
                        unsafe { micro(simd, &m) };
                    }
                    row += tile.rows;
                }
            }
        }
    }

    fn finish(&self, panel: usize, gate: Option<usize>, tiles: &[Tile], scratch: &mut Scratch) {
        let (simd, out) = (self.pool.simd(), self.section.first + panel * PANEL);
        let outs = PANEL.min(self.section.out - panel * PANEL);
        let mut row = 0;
        for tile in tiles {
            let result = (tile.image * self.walk.rows + tile.row) * self.walk.columns + tile.column;
            let base = self.base(tile.image, out, outs);
            let gate_base = gate.and_then(|gate| self.base(tile.image, gate * PANEL, outs));
            for r in 0..tile.rows {
                // SAFETY: these results belong to this unit.
                let y = unsafe { self.y.share((result + r) * self.y_stride + out, outs) };
                let sums = &scratch.sums[(row + r) * PANEL..][..outs];
                match self.finish.residual {
                    Residual::InPlace => y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum),
                    Residual::None => settle(simd, sums, base.as_ref(), None, y),
                    Residual::Rows(rows, stride) => {
                        settle(simd, sums, base.as_ref(), Some(&rows[(result + r) * stride + out..][..outs]), y);
                    }
                }
                match self.finish.activation {
                    Activation::None => {}
                    Activation::Gelu => crate::gelu::one(simd, y),
                    Activation::Geglu => {
                        let (sums, mut gates) = (&scratch.gates[(row + r) * PANEL..][..outs], [0f32; PANEL]);
                        settle(simd, sums, gate_base.as_ref(), None, &mut gates[..outs]);
                        crate::gelu::one(simd, &mut gates[..outs]);
                        y.iter_mut().zip(&gates).for_each(|(y, gate)| *y *= gate);
                    }
                }
            }
            row += tile.rows;
        }
    }

    /// Bias and shift of one image's results from output `out` on.
    fn base(&self, image: usize, out: usize, outs: usize) -> Option<[f32; PANEL]> {
        let Finish { bias, shift, .. } = *self.finish;
        if bias.is_none() && shift.is_none() {
            return None;
        }
        let mut base = [0f32; PANEL];
        if let Some(bias) = bias {
            base[..outs].copy_from_slice(&bias[out..][..outs]);
        }
        if let Some(shift) = shift {
            let all = shift.len() / self.walk.batch;
            base.iter_mut().zip(&shift[image * all + out..][..outs]).for_each(|(base, shift)| *base += shift);
        }
        Some(base)
    }
}

per_path! {
    /// The order in which a product of few rows adds: the sum to what was there before.
    fn settle(sums: &[f32], base: Option<&[f32; PANEL]>, residual: Option<&[f32]>, y: &mut [f32]) {
        match (base, residual) {
            (None, None) => y.copy_from_slice(sums),
            (Some(base), None) => y.iter_mut().zip(sums).zip(base).for_each(|((y, sum), base)| *y = sum + base),
            (None, Some(residual)) => {
                y.iter_mut().zip(sums).zip(residual).for_each(|((y, sum), residual)| *y = sum + residual);
            }
            (Some(base), Some(residual)) => {
                let added = residual.iter().zip(base).map(|(residual, base)| residual + base);
                y.iter_mut().zip(sums).zip(added).for_each(|((y, sum), added)| *y = sum + added);
            }
        }
    }
}
