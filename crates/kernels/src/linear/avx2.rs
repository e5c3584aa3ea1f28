//! The tiles with AVX2, FMA and F16C: a panel is two registers of eight outputs.
//!
//! `vpmaddubsw` adds two products of an unsigned and a signed byte in 16 bits. For nibbles a whole block fits: 8 groups x
//! 2 x 15 x 127 = 30,480. For bytes one pair does, once the sign has moved from the weight to the activation: 2 x 128 x
//! 127 = 32,512.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::layout::{BLOCK, Blocks, LANES};
use super::portable;
use super::tile::{PlainTile, QuantTile};

/// The lanes of one register.
const HALF: usize = 8;

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
        if row + 2 <= tile.rows {
            quant_rows::<B, 2>(tile, row);
            row += 2;
        }
        if row < tile.rows {
            quant_rows::<B, 1>(tile, row);
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
            for (h, total) in total.iter_mut().enumerate() {
                let at = half + h;
                let values = block.add(32 * at);
                let x = x.add(b * BLOCK);
                let dots: [__m256i; R] = if B::NIBBLES {
                    dot_nibbles(values, x, blocks * BLOCK)
                } else {
                    dot_bytes(values, x, blocks * BLOCK)
                };
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(block.add(B::VALUES + 2 * HALF * at).cast()));
                let min = if B::MIN {
                    _mm256_cvtph_ps(_mm_loadu_si128(block.add(B::VALUES + 2 * LANES + 2 * HALF * at).cast()))
                } else {
                    _mm256_setzero_ps()
                };
                for r in 0..R {
                    let at = r * blocks + b;
                    let mut dot = dots[r];
                    if B::NIBBLES && B::ZERO != 0 {
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

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot_nibbles<const R: usize>(values: *const u8, x: *const i8, stride: usize) -> [__m256i; R] {
    let low = _mm256_set1_epi8(15);
    let mut sum = [_mm256_setzero_si256(); R];
    for g in 0..4 {
        // SAFETY: a block has four times 64 bytes of nibbles, and every row 32 activations at `x`.
        unsafe {
            let pairs = _mm256_loadu_si256(values.add(64 * g).cast());
            let first = _mm256_and_si256(pairs, low);
            let second = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
            for (r, sum) in sum.iter_mut().enumerate() {
                let fours = x.add(r * stride).cast::<i32>();
                let a = _mm256_maddubs_epi16(first, _mm256_set1_epi32(fours.add(g).read_unaligned()));
                let b = _mm256_maddubs_epi16(second, _mm256_set1_epi32(fours.add(g + 4).read_unaligned()));
                *sum = _mm256_add_epi16(*sum, _mm256_add_epi16(a, b));
            }
        }
    }
    let ones = _mm256_set1_epi16(1);
    sum.map(|sum| _mm256_madd_epi16(sum, ones))
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot_bytes<const R: usize>(values: *const u8, x: *const i8, stride: usize) -> [__m256i; R] {
    let ones = _mm256_set1_epi16(1);
    let mut sum = [_mm256_setzero_si256(); R];
    for g in 0..8 {
        // SAFETY: a block has eight times 64 bytes, and every row 32 activations at `x`.
        unsafe {
            let signed = _mm256_loadu_si256(values.add(64 * g).cast());
            let size = _mm256_abs_epi8(signed);
            for (r, sum) in sum.iter_mut().enumerate() {
                let fours = _mm256_set1_epi32(x.add(r * stride).cast::<i32>().add(g).read_unaligned());
                let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(fours, signed));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    sum
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
        if row + 2 <= tile.rows {
            each_panels::<T, 2, 2>(tile, row);
            row += 2;
        }
        if row < tile.rows {
            each_panels::<T, 1, 4>(tile, row);
        }
    }
}

/// `P` panels at a time: few rows need more, or each fused multiply-add would wait for the one before.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn each_panels<T: Load, const R: usize, const P: usize>(tile: &PlainTile<T>, row: usize) {
    let mut panel = 0;
    // SAFETY: every step stays within the tile's panels.
    unsafe {
        while panel + P <= tile.panels {
            plain_rows::<T, R, P>(tile, row, panel);
            panel += P;
        }
        while panel < tile.panels {
            plain_rows::<T, R, 1>(tile, row, panel);
            panel += 1;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn plain_rows<T: Load, const R: usize, const P: usize>(tile: &PlainTile<T>, row: usize, panel: usize) {
    // SAFETY: the tile covers `k` inputs of these rows and panels.
    unsafe {
        let x = tile.x.add(row * tile.x_stride);
        let mut w = tile.w.add(panel * tile.panel_step);
        let mut total = [[[_mm256_setzero_ps(); 2]; P]; R];
        for k in 0..tile.k {
            for p in 0..P {
                let low = T::eight(w.add(p * tile.panel_step));
                let high = T::eight(w.add(p * tile.panel_step + HALF));
                for (r, total) in total.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.add(r * tile.x_stride + k));
                    total[p][0] = _mm256_fmadd_ps(low, x, total[p][0]);
                    total[p][1] = _mm256_fmadd_ps(high, x, total[p][1]);
                }
            }
            w = w.wrapping_add(tile.w_step);
        }
        for (r, total) in total.into_iter().enumerate() {
            for (p, total) in total.into_iter().enumerate() {
                let lanes = if panel + p + 1 == tile.panels { tile.last_lanes } else { LANES };
                let y = tile.y.add((row + r) * tile.y_stride + (panel + p) * LANES);
                put(y, total[0], lanes, tile.add);
                put(y.wrapping_add(HALF), total[1], lanes.saturating_sub(HALF), tile.add);
            }
        }
    }
}
