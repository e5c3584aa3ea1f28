//! How many multiply-adds the processor does when it does nothing else: what a product is measured against, and what a
//! run's length is foretold from. Refuses to know any op.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::hint::black_box;
use std::time::Instant;

use crate::pool::Pool;
use crate::simd::{Level, Simd};

/// Chains side by side: more than the steps a multiply-add takes times those a processor starts at once.
const CHAINS: usize = 12;

/// Steps of each chain between two looks at the clock.
const STEPS: usize = 200_000;

/// Operations (two a multiply-add) per second in f32 of all threads of the pool together, the best of a few tries of
/// about a millisecond each.
pub fn flops(pool: &Pool) -> f64 {
    let threads = pool.threads();
    let try_ = || {
        let start = Instant::now();
        // More units than threads: one that starts late does fewer.
        let units = 4 * threads;
        pool.run(units, |_| chains(pool.simd()));
        (units * CHAINS * STEPS * 2 * lanes(pool.simd())) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| try_()).fold(0.0, f64::max)
}

fn lanes(simd: Simd) -> usize {
    match simd.level() {
        Level::Portable => 1,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => 8,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => 16,
    }
}

fn chains(simd: Simd) {
    // SAFETY: a `Simd` of a level exists only if the processor has its features.
    match simd.level() {
        Level::Portable => portable(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2() },
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512() },
    }
}

fn portable() {
    let (mut sums, by) = ([1f32; CHAINS], black_box(0.999));
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = sum.mul_add(by, by));
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2() {
    let by = _mm256_set1_ps(black_box(0.999));
    let mut sums = [by; CHAINS];
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, by, by));
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512() {
    let by = _mm512_set1_ps(black_box(0.999));
    let mut sums = [by; CHAINS];
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, by, by));
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_a_speed() {
        for simd in Simd::available() {
            let speed = flops(&Pool::with_simd(2, simd));
            assert!(speed.is_finite() && speed > 1e6, "{} does {speed} operations a second", simd.name());
        }
    }
}
