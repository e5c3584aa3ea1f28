//! The tiles with AVX-512 and VNNI: 16 outputs in one register, two products of 16 bits added per lane and instruction.

use std::arch::asm;
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::layout::{BLOCK, Blocks, LANES};
use super::tile::{PlainTile, QuantTile};

const LINE_BYTES: usize = 64;

/// How far ahead the first rows ask for weights.
const PREFETCH_BYTES: usize = 4096;

/// # Safety
/// See `QuantTile`; the processor must have the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub unsafe fn quant<B: Blocks>(tile: &QuantTile) {
    let mut row = 0;
    // SAFETY: every step stays within the tile's rows.
    unsafe {
        while row + 8 <= tile.rows {
            quant_rows::<B, 8>(tile, row);
            row += 8;
        }
        if row + 4 <= tile.rows {
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn quant_rows<B: Blocks, const R: usize>(tile: &QuantTile, row: usize) {
    let blocks = tile.blocks;
    // SAFETY: the tile covers `blocks` blocks of the panel and of the rows from `row` to `row + R`.
    unsafe {
        let x = tile.x.add(row * blocks * BLOCK);
        let scales = tile.scales.add(row * blocks);
        let sums = tile.sums.add(row * blocks);
        let scaled_sums = tile.scaled_sums.add(row * blocks);
        let mut total = [_mm512_setzero_ps(); R];
        for b in 0..blocks {
            let block = tile.panel.add(b * B::BYTES);
            if row == 0 {
                // The first rows pay for reading the panel: with this much to compute in between, the memory would
                // fall asleep.
                for line in 0..B::BYTES.div_ceil(LINE_BYTES) {
                    _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(PREFETCH_BYTES + line * LINE_BYTES).cast());
                }
            }
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(block.add(B::VALUES).cast()));
            let min = if B::MIN {
                _mm512_cvtph_ps(_mm256_loadu_si256(block.add(B::VALUES + 2 * LANES).cast()))
            } else {
                _mm512_setzero_ps()
            };
            // A sum is a chain of products: the rows go side by side, and where they are few, four chains of each.
            let mut chains = [[_mm512_setzero_si512(); 4]; R];
            for step in 0..4 {
                let (values, twos) = widen::<B>(block, step);
                for (i, (values, two)) in values.into_iter().zip(twos).enumerate() {
                    for (r, chains) in chains.iter_mut().enumerate() {
                        let chain = if R <= 2 { &mut chains[i] } else { &mut chains[0] };
                        *chain = add_products(*chain, values, x.add((r * blocks + b) * BLOCK + 2 * two));
                    }
                }
            }
            for (r, (total, [mut dot, second, third, fourth])) in total.iter_mut().zip(chains).enumerate() {
                if R <= 2 {
                    dot = _mm512_add_epi32(_mm512_add_epi32(dot, second), _mm512_add_epi32(third, fourth));
                }
                let at = r * blocks + b;
                if B::ZERO != 0 {
                    dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(B::ZERO * *sums.add(at)));
                }
                let by = _mm512_mul_ps(scale, _mm512_set1_ps(*scales.add(at)));
                *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), by, *total);
                if B::MIN {
                    *total = _mm512_fmadd_ps(min, _mm512_set1_ps(*scaled_sums.add(at)), *total);
                }
            }
        }
        for (r, total) in total.into_iter().enumerate() {
            put(tile.y.add((row + r) * tile.y_stride), total, tile.lanes, tile.add);
        }
    }
}

/// Adds to every lane the products of its two weights with the two activations at `x`: `vpdpwssd`, spelled out because
/// the compiler takes the intrinsic apart into a product and a sum, which is twice the work.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_products(mut sum: __m512i, values: __m512i, x: *const i16) -> __m512i {
    // SAFETY: reads the two activations that the caller has at `x`.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {values}, dword ptr [{x}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            values = in(zmm_reg) values,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    sum
}

/// A quarter of a block's weights as 16 bits, two inputs per lane, and the two activations that each register meets.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widen<B: Blocks>(block: *const u8, step: usize) -> ([__m512i; 4], [usize; 4]) {
    // SAFETY: the caller's block is whole.
    let load = |i: usize| unsafe { _mm512_loadu_si512(block.add(64 * i).cast()) };
    if B::NIBBLES {
        let low = _mm512_set1_epi16(15);
        let pairs = load(step);
        let values = [
            _mm512_and_si512(pairs, low),
            _mm512_and_si512(_mm512_srli_epi16(pairs, 8), low),
            _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low),
            _mm512_srli_epi16(pairs, 12),
        ];
        (values, [2 * step, 2 * step + 1, 2 * step + 8, 2 * step + 9])
    } else {
        let (first, second) = (load(2 * step), load(2 * step + 1));
        let even = |bytes| _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
        let values = [even(first), _mm512_srai_epi16(first, 8), even(second), _mm512_srai_epi16(second, 8)];
        (values, [4 * step, 4 * step + 1, 4 * step + 2, 4 * step + 3])
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put(y: *mut f32, total: __m512, lanes: usize, add: bool) {
    let mask: __mmask16 = if lanes >= LANES { !0 } else { (1 << lanes) - 1 };
    // SAFETY: only the caller's `lanes` places are touched.
    unsafe {
        let total = if add { _mm512_add_ps(total, _mm512_maskz_loadu_ps(mask, y)) } else { total };
        _mm512_mask_storeu_ps(y, mask, total);
    }
}

/// Sixteen neighbours as f32.
pub trait Load: Copy {
    /// # Safety
    /// Sixteen values at `from`; the processor must have AVX-512.
    unsafe fn sixteen(from: *const Self) -> __m512;
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sixteen(from: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }
}

impl Load for f16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sixteen(from: *const f16) -> __m512 {
        // SAFETY: the caller's promise.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
    }
}

impl Load for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sixteen(from: *const bf16) -> __m512 {
        // SAFETY: the caller's promise.
        let bits = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(from.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))
    }
}

/// # Safety
/// See `PlainTile`; the processor must have the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub unsafe fn plain<T: Load>(tile: &PlainTile<T>) {
    let mut row = 0;
    // SAFETY: every step stays within the tile's rows and panels.
    unsafe {
        while row + 8 <= tile.rows {
            each_panels::<T, 8>(tile, row);
            row += 8;
        }
        if row + 4 <= tile.rows {
            each_panels::<T, 4>(tile, row);
            row += 4;
        }
        match tile.rows - row {
            3 => each_panels::<T, 3>(tile, row),
            2 => each_panels::<T, 2>(tile, row),
            1 => each_panels::<T, 1>(tile, row),
            _ => {}
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn each_panels<T: Load, const R: usize>(tile: &PlainTile<T>, row: usize) {
    let mut panel = 0;
    // SAFETY: every step stays within the tile's panels.
    unsafe {
        // Few rows need more panels at once, or each fused multiply-add would wait for the one before.
        if R <= 4 {
            while panel + 4 <= tile.panels {
                plain_rows::<T, R, 4>(tile, row, panel);
                panel += 4;
            }
        }
        while panel + 2 <= tile.panels {
            plain_rows::<T, R, 2>(tile, row, panel);
            panel += 2;
        }
        if panel < tile.panels {
            plain_rows::<T, R, 1>(tile, row, panel);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn plain_rows<T: Load, const R: usize, const P: usize>(tile: &PlainTile<T>, row: usize, panel: usize) {
    // SAFETY: the tile covers `k` inputs of these rows and panels.
    unsafe {
        let x = tile.x.add(row * tile.x_stride);
        let mut w = tile.w.add(panel * tile.panel_step);
        let mut total = [[_mm512_setzero_ps(); P]; R];
        for k in 0..tile.k {
            let mut values = [_mm512_setzero_ps(); P];
            for (p, values) in values.iter_mut().enumerate() {
                *values = T::sixteen(w.add(p * tile.panel_step));
            }
            for (r, total) in total.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*x.add(r * tile.x_stride + k));
                for p in 0..P {
                    total[p] = _mm512_fmadd_ps(values[p], x, total[p]);
                }
            }
            if R > 4 {
                // As in a quantised tile.
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_byte_add(2 * PREFETCH_BYTES).cast());
            }
            w = w.wrapping_add(tile.w_step);
        }
        for (r, total) in total.into_iter().enumerate() {
            for (p, total) in total.into_iter().enumerate() {
                let y = tile.y.add((row + r) * tile.y_stride + (panel + p) * LANES);
                put(y, total, tile.lanes(panel + p), tile.add);
            }
        }
    }
}
