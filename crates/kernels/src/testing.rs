//! What the tests of several ops share: random inputs whose seed can be printed, and equality to the bit.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

pub struct Random {
    pub seed: u64,
    rng: SmallRng,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { seed, rng: SmallRng::seed_from_u64(seed) }
    }

    pub fn fresh() -> Random {
        Random::new(rand::random())
    }

    pub fn uniform(&mut self) -> f32 {
        self.rng.random()
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.rng.random_range(0..limit)
    }

    /// Roughly normal, mean 0, deviation 1.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0).collect()
    }
}

pub fn same_bits(expected: &[f32], got: &[f32], case: impl Fn() -> String) {
    assert_eq!(expected.len(), got.len(), "{}", case());
    for (i, (a, b)) in expected.iter().zip(got).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "value {i} is {b}, not {a}: {}", case());
    }
}

/// The error function by its Taylor series, which converges everywhere; f64 holds it up to 5.
pub fn erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
