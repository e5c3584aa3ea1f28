//! The weights that sampling draws from: a softmax before its division. Refuses to know how a token is chosen.
//!
//! Floors for SmolLM2's 49,152 logits: about 14 operations a value, 35 us on one AVX2 core; 0.4 MB read and written, 14 us
//! at 28 GB/s.

use crate::math::exp;
use crate::simd::{Simd, per_path};

/// Partial sums side by side: the order of the sum is the same on every path.
const LANES: usize = 8;

/// Turns logits into `e^((logit - max) / temperature)`, in place, and returns their sum. `max` is the greatest logit, so
/// no weight is above 1; `temperature` is above 0.
pub fn weigh(logits: &mut [f32], max: f32, temperature: f32) -> f64 {
    one(Simd::best(), logits, max, 1.0 / temperature)
}

per_path! {
    fn one(logits: &mut [f32], max: f32, by: f32) -> f64 {
        let mut sums = [0f64; LANES];
        let (chunks, rest) = logits.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (logit, sum) in chunk.iter_mut().zip(&mut sums) {
                *logit = exp((*logit - max) * by);
                *sum += f64::from(*logit);
            }
        }
        let mut total = sums.iter().sum::<f64>();
        for logit in rest {
            *logit = exp((*logit - max) * by);
            total += f64::from(*logit);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, same_bits};

    #[test]
    fn it_equals_f64_and_has_the_same_bits_on_every_path() {
        let mut random = Random::fresh();
        for length in [1, 7, 8, 9, 1000, 49_152] {
            let logits: Vec<f32> = random.normal(length).iter().map(|v| v * 9.0).collect();
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut first: Option<(Vec<f32>, f64)> = None;
            for simd in Simd::available() {
                let mut weights = logits.clone();
                let total = one(simd, &mut weights, max, 1.0 / 0.7);
                let (same, sum) = first.get_or_insert_with(|| (weights.clone(), total));
                let case = || format!("{length} on {}, seed {}", simd.name(), random.seed);
                same_bits(same, &weights, case);
                assert_eq!(*sum, total, "{}", case());
                let expected = |logit: &f32| (f64::from(logit - max) / 0.7).exp();
                for (weight, logit) in weights.iter().zip(&logits) {
                    assert!(
                        (f64::from(*weight) - expected(logit)).abs() <= 3e-5 * expected(logit) + 1e-37,
                        "{}",
                        case()
                    );
                }
                let sum: f64 = logits.iter().map(expected).sum();
                assert!((total - sum).abs() <= 1e-5 * sum, "{}", case());
            }
        }
    }

    #[test]
    fn what_was_ruled_out_weighs_nothing() {
        let mut logits = [f32::NEG_INFINITY, 2.0, 2.0, -500.0];
        assert_eq!(weigh(&mut logits, 2.0, 0.5), 2.0);
        assert_eq!(logits, [0.0, 1.0, 1.0, 0.0]);
    }
}
