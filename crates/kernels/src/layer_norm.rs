//! Layer norm. Refuses to know where in a network it stands.
//!
//! Floors for Whisper base (512 features, 13 norms of 1,500 rows a window): 6 MB read and written each, 40 MB a window, 1.4
//! ms at 28 GB/s.

use crate::pool::Pool;
use crate::simd::per_path;

/// Values one unit of work norms at least: about 10 us.
const VALUES_PER_UNIT: usize = 16 << 10;

/// Sums side by side, added up pairwise at the end: a fixed order, and wide enough for every path.
const LANES: usize = 16;

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias` on every row of `[rows, weight.len()]`; rows of `x` are
/// `x_stride` apart.
pub fn layer_norm(x: &[f32], x_stride: usize, weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32], pool: &Pool) {
    let width = weight.len();
    assert!(width > 0 && bias.len() == width && y.len().is_multiple_of(width) && x_stride >= width, "[rows, {width}]");
    let per_unit = (VALUES_PER_UNIT / width).max(1);
    pool.chunks(y, per_unit * width, |unit, y| {
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            one(pool.simd(), &x[(unit * per_unit + i) * x_stride..][..width], weight, bias, eps, y);
        }
    });
}

/// The sum of the lanes, pairwise.
#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    let mut lanes = LANES;
    while lanes > 1 {
        lanes /= 2;
        for i in 0..lanes {
            sums[i] += sums[i + lanes];
        }
    }
    sums[0]
}

per_path! {
    fn one(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let (whole, rest) = x.as_chunks::<LANES>();
        let mut sums = [0f32; LANES];
        for (sum, v) in sums.iter_mut().zip(rest) {
            *sum += v;
        }
        for x in whole {
            for (sum, v) in sums.iter_mut().zip(x) {
                *sum += v;
            }
        }
        let mean = total(sums) / x.len() as f32;
        let mut squares = [0f32; LANES];
        for (sum, v) in squares.iter_mut().zip(rest) {
            *sum = (v - mean).mul_add(v - mean, *sum);
        }
        for x in whole {
            for (sum, v) in squares.iter_mut().zip(x) {
                *sum = (v - mean).mul_add(v - mean, *sum);
            }
        }
        let scale = 1.0 / (total(squares) / x.len() as f32 + eps).sqrt();
        for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = ((x - mean) * scale).mul_add(*weight, *bias);
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
        for width in [2, 7, 16, 31, 384, 512, 513, 1280] {
            let (rows, stride) = (1 + random.below(70), width + 5);
            let x: Vec<f32> = random.normal(rows * stride).iter().map(|v| v * 3.0 + 1.0).collect();
            let (weight, bias) = (random.normal(width), random.normal(width));
            let mut first: Option<Vec<f32>> = None;
            for (simd, threads) in Simd::available().into_iter().flat_map(|s| [(s, 1), (s, 3)]) {
                let mut y = vec![f32::NAN; rows * width];
                layer_norm(&x, stride, &weight, &bias, 1e-5, &mut y, &Pool::with_simd(threads, simd));
                let case = || format!("{width} wide on {}, seed {}", simd.name(), random.seed);
                same_bits(first.get_or_insert_with(|| y.clone()), &y, case);
                for (x, y) in x.chunks(stride).zip(y.chunks(width)) {
                    let mean = x[..width].iter().map(|v| *v as f64).sum::<f64>() / width as f64;
                    let variance = x[..width].iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let normal = (x[i] as f64 - mean) / (variance + 1e-5).sqrt();
                        let expected = normal * weight[i] as f64 + bias[i] as f64;
                        assert!((y[i] as f64 - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{}", case());
                    }
                }
            }
        }
    }
}
