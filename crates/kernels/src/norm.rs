//! RMS norm. Refuses to know where in a network it stands.
//!
//! Floors for SmolLM2 (576 features, 61 norms a token): it reads and writes 4.6 kB a row, from the cache; at one fused
//! multiply-add per value, twice, 70 ns a row on one AVX2 core. 512 rows: 61 x 36 us = 2.2 ms of a prefill.

use crate::pool::Pool;
use crate::simd::per_path;

/// Values one unit of work norms at least: about 10 us.
const VALUES_PER_UNIT: usize = 16 << 10;

/// Sums side by side, added up pairwise at the end: a fixed order, and wide enough for every path.
const LANES: usize = 16;

/// `y = x / sqrt(mean(x^2) + eps) * weight` on every row of `[rows, weight.len()]`; rows of `x` are `x_stride` apart.
pub fn rms_norm(x: &[f32], x_stride: usize, weight: &[f32], eps: f32, y: &mut [f32], pool: &Pool) {
    let width = weight.len();
    assert!(width > 0 && y.len().is_multiple_of(width) && x_stride >= width, "y is [rows, {width}]");
    let per_unit = (VALUES_PER_UNIT / width).max(1);
    pool.chunks(y, per_unit * width, |unit, y| {
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            one(pool.simd(), &x[(unit * per_unit + i) * x_stride..][..width], weight, eps, y);
        }
    });
}

per_path! {
    fn one(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let mut sums = [0f32; LANES];
        let whole = x.chunks_exact(LANES);
        for (sum, v) in sums.iter_mut().zip(whole.remainder()) {
            *sum = v.mul_add(*v, *sum);
        }
        for x in whole {
            for (sum, v) in sums.iter_mut().zip(x) {
                *sum = v.mul_add(*v, *sum);
            }
        }
        let mut lanes = LANES;
        while lanes > 1 {
            lanes /= 2;
            for i in 0..lanes {
                sums[i] += sums[i + lanes];
            }
        }
        let scale = 1.0 / (sums[0] / x.len() as f32 + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Simd;
    use crate::testing::{Random, same_bits};

    #[test]
    fn it_equals_f64_on_odd_widths_and_every_path_and_thread_count() {
        let mut random = Random::fresh();
        for width in [1, 7, 16, 31, 64, 576, 577, 4096] {
            let (rows, stride) = (1 + random.below(70), width + 5);
            let (x, weight) = (random.normal(rows * stride), random.normal(width));
            let mut first: Option<Vec<f32>> = None;
            for (simd, threads) in Simd::available().into_iter().flat_map(|s| [(s, 1), (s, 3)]) {
                let mut y = vec![f32::NAN; rows * width];
                rms_norm(&x, stride, &weight, 1e-5, &mut y, &Pool::with_simd(threads, simd));
                let case = || format!("{width} wide on {}, seed {}", simd.name(), random.seed);
                same_bits(first.get_or_insert_with(|| y.clone()), &y, case);
                for (x, y) in x.chunks(stride).zip(y.chunks(width)) {
                    let mean = x[..width].iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let expected = x[i] as f64 / (mean + 1e-5).sqrt() * weight[i] as f64;
                        assert!((y[i] as f64 - expected).abs() <= 1e-6 * expected.abs() + 1e-9, "{}", case());
                    }
                }
            }
        }
    }
}
