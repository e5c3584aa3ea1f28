//! Values by position: any block of a tensor can be made without those before it, by any thread, on any machine with the
//! same bits. Refuses to know tensors and files.
//!
//! A 64-bit counter is mixed (the finaliser of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
//! generators", 2014) and each 16 of its bits pick one of 4,096 quantiles of the normal distribution, already scaled and in
//! the wanted precision. The table comes from additions, products, quotients and roots alone, which IEEE 754 defines to
//! the bit; a library's exponential is not.

use candle_core::{DType, Device, Result, Tensor};
use sha2::{Digest, Sha256};

use super::Fill;

/// Quantiles of the normal distribution. In 16 bits each they fit the first-level cache.
const QUANTILES: usize = 4096;
/// Steps from one quantile to the next.
const STEPS: usize = 64;
const SQRT_TAU: f64 = 2.506_628_274_631_000_5;
/// The odd constant of SplitMix64.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
/// Values that one number makes.
const PER_NUMBER: usize = 4;

/// The quantiles in the precision they are wanted in.
pub(super) enum Values {
    Two(Box<[[u8; 2]; QUANTILES]>),
    Four(Box<[[u8; 4]; QUANTILES]>),
}

impl Values {
    pub fn of(fill: Fill, dtype: DType) -> Result<Self> {
        let scaled = |deviation: f32, middle: f64| -> Vec<f32> {
            quantiles().into_iter().map(|z| (z * f64::from(deviation) + middle) as f32).collect()
        };
        let values: Vec<f32> = match fill {
            Fill::Ones => vec![1.0; QUANTILES],
            Fill::Normal(deviation) => scaled(deviation, 0.0),
            Fill::NearOne(deviation) => scaled(deviation, 1.0),
        };
        let mut bytes = Vec::new();
        Tensor::from_vec(values, QUANTILES, &Device::Cpu)?.to_dtype(dtype)?.write_bytes(&mut bytes)?;
        match dtype.size_in_bytes() {
            2 => Ok(Self::Two(table(&bytes))),
            4 => Ok(Self::Four(table(&bytes))),
            size => candle_core::bail!("values of {size} bytes are not made"),
        }
    }

    /// The bytes of a tensor from `offset` on, which is a multiple of the bytes that one number makes.
    pub fn fill(&self, key: u64, offset: usize, out: &mut [u8]) {
        match self {
            Self::Two(table) => fill(table, key, offset, out),
            Self::Four(table) => fill(table, key, offset, out),
        }
    }
}

fn table<const SIZE: usize>(bytes: &[u8]) -> Box<[[u8; SIZE]; QUANTILES]> {
    let mut table = Box::new([[0; SIZE]; QUANTILES]);
    table.iter_mut().zip(bytes.chunks_exact(SIZE)).for_each(|(to, from)| to.copy_from_slice(from));
    table
}

fn fill<const SIZE: usize>(table: &[[u8; SIZE]; QUANTILES], key: u64, offset: usize, out: &mut [u8]) {
    let mut counter = (offset / (PER_NUMBER * SIZE)) as u64;
    let four = |counter: u64| {
        let number = mix(key.wrapping_add(counter.wrapping_mul(GAMMA)));
        [0, 16, 32, 48].map(|shift| table[(number >> shift) as usize % QUANTILES])
    };
    let mut groups = out.chunks_exact_mut(PER_NUMBER * SIZE);
    for group in &mut groups {
        group.copy_from_slice(four(counter).as_flattened());
        counter += 1;
    }
    let rest = groups.into_remainder();
    rest.copy_from_slice(&four(counter).as_flattened()[..rest.len()]);
}

/// Where a tensor's numbers begin.
pub(super) fn key(seed: u64, tensor: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(tensor).finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// The normal distribution's quantiles at (i + 1/2) / QUANTILES, scaled to a deviation of exactly 1: from the middle
/// outwards by the differential equation dz/dp = sqrt(tau) exp(z^2 / 2), in Runge-Kutta steps.
fn quantiles() -> Vec<f64> {
    let slope = |z: f64| SQRT_TAU * exp(z * z / 2.0);
    let step = 1.0 / (QUANTILES * STEPS) as f64;
    let mut z = 0.0;
    let mut upper = Vec::with_capacity(QUANTILES / 2);
    for index in 0..QUANTILES / 2 {
        for _ in 0..if index == 0 { STEPS / 2 } else { STEPS } {
            let a = slope(z);
            let b = slope(z + step / 2.0 * a);
            let c = slope(z + step / 2.0 * b);
            let d = slope(z + step * c);
            z += step / 6.0 * (a + 2.0 * b + 2.0 * c + d);
        }
        upper.push(z);
    }
    let squares: f64 = upper.iter().map(|z| z * z).sum();
    let deviation = (squares / upper.len() as f64).sqrt();
    let lower = upper.iter().rev().map(|z| -z / deviation);
    lower.chain(upper.iter().map(|z| z / deviation)).collect()
}

/// e^x for x from 0 to 8: eight terms at x / 64, squared six times.
fn exp(x: f64) -> f64 {
    let small = x / 64.0;
    let mut sum = 1.0;
    for n in (1..=8).rev() {
        sum = 1.0 + small / f64::from(n) * sum;
    }
    (0..6).fold(sum, |power, _| power * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quantiles_are_those_of_the_normal_distribution() {
        let all = quantiles();
        assert_eq!(all.len(), QUANTILES);
        assert!(all.is_sorted() && all.iter().zip(all.iter().rev()).all(|(a, b)| *a == -b));
        // Tables of the normal distribution: 1.2816 at 0.9, 2.3263 at 0.99.
        let at = |share: f64| all[(share * QUANTILES as f64) as usize];
        assert!((at(0.9) - 1.2816).abs() < 5e-3 && (at(0.99) - 2.3263).abs() < 5e-3, "{} {}", at(0.9), at(0.99));
        assert!((exp(2.0) - 2.0f64.exp()).abs() < 1e-9);
    }

    #[test]
    fn a_block_is_the_same_with_or_without_what_is_before_it() {
        for dtype in [DType::F32, DType::BF16] {
            let values = Values::of(Fill::Normal(0.5), dtype).unwrap();
            let (mut whole, mut part) = (vec![0; 1030], vec![0; 1030 - 512]);
            values.fill(7, 0, &mut whole);
            values.fill(7, 512, &mut part);
            assert_eq!(whole[512..], part);
            values.fill(8, 0, &mut part);
            assert_ne!(whole[..part.len()], part, "another tensor has other values");
        }
    }

    #[test]
    fn values_have_the_mean_and_the_deviation_that_were_asked_for() {
        let mut bytes = vec![0; 4 << 16];
        Values::of(Fill::Normal(0.02), DType::F32).unwrap().fill(key(3, "a"), 0, &mut bytes);
        let values: Vec<f64> =
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let deviation = (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
        assert!(mean.abs() < 4e-4 && (deviation / 0.02 - 1.0).abs() < 0.02, "{mean} {deviation}");
    }
}
