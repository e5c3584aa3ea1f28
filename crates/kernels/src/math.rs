//! The exponential that all ops share. Plain arithmetic on purpose: it vectorises, and every path gives the same bits.

/// Below this a f32 exponential is no longer a normal number; it is taken as 0, so that a hidden key weighs nothing.
const SMALLEST: f32 = -87.0;
const LARGEST: f32 = 88.0;

/// Adding this to a small float leaves the nearest integer (ties to even) in its low bits.
pub const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts: the first has so few bits that its products with exponents are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` within 2e-7 of it, relatively: `2^n e^r`, with `|r| <= ln(2) / 2` and Taylor's sum up to `r^7`. Exactly 1 at 0 and
/// exactly 0 below -87. NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let held = if x > LARGEST { LARGEST } else { x };
    let shifted = held.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, held));
    let mut sum = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = r.mul_add(sum, c);
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < SMALLEST { 0.0 } else { sum * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential() {
        for i in -880_000..=880_000 {
            let x = i as f32 / 10_000.0;
            let (got, true_) = (exp(x) as f64, (x as f64).exp());
            let allowed = if x < SMALLEST { 2e-38 } else { 2e-7 * true_ };
            assert!((got - true_).abs() <= allowed, "exp({x}) = {got}, not {true_}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(1000.0), exp(LARGEST));
        assert!(exp(f32::NAN).is_nan());
    }
}
