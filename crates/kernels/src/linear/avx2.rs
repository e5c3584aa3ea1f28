//! The tiles with AVX2, FMA and F16C: a panel is two registers of eight outputs, and `vpmaddwd` adds two products of 16
//! bits per lane.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use half::{bf16, f16};

use super::layout::{BLOCK, Blocks, LANES};
use super::tile::{PlainTile, QuantTile};
use super::{activations, portable};
use crate::math::ROUND;

/// The lanes of one register.
const HALF: usize = 8;

const LINE_BYTES: usize = 64;

/// How far ahead the first rows ask for weights.
const PREFETCH_BYTES: usize = 4096;

/// # Safety
/// See `QuantTile`; the processor must have the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn quant<B: Blocks>(tile: &QuantTile) {
    let mut row = 0;
    // SAFETY: every step stays within the tile's rows.
    unsafe {
        while row + 4 <= tile.rows {
            quant_rows::<B, 4>(tile, row);
            row += 4;
        }
        match tile.rows - row {
            3 => quant_rows::<B, 3>(tile, row),
            2 => quant_rows::<B, 2>(tile, row),
            1 => quant_rows::<B, 1>(tile, row),
            _ => {}
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quant_rows<B: Blocks, const R: usize>(tile: &QuantTile, row: usize) {
    // SAFETY: both halves are within the panel and the rows.
    unsafe {
        if R == 1 {
            // One row leaves registers free: the panel is read once, in order.
            quant_halves::<B, R, 2>(tile, row, 0);
        } else {
            quant_halves::<B, R, 1>(tile, row, 0);
            quant_halves::<B, R, 1>(tile, row, 1);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quant_halves<B: Blocks, const R: usize, const H: usize>(tile: &QuantTile, row: usize, half: usize) {
    let blocks = tile.blocks;
    // SAFETY: the tile covers `blocks` blocks of the panel and of the rows from `row` to `row + R`.
    unsafe {
        let x = tile.x.add(row * blocks * BLOCK);
        let scales = tile.scales.add(row * blocks);
        let sums = tile.sums.add(row * blocks);
        let scaled_sums = tile.scaled_sums.add(row * blocks);
        let mut total = [[_mm256_setzero_ps(); R]; H];
        for b in 0..blocks {
            let block = tile.panel.add(b * B::BYTES);
            if row == 0 && half == 0 {
                // The first rows pay for reading the panel: with this much to compute in between, the memory would fall
                // asleep.
                for line in 0..B::BYTES.div_ceil(LINE_BYTES) {
                    _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(PREFETCH_BYTES + line * LINE_BYTES).cast());
                }
            }
            for (h, total) in total.iter_mut().enumerate() {
                let at = half + h;
                let dots: [__m256i; R] = dot::<B, R>(block.add(32 * at), x.add(b * BLOCK), blocks * BLOCK);
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(block.add(B::VALUES + 2 * HALF * at).cast()));
                let min = if B::MIN {
                    _mm256_cvtph_ps(_mm_loadu_si128(block.add(B::VALUES + 2 * LANES + 2 * HALF * at).cast()))
                } else {
                    _mm256_setzero_ps()
                };
                for r in 0..R {
                    let at = r * blocks + b;
                    let mut dot = dots[r];
                    if B::ZERO != 0 {
                        dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(B::ZERO * *sums.add(at)));
                    }
                    let by = _mm256_mul_ps(scale, _mm256_set1_ps(*scales.add(at)));
                    total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), by, total[r]);
                    if B::MIN {
                        total[r] = _mm256_fmadd_ps(min, _mm256_set1_ps(*scaled_sums.add(at)), total[r]);
                    }
                }
            }
        }
        for (h, total) in total.into_iter().enumerate() {
            let first = (half + h) * HALF;
            for (r, total) in total.into_iter().enumerate() {
                let y = tile.y.add((row + r) * tile.y_stride).wrapping_add(first);
                put(y, total, tile.lanes.saturating_sub(first), tile.add);
            }
        }
    }
}

/// Half a block's sums of products: `values` at its first 32 bytes, rows of activations from `x` on, `stride` apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot<B: Blocks, const R: usize>(mut values: *const u8, x: *const i16, stride: usize) -> [__m256i; R] {
    let mut sums = [_mm256_setzero_si256(); R];
    for step in 0..4 {
        // SAFETY: a block has four times 64 bytes of nibbles, or eight of bytes; every row has 32 activations at `x`.
        unsafe {
            let (widened, twos) = widen::<B>(values, step);
            for (widened, two) in widened.into_iter().zip(twos) {
                for (r, sum) in sums.iter_mut().enumerate() {
                    let two = x.add(r * stride).cast::<i32>().add(two).read_unaligned();
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(widened, _mm256_set1_epi32(two)));
                }
            }
            // The compiler would go row by row and keep all widened weights on the stack: it may not look past this.
            asm!("/* {0} */", inout(reg) values, options(nostack, preserves_flags));
            sums.iter_mut().for_each(|sum| asm!("/* {0} */", inout(ymm_reg) * sum, options(nostack, preserves_flags)));
        }
    }
    sums
}

/// A quarter of half a block's weights as 16 bits, two inputs per lane, and the two activations that each register meets.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen<B: Blocks>(values: *const u8, step: usize) -> ([__m256i; 4], [usize; 4]) {
    // SAFETY: the caller's block is whole.
    let load = |i: usize| unsafe { _mm256_loadu_si256(values.add(64 * i).cast()) };
    if B::NIBBLES {
        let low = _mm256_set1_epi16(15);
        let pairs = load(step);
        let values = [
            _mm256_and_si256(pairs, low),
            _mm256_and_si256(_mm256_srli_epi16(pairs, 8), low),
            _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low),
            _mm256_srli_epi16(pairs, 12),
        ];
        (values, [2 * step, 2 * step + 1, 2 * step + 8, 2 * step + 9])
    } else {
        let (first, second) = (load(2 * step), load(2 * step + 1));
        let even = |bytes| _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
        let values = [even(first), _mm256_srai_epi16(first, 8), even(second), _mm256_srai_epi16(second, 8)];
        (values, [4 * step, 4 * step + 1, 4 * step + 2, 4 * step + 3])
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn put(y: *mut f32, total: __m256, lanes: usize, add: bool) {
    // SAFETY: only the caller's `lanes` places are touched.
    unsafe {
        if lanes >= HALF {
            let total = if add { _mm256_add_ps(total, _mm256_loadu_ps(y)) } else { total };
            _mm256_storeu_ps(y, total);
        } else if lanes > 0 {
            let mut values = [0f32; HALF];
            _mm256_storeu_ps(values.as_mut_ptr(), total);
            portable::put(y, &values[..lanes], add);
        }
    }
}

/// A block of activations as integers: its scale and its sum.
#[target_feature(enable = "avx2,fma")]
pub fn quantise(x: &[f32; BLOCK], values: &mut [i16; BLOCK]) -> (f32, i32) {
    let absolute = _mm256_set1_epi32(i32::MAX);
    // SAFETY: four times eight values.
    let x: [__m256; 4] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(HALF * i)) });
    let [a, b, c, d] = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), absolute));
    let most = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
    let most = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    let most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0b01_00_11_10));
    let most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0b10_11_00_01));
    let (scale, inverse) = activations::scale(f32::from_bits(_mm_cvtsi128_si32(most) as u32));
    let (by, round) = (_mm256_set1_ps(inverse), _mm256_set1_ps(ROUND));
    // The low bits of a rounded value are the integer: what lies above them is taken away.
    let [a, b, c, d] = x.map(|x| {
        let rounded = _mm256_castps_si256(_mm256_fmadd_ps(x, by, round));
        _mm256_sub_epi32(rounded, _mm256_castps_si256(round))
    });
    let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b01_00_11_10));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b10_11_00_01));
    // Of every four, 0, 2, 1, 3. Packing works within 128 bits: fours come out of order and are put back.
    let [a, b, c, d] = [a, b, c, d].map(|v| _mm256_shuffle_epi32(v, 0b11_01_10_00));
    let packed =
        [_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)].map(|v| _mm256_permute4x64_epi64(v, 0b11_01_10_00));
    for (i, packed) in packed.into_iter().enumerate() {
        // SAFETY: twice 16 values.
        unsafe { _mm256_storeu_si256(values.as_mut_ptr().add(2 * HALF * i).cast(), packed) };
    }
    (scale, _mm_cvtsi128_si32(sum))
}

/// Eight neighbours as f32.
pub trait Load: Copy {
    /// # Safety
    /// Eight values at `from`; the processor must have AVX2 and F16C.
    unsafe fn eight(from: *const Self) -> __m256;
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eight(from: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }
}

impl Load for f16 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn eight(from: *const f16) -> __m256 {
        // SAFETY: the caller's promise.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
    }
}

impl Load for bf16 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eight(from: *const bf16) -> __m256 {
        // SAFETY: the caller's promise.
        let bits = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(from.cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))
    }
}

/// # Safety
/// See `PlainTile`; the processor must have the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn plain<T: Load>(tile: &PlainTile<T>) {
    let mut row = 0;
    // SAFETY: every step stays within the tile's rows.
    unsafe {
        while row + 6 <= tile.rows {
            each_panels::<T, 6, 1>(tile, row);
            row += 6;
        }
        if row + 4 <= tile.rows {
            each_panels::<T, 4, 1>(tile, row);
            row += 4;
        }
        match tile.rows - row {
            3 => each_panels::<T, 3, 2>(tile, row),
            2 => each_panels::<T, 2, 2>(tile, row),
            1 => each_panels::<T, 1, 4>(tile, row),
            _ => {}
        }
    }
}

/// Inputs that rows take before they move to the next of their panels, so that what they read stays in the first-level cache;
/// sums wait in a `Carry` meanwhile, unchanged.
const CHUNK: usize = 64;

/// Panels whose sums a `Carry` holds: those of a packed weight.
const CARRY_PANELS: usize = 4;

/// The sums of some rows.
type Carry<const R: usize> = [[[f32; LANES]; CARRY_PANELS]; R];

/// `P` panels at a time: few rows need more, or each fused multiply-add would wait for the one before.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn each_panels<T: Load, const R: usize, const P: usize>(tile: &PlainTile<T>, row: usize) {
    let mut carry: Carry<R> = [[[0.0; LANES]; CARRY_PANELS]; R];
    let step = if tile.panels <= CARRY_PANELS { CHUNK } else { tile.k };
    for first in (0..tile.k).step_by(step.max(1)) {
        let inputs = first..tile.k.min(first + step);
        let mut panel = 0;
        // SAFETY: every step stays within the tile's panels.
        unsafe {
            while panel + P <= tile.panels {
                plain_rows::<T, R, P>(tile, row, panel, &inputs, &mut carry);
                panel += P;
            }
            while panel < tile.panels {
                plain_rows::<T, R, 1>(tile, row, panel, &inputs, &mut carry);
                panel += 1;
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn plain_rows<T: Load, const R: usize, const P: usize>(
    tile: &PlainTile<T>,
    row: usize,
    panel: usize,
    inputs: &Range<usize>,
    carry: &mut Carry<R>,
) {
    // SAFETY: the tile covers `k` inputs of these rows and panels; sums are carried only where the panels fit.
    unsafe {
        let x = tile.x.add(row * tile.x_stride);
        let mut w = tile.w.add(panel * tile.panel_step + inputs.start * tile.w_step);
        let mut total = [[[_mm256_setzero_ps(); 2]; P]; R];
        if inputs.start > 0 {
            for (total, carry) in total.iter_mut().zip(&*carry) {
                for (total, carry) in total.iter_mut().zip(&carry[panel..]) {
                    total[0] = _mm256_loadu_ps(carry.as_ptr());
                    total[1] = _mm256_loadu_ps(carry[HALF..].as_ptr());
                }
            }
        }
        for k in inputs.clone() {
            for p in 0..P {
                let low = T::eight(w.add(p * tile.panel_step));
                let high = T::eight(w.add(p * tile.panel_step + HALF));
                for (r, total) in total.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.add(r * tile.x_stride + k));
                    total[p][0] = _mm256_fmadd_ps(low, x, total[p][0]);
                    total[p][1] = _mm256_fmadd_ps(high, x, total[p][1]);
                }
            }
            if R > 1 {
                // The memory would rest while rows are at their later panels.
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(CHUNK * tile.w_step).cast());
            }
            w = w.wrapping_add(tile.w_step);
        }
        if inputs.end < tile.k {
            for (total, carry) in total.iter().zip(carry) {
                for (total, carry) in total.iter().zip(&mut carry[panel..]) {
                    _mm256_storeu_ps(carry.as_mut_ptr(), total[0]);
                    _mm256_storeu_ps(carry[HALF..].as_mut_ptr(), total[1]);
                }
            }
            return;
        }
        for (r, total) in total.into_iter().enumerate() {
            for (p, total) in total.into_iter().enumerate() {
                let lanes = tile.lanes(panel + p);
                let y = tile.y.add((row + r) * tile.y_stride + (panel + p) * LANES);
                put(y, total[0], lanes, tile.add);
                put(y.wrapping_add(HALF), total[1], lanes.saturating_sub(HALF), tile.add);
            }
        }
    }
}
