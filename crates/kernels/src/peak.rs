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

/// Seconds that all threads of this process together have been on a processor; 0 where the system does not tell. Beside
/// other work it says what a run takes, where a clock says how long it waited.
pub fn processor_seconds() -> f64 {
    #[cfg(target_os = "linux")]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the clock is written to a value of our own.
        if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } == 0 {
            return time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        }
    }
    0.0
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
    #[cfg(target_os = "linux")]
    fn what_was_worked_is_told_whoever_else_works() {
        let before = processor_seconds();
        chains(Simd::best());
        assert!(processor_seconds() > before && before > 0.0);
    }

    #[test]
    fn every_path_has_a_speed() {
        for simd in Simd::available() {
            let speed = flops(&Pool::with_simd(2, simd));
            assert!(speed.is_finite() && speed > 1e6, "{} does {speed} operations a second", simd.name());
        }
    }
}
