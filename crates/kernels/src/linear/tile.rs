//! What one inner loop does, and the choice of the loop: a few rows of activations times one panel (quantised) or a few
//! panels (plain). Refuses to know threads and how the work was cut.

use super::layout::{Blocks, Kind, LANES, Q4, Q4Min, Q8};
use super::portable::{self, Plain};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::simd::{Level, Simd};

/// Rows times one quantised panel. `x`, `scales`, `sums` and `scaled_sums` point at the first of `rows` rows that follow
/// one another without gaps (32 values and one of each per block); `panel` at `blocks` blocks; `y` at `lanes` (at most
/// 16) results per row, rows `y_stride` apart, which nobody else reads or writes. `add`: the product is added to `y`.
pub struct QuantTile {
    pub rows: usize,
    pub blocks: usize,
    pub panel: *const u8,
    pub x: *const i16,
    pub scales: *const f32,
    pub sums: *const i32,
    pub scaled_sums: *const f32,
    pub y: *mut f32,
    pub y_stride: usize,
    pub lanes: usize,
    pub add: bool,
}

/// Rows times plain panels: `y[row][panel * 16 + lane] (+)= sum over k of x[row][k] * w[k * w_step + panel * panel_step +
/// lane]`, in the order of `k`. The last panel gives `last_lanes` results but is read in full, as all are.
pub struct PlainTile<T> {
    pub rows: usize,
    pub panels: usize,
    pub k: usize,
    pub x: *const f32,
    pub x_stride: usize,
    pub w: *const T,
    pub w_step: usize,
    pub panel_step: usize,
    pub y: *mut f32,
    pub y_stride: usize,
    pub last_lanes: usize,
    pub add: bool,
}

impl<T> PlainTile<T> {
    /// Lanes of a panel that are results.
    pub fn lanes(&self, panel: usize) -> usize {
        if panel + 1 == self.panels { self.last_lanes } else { LANES }
    }
}

/// # Safety
/// The tile's pointers must cover what its doc says, and `kind` must be the panel's.
pub unsafe fn quant(simd: Simd, kind: Kind, tile: &QuantTile) {
    // SAFETY: passed on from the caller.
    unsafe {
        match kind {
            Kind::Q8 => quant_of::<Q8>(simd, tile),
            Kind::Q4 => quant_of::<Q4>(simd, tile),
            Kind::Q4Min => quant_of::<Q4Min>(simd, tile),
            Kind::F32 | Kind::F16 | Kind::BF16 => unreachable!("a plain panel has no blocks"),
        }
    }
}

unsafe fn quant_of<B: Blocks>(simd: Simd, tile: &QuantTile) {
    // SAFETY: passed on from the caller; a `Simd` of a level exists only where its instructions do.
    unsafe {
        match simd.level() {
            Level::Portable => portable::quant::<B>(tile),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::quant::<B>(tile),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::quant::<B>(tile),
        }
    }
}

/// A value with a plain kernel on every path.
#[cfg(target_arch = "x86_64")]
pub trait Element: Plain + avx2::Load + avx512::Load {}
#[cfg(target_arch = "x86_64")]
impl<T: Plain + avx2::Load + avx512::Load> Element for T {}
#[cfg(not(target_arch = "x86_64"))]
pub trait Element: Plain {}
#[cfg(not(target_arch = "x86_64"))]
impl<T: Plain> Element for T {}

/// # Safety
/// The tile's pointers must cover what its doc says.
pub unsafe fn plain<T: Element>(simd: Simd, tile: &PlainTile<T>) {
    // SAFETY: passed on from the caller; a `Simd` of a level exists only where its instructions do.
    unsafe {
        match simd.level() {
            Level::Portable => portable::plain(tile),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::plain(tile),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::plain(tile),
        }
    }
}
