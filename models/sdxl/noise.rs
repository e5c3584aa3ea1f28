//! Unit normal noise from a prediction's seed. A value hangs on the seed, the image's number, what it is drawn for and its
//! place in the tensor alone: not on the device, the number of outputs, or what was drawn before. Refuses to know what the
//! noise is for.
//!
//! [`kernels::sample::uniform`] (SplitMix64's finisher over seed and place) gives a number per value, and the normal
//! distribution's quantile function makes it normal: Wichura, "Algorithm AS 241: The Percentage Points of the Normal
//! Distribution", 1988, its 16-digit variant, in f64. That takes additions, products, quotients, a root and a logarithm; the
//! logarithm is made of the others here, because a library's is not the same to the bit on every system. So the noise is.
//! It is not PyTorch's: a hosted seed gives another image here.

use candle_core::{Device, Result, Tensor};
use kernels::sample::uniform;

/// What noise is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The latents that a run begins with.
    Start,
    /// The sample of the distribution that the VAE encodes an image to.
    Encoded,
    /// The same of the image without what the mask covers.
    EncodedMasked,
    /// The start of the refiner on a finished image.
    Refined,
    /// What the scheduler draws, by calls of the net so far.
    Step(usize),
}

/// Where a run's noise comes from: a seed, or a record of somebody else's.
pub trait Noise: Send {
    /// Unit normal, f32, of this shape; latents are `[1, height, width, channels]`.
    fn draw(&mut self, what: Use, shape: &[usize], device: &Device) -> Result<Tensor>;
}

/// The noise of one image of a prediction.
#[derive(Debug, Clone, Copy)]
pub struct Seeded {
    pub seed: u64,
    /// Counted from 0.
    pub image: u8,
}

/// Values of one draw: the places of two draws never meet below this.
const MOST_VALUES: usize = 1 << 32;

impl Seeded {
    fn values(self, what: Use, count: usize) -> impl Iterator<Item = f32> {
        let stream = match what {
            Use::Start => 0,
            Use::Encoded => 1,
            Use::EncodedMasked => 2,
            Use::Refined => 3,
            Use::Step(calls) => 4 + calls as u64,
        };
        let first = stream << 40 | u64::from(self.image) << 32;
        (0..count as u64).map(move |at| normal(uniform(self.seed, first | at)) as f32)
    }
}

impl Noise for Seeded {
    /// In the order of NCHW, so that the picture of the noise does not hang on how a device lays out its tensors.
    fn draw(&mut self, what: Use, shape: &[usize], device: &Device) -> Result<Tensor> {
        let [batch, height, width, channels] = *shape else {
            candle_core::bail!("noise of shape {shape:?}; [batch, height, width, channels] is drawn");
        };
        let count = shape.iter().product::<usize>();
        if count >= MOST_VALUES {
            candle_core::bail!("noise of {count} values; fewer than {MOST_VALUES} are drawn");
        }
        let values: Vec<f32> = self.values(what, count).collect();
        let noise = Tensor::from_vec(values, (batch, channels, height, width), &Device::Cpu)?;
        noise.permute((0, 2, 3, 1))?.contiguous()?.to_device(device)
    }
}

/// A number from `[0, 1)` made normal: symmetric, finite, at most 8.3 from 0.
fn normal(uniform: f64) -> f64 {
    /// Their middles are numbers of f64.
    const CELLS: f64 = (1u64 << 52) as f64;
    quantile(((uniform * CELLS).floor() + 0.5) / CELLS)
}

/// Below which a share `p` of the normal distribution lies; 0 < p < 1.
fn quantile(p: f64) -> f64 {
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180625 - q * q;
        return q * horner(&CENTRE.0, r) / horner(&CENTRE.1, r);
    }
    let r = (-ln(if q < 0.0 { p } else { 1.0 - p })).sqrt();
    let (table, r) = if r <= 5.0 { (&MIDDLE, r - 1.6) } else { (&TAIL, r - 5.0) };
    (horner(&table.0, r) / horner(&table.1, r)).copysign(q)
}

/// Coefficients from the highest power down.
fn horner(coefficients: &[f64; 8], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

/// The natural logarithm of a normal number: the exponent apart, and the series of atanh for the rest.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut rest = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if rest > std::f64::consts::SQRT_2 {
        rest /= 2.0;
        exponent += 1;
    }
    // |s| is at most 0.172: eleven terms are enough for the last bit.
    let s = (rest - 1.0) / (rest + 1.0);
    let series = (0..11).rev().fold(0.0, |sum, n| sum * s * s + 1.0 / f64::from(2 * n + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

type Fraction = ([f64; 8], [f64; 8]);

const CENTRE: Fraction = (
    [
        2509.0809287301227,
        33430.57558358813,
        67265.7709270087,
        45921.95393154987,
        13731.69376550946,
        1971.5909503065513,
        133.14166789178438,
        3.3871328727963665,
    ],
    [
        5226.495278852854,
        28729.085735721943,
        39307.89580009271,
        21213.794301586597,
        5394.196021424751,
        687.1870074920579,
        42.31333070160091,
        1.0,
    ],
);
const MIDDLE: Fraction = (
    [
        0.0007745450142783414,
        0.022723844989269184,
        0.2417807251774506,
        1.2704582524523684,
        3.6478483247632045,
        5.769497221460691,
        4.630337846156546,
        1.4234371107496835,
    ],
    [
        1.0507500716444169e-09,
        0.0005475938084995345,
        0.015198666563616457,
        0.14810397642748008,
        0.6897673349851,
        1.6763848301838038,
        2.053191626637759,
        1.0,
    ],
);
const TAIL: Fraction = (
    [
        2.0103343992922881e-07,
        2.7115555687434876e-05,
        0.0012426609473880784,
        0.026532189526576124,
        0.29656057182850487,
        1.7848265399172913,
        5.463784911164114,
        6.657904643501103,
    ],
    [
        2.0442631033899397e-15,
        1.421511758316446e-07,
        1.8463183175100548e-05,
        0.0007868691311456133,
        0.014875361290850615,
        0.1369298809227358,
        0.599832206555888,
        1.0,
    ],
);

#[cfg(test)]
mod tests {
    use super::*;

    fn start(seed: u64, image: u8) -> Vec<f32> {
        Seeded { seed, image }.values(Use::Start, 4096).collect()
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // Python's statistics.NormalDist().inv_cdf.
        let known = [
            (0.5, 0.0),
            (0.75, 0.6744897501960817),
            (0.975, 1.9599639845400536),
            (1e-3, -3.090232306167813),
            (1e-10, -6.361340902404056),
            (1e-13, -7.3487961028006765),
        ];
        for (p, z) in known {
            assert!((quantile(p) - z).abs() < 4e-15 * z.abs().max(1.0), "{p}: {} and not {z}", quantile(p));
        }
        assert!((1..2000).all(|n| normal(f64::from(n) / 2000.0) > normal(f64::from(n - 1) / 2000.0)));
        assert!(normal(0.0) < -8.0 && normal(0.0).is_finite() && normal(1.0 - f64::EPSILON / 2.0).is_finite());
    }

    #[test]
    fn the_logarithm_is_the_logarithm() {
        for x in [1e-300, 1e-16, 1.0 / 3.0, 0.5, 0.7072, 1.0, 1.5, 123456.789] {
            assert!((ln(x) - x.ln()).abs() <= 4.0 * f64::EPSILON * x.ln().abs().max(1.0), "{x}: {} {}", ln(x), x.ln());
        }
    }

    #[test]
    fn noise_has_mean_0_and_deviation_1_and_tails() {
        let values: Vec<f64> = Seeded { seed: 9, image: 0 }.values(Use::Start, 1 << 20).map(f64::from).collect();
        let count = values.len() as f64;
        let moment = |power: i32| values.iter().map(|value| value.powi(power)).sum::<f64>() / count;
        assert!(moment(1).abs() < 4e-3, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 8e-3, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.06, "{}", moment(4));
        let beyond = values.iter().filter(|value| value.abs() > 4.0).count();
        assert!((30..110).contains(&beyond), "{beyond} beyond 4 of 66 that are to be expected");
    }

    #[test]
    fn every_image_every_seed_and_every_use_has_noise_of_its_own() {
        let one = Seeded { seed: 1, image: 0 };
        let draw = |noise: Seeded, what| noise.values(what, 4096).collect::<Vec<f32>>();
        let all = [
            start(1, 0),
            start(1, 1),
            start(2, 0),
            draw(one, Use::Encoded),
            draw(one, Use::EncodedMasked),
            draw(one, Use::Refined),
            draw(one, Use::Step(0)),
            draw(one, Use::Step(1)),
        ];
        for (number, a) in all.iter().enumerate() {
            for b in &all[number + 1..] {
                let product: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() / a.len() as f32;
                assert!(product.abs() < 0.08, "{product}");
            }
        }
    }

    #[test]
    fn a_seed_means_the_same_noise_for_ever() {
        let first: Vec<u32> = start(42, 0)[..4].iter().map(|value| value.to_bits()).collect();
        // 0.51790106, -2.2448933, 1.4405663, 0.28678906
        assert_eq!(first, FOREVER);
    }

    const FOREVER: [u32; 4] = [0x3F04_952A, 0xC00F_AC55, 0x3FB8_647A, 0x3E92_D604];

    #[test]
    fn noise_is_drawn_channel_by_channel() {
        let draw = |shape: [usize; 4]| Seeded { seed: 3, image: 1 }.draw(Use::Start, &shape, &Device::Cpu).unwrap();
        let noise = draw([1, 2, 3, 4]);
        assert_eq!(noise.dims(), [1, 2, 3, 4]);
        let planes: Vec<f32> = Seeded { seed: 3, image: 1 }.values(Use::Start, 24).collect();
        let turned = noise.permute((0, 3, 1, 2)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(turned, planes);
        assert!(Seeded { seed: 3, image: 1 }.draw(Use::Start, &[4, 4], &Device::Cpu).is_err());
    }
}
