//! SiLU, CLIP's quick GELU and the gated GELU, value by value. Refuses to know the products around them.
//!
//! Floors: 16 to 30 operations a value and 8 or 12 bytes of it read and written; GEGLU of 4,096 rows of 5,120 is 10 million
//! results, 126 MB, 4.5 ms at 28 GB/s.

use crate::math::exp;
use crate::pool::Pool;
use crate::simd::per_path;

/// Values one unit of work computes at least: about 5 us.
const VALUES_PER_UNIT: usize = 8 << 10;

/// What stands before `x` in quick GELU's sigmoid.
const QUICK: f32 = 1.702;

/// `y = x / (1 + e^-x)`.
pub fn silu(x: &[f32], y: &mut [f32], pool: &Pool) {
    scaled(x, 1.0, y, pool);
}

/// `y = x / (1 + e^(-1.702 x))`.
pub fn quick_gelu(x: &[f32], y: &mut [f32], pool: &Pool) {
    scaled(x, QUICK, y, pool);
}

fn scaled(x: &[f32], by: f32, y: &mut [f32], pool: &Pool) {
    assert_eq!(x.len(), y.len());
    pool.chunks(y, VALUES_PER_UNIT, |unit, y| swish(pool.simd(), &x[unit * VALUES_PER_UNIT..][..y.len()], by, y));
}

/// `y = x * gelu(gate)`: each row of `both` is `ff` values, then `ff` gates, rows `stride` apart.
pub fn geglu(both: &[f32], stride: usize, ff: usize, y: &mut [f32], pool: &Pool) {
    assert!(ff > 0 && y.len().is_multiple_of(ff) && stride >= 2 * ff, "y is [rows, {ff}]");
    let per_unit = (VALUES_PER_UNIT / ff).max(1);
    pool.chunks(y, per_unit * ff, |unit, y| {
        for (i, y) in y.chunks_exact_mut(ff).enumerate() {
            let (x, gate) = both[(unit * per_unit + i) * stride..][..2 * ff].split_at(ff);
            y.copy_from_slice(gate);
            crate::gelu::one(pool.simd(), y);
            y.iter_mut().zip(x).for_each(|(y, x)| *y *= x);
        }
    });
}

per_path! {
    /// On one thread.
    fn swish(x: &[f32], by: f32, y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x / (1.0 + exp(-by * x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Simd;
    use crate::testing::{Random, erf, same_bits};

    #[test]
    fn they_equal_f64_with_the_same_bits_on_every_path_and_thread_count() {
        let mut random = Random::fresh();
        for ff in [1, 5, 33, 1280, 9_000] {
            let rows = 1 + random.below(9);
            let x = random.normal(rows * 2 * ff);
            let mut first: Option<Vec<f32>> = None;
            for (simd, threads) in Simd::available().into_iter().flat_map(|s| [(s, 1), (s, 3)]) {
                let pool = Pool::with_simd(threads, simd);
                let case = || format!("{ff} wide on {}, seed {}", simd.name(), random.seed);
                let (mut gated, mut soft, mut quick) = (vec![0f32; rows * ff], x.clone(), x.clone());
                geglu(&x, 2 * ff, ff, &mut gated, &pool);
                silu(&x, &mut soft, &pool);
                quick_gelu(&x, &mut quick, &pool);
                let all = [&gated[..], &soft, &quick].concat();
                same_bits(first.get_or_insert_with(|| all.clone()), &all, case);
                for (i, y) in gated.iter().enumerate() {
                    let at = i / ff * 2 * ff + i % ff;
                    let (x, gate) = (f64::from(x[at]), f64::from(x[at + ff]));
                    let expected = x * gate * 0.5 * (1.0 + erf(gate / 2f64.sqrt()));
                    assert!((f64::from(*y) - expected).abs() < 4e-6, "{y}, not {expected}: {}", case());
                }
                for (by, y) in [(1.0, &soft), (1.702, &quick)] {
                    for (x, y) in x.iter().zip(y) {
                        let expected = f64::from(*x) / (1.0 + (-by * f64::from(*x)).exp());
                        assert!((f64::from(*y) - expected).abs() < 2e-6, "{y}, not {expected}: {}", case());
                    }
                }
            }
        }
    }
}
