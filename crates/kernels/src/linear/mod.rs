//! `y = x W^T`: weights packed once at load, streamed by every product. Refuses to know what a weight is for.
//!
//! A quantised product turns each row of `x` into 16-bit blocks of 32, multiplies integers exactly, and adds one f32 term
//! per block in the order of the blocks; a plain one adds one term per input in the order of the inputs. So a result
//! depends on its own row and weight alone: not on the other rows, the threads, or the path.
//!
//! The two floors, for SmolLM2-135M's shapes (out x in) in Q4_1, 0.625 bytes a weight, and the Q8_0 head at 1.0625, at a
//! reading speed of 28 GB/s and twice the f32 rate of two AVX2 cores (2 x 200 GFLOP/s: a 16-bit product takes half of an
//! f32 one's lane):
//!
//! | weight | times | bytes | one row, us | 512 rows, GFLOP | at 400 GFLOP/s, ms |
//! |---|---|---|---|---|---|
//! | qkv 960 x 576 | 30 | 345,600 | 12.3 | 0.57 | 1.4 |
//! | o 576 x 576 | 30 | 207,360 | 7.4 | 0.34 | 0.8 |
//! | gate, up 3072 x 576 | 30 | 1,105,920 | 39.5 | 1.81 | 4.5 |
//! | down 576 x 1536 | 30 | 552,960 | 19.7 | 0.91 | 2.3 |
//! | head 49152 x 576 | 1 | 30,081,024 | 1,074 | one row | 0.1 |
//! | all | | 96.4 MB | 3,443 | 108.7 | 272 |

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
mod layout;
mod many;
pub(crate) mod micro;
mod portable;
#[cfg(test)]
mod tests;
pub(crate) mod tile;
mod turn;

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use half::{bf16, f16};

use crate::convert;
use crate::format::Format;
use crate::pool::{Pool, Shares};
use activations::Activations;
use buffer::Buffer;
pub(crate) use layout::LANES;
use layout::{BLOCK, Kind};
pub use many::{Activation, Finish, MANY_ROWS, Residual, Walk, fits, many};
use tile::{Element, PlainTile, QuantTile};

/// Panels and activations that one unit of work goes over again and again: half of the second-level cache of the
/// smallest processor we mind (256 KiB), for each.
const CACHE_BYTES: usize = 128 << 10;

/// Units per thread, so that a thread the system runs late does not hold up the other.
const UNITS_PER_THREAD: usize = 6;

/// A product that reads fewer weight bytes than this, times rows, is not worth waking anybody for.
const INLINE_BYTES: usize = 24 << 10;

/// A multiple of the rows that the tiles of every path take at once.
const ROWS_PER_TILE: usize = 24;

/// One part of a stacked weight: its format, its output features, its bytes (GGUF blocks or plain row-major).
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub format: Format,
    pub out: usize,
    pub bytes: &'a [u8],
}

/// `[out, in]`, packed.
pub struct Weight {
    out: usize,
    in_: usize,
    sections: Vec<Section>,
}

/// Neighbouring outputs of one kind.
struct Section {
    first: usize,
    out: usize,
    kind: Kind,
    panels: Buffer,
}

impl Weight {
    pub fn new(format: Format, out: usize, in_: usize, bytes: &[u8], pool: &Pool) -> Result<Weight, String> {
        Weight::stack(&[Part { format, out, bytes }], in_, pool)
    }

    /// Weights that read the same input, one below the other.
    pub fn stack(parts: &[Part], in_: usize, pool: &Pool) -> Result<Weight, String> {
        for part in parts {
            let (size, name) = (part.format.size(part.out, in_)?, part.format.name());
            if size != part.bytes.len() {
                let got = part.bytes.len();
                return Err(format!("a {name} weight of [{}, {in_}] is {size} bytes, not {got}", part.out));
            }
            if Kind::of(part.format).quantised() && !in_.is_multiple_of(BLOCK) {
                return Err(format!("a {name} weight of [{}, {in_}]: rows come in blocks of {BLOCK}", part.out));
            }
        }
        let mut sections = Vec::new();
        let mut first = 0;
        for parts in parts.chunk_by(|a, b| Kind::of(a.format) == Kind::of(b.format)) {
            let section = Section::pack(first, parts, in_, pool);
            first += section.out;
            sections.push(section);
        }
        Ok(Weight { out: first, in_, sections })
    }

    pub fn out_features(&self) -> usize {
        self.out
    }

    pub fn in_features(&self) -> usize {
        self.in_
    }

    /// The memory it holds.
    pub fn bytes(&self) -> usize {
        self.sections.iter().map(|s| s.panels.bytes().len()).sum()
    }

    /// The memory that a stack of (format, outputs) will hold.
    pub fn bytes_for(parts: &[(Format, usize)], in_: usize) -> Result<u64, String> {
        let mut bytes = 0;
        for parts in parts.chunk_by(|a, b| Kind::of(a.0) == Kind::of(b.0)) {
            let (kind, out) = (Kind::of(parts[0].0), parts.iter().map(|(_, out)| out).sum::<usize>());
            bytes += kind.source().size(out.next_multiple_of(kind.width()), in_)? as u64;
        }
        Ok(bytes)
    }

    /// Output feature `index`'s own row, as f32: an embedding lookup.
    pub fn row(&self, index: usize, row: &mut [f32]) {
        assert!(index < self.out && row.len() == self.in_, "row {index} of [{}, {}]", self.out, self.in_);
        let section = self.sections.iter().rfind(|s| s.first <= index).expect("sections cover all rows");
        let index = index - section.first;
        let width = section.kind.width();
        layout::unpack(section.kind, index % width, section.panel(index / width, self.in_), row);
    }
}

impl Section {
    fn pack(first: usize, parts: &[Part], in_: usize, pool: &Pool) -> Section {
        let kind = Kind::of(parts[0].format);
        let out = parts.iter().map(|p| p.out).sum();
        let width = kind.width();
        let panels = Buffer::new(usize::div_ceil(out, width), kind.panel_bytes(in_), pool, |panel, bytes| {
            let row = |index: usize| {
                let (mut part, mut index) = (0, index);
                while index >= parts[part].out {
                    index -= parts[part].out;
                    part += 1;
                }
                let Part { format, bytes: from, .. } = parts[part];
                let size = format.size(1, in_).expect("checked by stack");
                let row = &from[index * size..][..size];
                match format == kind.source() {
                    true => Cow::Borrowed(row),
                    // A format without a kernel.
                    false => {
                        let values = convert::values(format, row).expect("the row's size was checked");
                        Cow::Owned(convert::q8_0(&values))
                    }
                }
            };
            let rows: Vec<Cow<[u8]>> = (panel * width..out.min((panel + 1) * width)).map(row).collect();
            let rows: Vec<&[u8]> = rows.iter().map(|row| &**row).collect();
            layout::pack(kind, &rows, bytes);
        });
        Section { first, out, kind, panels }
    }

    fn panel(&self, index: usize, in_: usize) -> &[u8] {
        let size = self.kind.panel_bytes(in_);
        &self.panels.bytes()[index * size..][..size]
    }
}

thread_local! {
    /// The quantised rows of the caller's last product: kept, so that a product allocates nothing.
    static SCRATCH: RefCell<Activations> = RefCell::default();
}

/// `y = x w^T`, or `y += x w^T` with `add`: `x` is `[rows, in]` with rows `x_stride` apart, `y` is `[rows, out]`.
pub fn matmul(x: &[f32], x_stride: usize, rows: usize, w: &Weight, y: &mut [f32], add: bool, pool: &Pool) {
    let (in_, out) = (w.in_, w.out);
    assert_eq!(y.len(), rows * out, "y is [rows, out]");
    if rows == 0 {
        return;
    }
    assert!(x_stride >= in_ && x.len() >= (rows - 1) * x_stride + in_, "x is [rows, in]");
    if rows >= MANY_ROWS && fits(w, Activation::None) {
        let residual = if add { Residual::InPlace } else { Residual::None };
        return many(&Walk::rows(x, x_stride, rows, in_), w, y, &Finish { residual, ..Finish::default() }, pool);
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if w.sections.iter().any(|s| s.kind.quantised()) {
            scratch.quantise(x, x_stride, rows, in_, pool);
        }
        let y = Shares::new(y);
        for section in &w.sections {
            let x = Rows { plain: x, stride: x_stride, rows, in_, quantised: scratch };
            let to = To { y: &y, first: section.first, stride: out, add };
            section.product(&x, &to, pool);
        }
    });
}

/// The activations of a product, both ways.
struct Rows<'a> {
    plain: &'a [f32],
    stride: usize,
    rows: usize,
    in_: usize,
    quantised: &'a Activations,
}

/// Where a section's results go.
struct To<'a> {
    y: &'a Shares<'a, f32>,
    first: usize,
    stride: usize,
    add: bool,
}

impl To<'_> {
    /// The place of one row's results from output `out` of the section on. Tiles write disjoint places only.
    fn at(&self, row: usize, out: usize) -> *mut f32 {
        self.y.pointer(row * self.stride + self.first + out)
    }
}

impl Section {
    /// Units are runs of panels; within a unit, rows go by in chunks, so that both stay in the second-level cache.
    fn product(&self, x: &Rows, to: &To, pool: &Pool) {
        let panels = self.out.div_ceil(self.kind.width());
        let panel_bytes = self.kind.panel_bytes(x.in_);
        let inline = panels * panel_bytes * x.rows < INLINE_BYTES;
        let units = if inline { 1 } else { UNITS_PER_THREAD * pool.threads() };
        let per_unit = panels.div_ceil(units).min((CACHE_BYTES / panel_bytes).max(1));
        let per_unit = if inline { panels } else { per_unit };
        let row_bytes = if self.kind.quantised() { x.in_ } else { 4 * x.in_ };
        let chunk = (CACHE_BYTES / row_bytes).next_multiple_of(ROWS_PER_TILE);
        pool.run(panels.div_ceil(per_unit), |unit| {
            let first = unit * per_unit;
            let last = panels.min(first + per_unit);
            for row in (0..x.rows).step_by(chunk) {
                let rows = row..x.rows.min(row + chunk);
                for panel in first..last {
                    match self.kind {
                        Kind::F32 => self.plain::<f32>(x, to, rows.clone(), panel, pool),
                        Kind::F16 => self.plain::<f16>(x, to, rows.clone(), panel, pool),
                        Kind::BF16 => self.plain::<bf16>(x, to, rows.clone(), panel, pool),
                        Kind::Q8 | Kind::Q4 | Kind::Q4Min => self.quant(x, to, rows.clone(), panel, pool),
                    }
                }
            }
        });
    }

    fn quant(&self, x: &Rows, to: &To, rows: Range<usize>, panel: usize, pool: &Pool) {
        let (blocks, q) = (x.in_ / BLOCK, x.quantised);
        let by_block = rows.start * blocks..rows.end * blocks;
        let tile = QuantTile {
            rows: rows.len(),
            blocks,
            panel: self.panel(panel, x.in_).as_ptr(),
            x: q.values[rows.start * x.in_..rows.end * x.in_].as_ptr(),
            scales: q.scales[by_block.clone()].as_ptr(),
            sums: q.sums[by_block.clone()].as_ptr(),
            scaled_sums: q.scaled_sums[by_block].as_ptr(),
            y: to.at(rows.start, panel * LANES),
            y_stride: to.stride,
            lanes: LANES.min(self.out - panel * LANES),
            add: to.add,
        };
        // SAFETY: the slices above have the lengths the tile needs, `matmul` checked `y`, and this unit alone writes
        // these rows and lanes.
        unsafe { tile::quant(pool.simd(), self.kind, &tile) };
    }

    fn plain<T: Element>(&self, x: &Rows, to: &To, rows: Range<usize>, panel: usize, pool: &Pool) {
        let width = self.kind.width();
        let outs = width.min(self.out - panel * width);
        let from = &x.plain[rows.start * x.stride..];
        assert!(from.len() >= (rows.len() - 1) * x.stride + x.in_);
        let tile = PlainTile {
            rows: rows.len(),
            panels: outs.div_ceil(LANES),
            k: x.in_,
            x: from.as_ptr(),
            x_stride: x.stride,
            w: self.panel(panel, x.in_).as_ptr().cast::<T>(),
            w_step: width,
            panel_step: LANES,
            y: to.at(rows.start, panel * width),
            y_stride: to.stride,
            last_lanes: outs - (outs - 1) / LANES * LANES,
            add: to.add,
        };
        // SAFETY: as for `quant`; panels are on cache-line borders, so `T` is aligned.
        unsafe { tile::plain(pool.simd(), &tile) };
    }
}
