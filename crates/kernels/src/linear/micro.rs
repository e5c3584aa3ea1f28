//! The inner loop of products with many rows, and the unpacking of the weights it reads. Refuses to know where the rows
//! come from.
//!
//! Sums wait in memory between calls, so a long chain of products may be cut anywhere and still be one chain: the same bits
//! as without the cut.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::layout::LANES;
use super::tile::Element;
use crate::simd::{Level, Simd};

/// Outputs that meet a row at once.
pub const WIDTH: usize = 2 * LANES;

/// The most rows of one call: with `WIDTH` outputs, 24 of the 32 registers of AVX-512 hold sums.
pub const ROWS: usize = 12;

/// `sums[r * sums_stride + o] += sum over i of x[r * x_stride + i] * w[i * WIDTH + o]`, for `rows` (1 to `ROWS`) and
/// `WIDTH` outputs, in the order of `i`.
pub struct Micro {
    pub rows: usize,
    pub inputs: usize,
    pub x: *const f32,
    pub x_stride: usize,
    pub w: *const f32,
    pub sums: *mut f32,
    pub sums_stride: usize,
    /// The sums start at zero, whatever stands there.
    pub fresh: bool,
}

/// # Safety
/// The pointers must cover what `Micro` says, and nobody else may touch the sums meanwhile.
pub unsafe fn micro(simd: Simd, m: &Micro) {
    // SAFETY: passed on from the caller; a `Simd` of a level exists only where its instructions do.
    unsafe {
        match simd.level() {
            Level::Portable => portable(m),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(m),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512(m),
        }
    }
}

unsafe fn portable(m: &Micro) {
    for r in 0..m.rows {
        // SAFETY: the caller's promise.
        let (x, sums) = unsafe {
            let x = std::slice::from_raw_parts(m.x.add(r * m.x_stride), m.inputs);
            (x, std::slice::from_raw_parts_mut(m.sums.add(r * m.sums_stride), WIDTH))
        };
        if m.fresh {
            sums.fill(0.0);
        }
        for (i, x) in x.iter().enumerate() {
            // SAFETY: as above.
            let w = unsafe { std::slice::from_raw_parts(m.w.add(i * WIDTH), WIDTH) };
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = w.mul_add(*x, *sum);
            }
        }
    }
}

/// Rows that the AVX2 loop takes at once: twelve of its sixteen registers hold sums.
#[cfg(target_arch = "x86_64")]
const AVX2_ROWS: usize = 3;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(m: &Micro) {
    let mut row = 0;
    // SAFETY: every step stays within the caller's rows.
    unsafe {
        while row + AVX2_ROWS <= m.rows {
            avx2_rows::<AVX2_ROWS>(m, row);
            row += AVX2_ROWS;
        }
        match m.rows - row {
            2 => avx2_rows::<2>(m, row),
            1 => avx2_rows::<1>(m, row),
            _ => {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_rows<const R: usize>(m: &Micro, row: usize) {
    const VECTORS: usize = WIDTH / 8;
    // SAFETY: the caller's promise for `R` rows from `row` on.
    unsafe {
        let (x, to) = (m.x.add(row * m.x_stride), m.sums.add(row * m.sums_stride));
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; R];
        for (r, sums) in sums.iter_mut().enumerate().filter(|_| !m.fresh) {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_loadu_ps(to.add(r * m.sums_stride + 8 * v));
            }
        }
        for i in 0..m.inputs {
            // Twelve sums, three activations and one vector of weights at a time: sixteen registers.
            let mut values = [_mm256_setzero_ps(); R];
            for (r, value) in values.iter_mut().enumerate() {
                *value = _mm256_set1_ps(*x.add(r * m.x_stride + i));
            }
            for v in 0..VECTORS {
                let w = _mm256_loadu_ps(m.w.add(i * WIDTH + 8 * v));
                for (sums, value) in sums.iter_mut().zip(values) {
                    sums[v] = _mm256_fmadd_ps(w, value, sums[v]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(to.add(r * m.sums_stride + 8 * v), *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(m: &Micro) {
    // SAFETY: passed on from the caller.
    unsafe {
        match m.rows {
            1 => avx512_rows::<1>(m),
            2 => avx512_rows::<2>(m),
            3 => avx512_rows::<3>(m),
            4 => avx512_rows::<4>(m),
            5 => avx512_rows::<5>(m),
            6 => avx512_rows::<6>(m),
            7 => avx512_rows::<7>(m),
            8 => avx512_rows::<8>(m),
            9 => avx512_rows::<9>(m),
            10 => avx512_rows::<10>(m),
            11 => avx512_rows::<11>(m),
            ROWS => avx512_rows::<ROWS>(m),
            rows => unreachable!("{rows} rows of at most {ROWS}"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_rows<const R: usize>(m: &Micro) {
    // SAFETY: the caller's promise for `R` rows.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for (r, sums) in sums.iter_mut().enumerate().filter(|_| !m.fresh) {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(m.sums.add(r * m.sums_stride + LANES * v));
            }
        }
        // Every third row has an address of its own, and the next two stand at one and two strides from it: twelve
        // addresses would not fit in the registers.
        let mut x = [m.x; ROWS / 3];
        for (third, x) in x.iter_mut().enumerate() {
            *x = m.x.wrapping_add(3 * third * m.x_stride);
        }
        let mut w = m.w;
        for _ in 0..m.inputs {
            let (low, high) = (_mm512_loadu_ps(w), _mm512_loadu_ps(w.add(LANES)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*x[r / 3].wrapping_add(r % 3 * m.x_stride));
                sums[0] = _mm512_fmadd_ps(low, x, sums[0]);
                sums[1] = _mm512_fmadd_ps(high, x, sums[1]);
            }
            x.iter_mut().for_each(|x| *x = x.wrapping_add(1));
            w = w.add(WIDTH);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(m.sums.add(r * m.sums_stride + LANES * v), *sum);
            }
        }
    }
}

/// `rows` rows of `WIDTH` values that are `step` apart, as f32 and without gaps.
///
/// # Safety
/// `from` must cover the rows, `to` must have room for them.
pub unsafe fn unpack<T: Element>(simd: Simd, from: *const T, step: usize, rows: usize, to: *mut f32) {
    // SAFETY: passed on from the caller; a `Simd` of a level exists only where its instructions do.
    unsafe {
        match simd.level() {
            Level::Portable => {
                for at in 0..rows * WIDTH {
                    *to.add(at) = (*from.add(at / WIDTH * step + at % WIDTH)).f32();
                }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unpack_avx2(from, step, rows, to),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unpack_avx512(from, step, rows, to),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_avx2<T: Element>(from: *const T, step: usize, rows: usize, to: *mut f32) {
    for row in 0..rows {
        for at in (0..WIDTH).step_by(8) {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_ps(to.add(row * WIDTH + at), T::eight(from.add(row * step + at))) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn unpack_avx512<T: Element>(from: *const T, step: usize, rows: usize, to: *mut f32) {
    for row in 0..rows {
        for at in (0..WIDTH).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to.add(row * WIDTH + at), T::sixteen(from.add(row * step + at))) };
        }
    }
}
