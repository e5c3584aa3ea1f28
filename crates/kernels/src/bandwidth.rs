//! How fast this machine reads memory: the ceiling that a figure of bytes per second is a share of. Knows a thread pool;
//! refuses to know what else is measured beside it.

use std::hint::black_box;
use std::time::Instant;

use crate::pool::Pool;
use crate::simd::per_path;

/// More than any cache holds.
const BUFFER_BYTES: usize = 512 << 20;
/// What a thread claims at a time: large beside a claim's cost, small beside the buffer.
const UNIT_BYTES: usize = 1 << 20;
const PASSES: usize = 5;
const WORD_BYTES: usize = size_of::<u64>();

/// Bytes per second of all threads of `pool` reading 512 MiB front to back together: the median of five passes behind
/// one that touches the pages.
pub fn read_bytes_per_s(pool: &Pool) -> f64 {
    let mut words = vec![0u64; BUFFER_BYTES / WORD_BYTES];
    pool.chunks(&mut words, UNIT_BYTES / WORD_BYTES, |unit, part| part.fill(unit as u64));
    let mut seconds: Vec<f64> = (0..=PASSES)
        .map(|_| {
            let began = Instant::now();
            pool.run(words.len().div_ceil(UNIT_BYTES / WORD_BYTES), |unit| {
                let start = unit * (UNIT_BYTES / WORD_BYTES);
                black_box(sum(pool.simd(), &words[start..][..UNIT_BYTES / WORD_BYTES]));
            });
            began.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    BUFFER_BYTES as f64 / seconds[PASSES / 2]
}

per_path! {
    // As plain as it can be: the compiler makes wide registers of it, side by side. Sums kept in an array by hand went through
    // memory and read a sixth of this (6 of 35 GB/s).
    fn sum(words: &[u64]) -> u64 {
        words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Simd;

    #[test]
    fn every_path_reads_every_word() {
        let words: Vec<u64> =
            (0..(UNIT_BYTES / WORD_BYTES) as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
        let expected = words.iter().map(|word| u128::from(*word)).sum::<u128>() as u64;
        for simd in Simd::available() {
            assert_eq!(sum(simd, &words), expected, "{}", simd.name());
        }
    }
}
