//! What needs no kernel: packing loses nothing that it says it keeps, and what does not fit is refused.

use super::*;
use crate::cuda::call::Gpu;
use crate::cuda::params::Ptr;
use crate::cuda::product;
use crate::cuda::rows::{self, Choice};
use crate::cuda::weight::Planes;

#[test]
fn eight_bits_round_to_the_nearest() {
    let mut random = Random::fresh();
    let k = 64;
    let levels: Vec<f32> = (0..=255u8).filter_map(e4m3_value).collect();
    for _ in 0..200 {
        let mut values: Vec<f32> =
            (0..k).map(|_| (random.uniform() - 0.5) * 2f32.powi(random.below(22) as i32 - 13)).collect();
        values[5] = 448.0;
        let packed = Packed::new(Packing::Fp8, 1, k, |to| weight::scale_rows(Packing::Fp8, &values, 1, k, to)).unwrap();
        for (i, value) in values.iter().enumerate() {
            let place = i % 32 / 8 * 16 + i / 32 * 8 + i % 8 / 4 * 4 + [0, 2, 1, 3][i % 4];
            let got = e4m3_value(packed.quants[place]).unwrap();
            let nearest = levels.iter().map(|l| (l - value).abs()).fold(f32::INFINITY, f32::min);
            assert_eq!((got - value).abs(), nearest, "{value} became {got}, seed {}", random.seed);
        }
    }
}

#[test]
fn a_weight_of_another_size_is_refused_with_both() {
    let refused =
        |packing, k, fill: &dyn Fn(Planes) -> Result<(), String>| Packed::new(packing, 2, k, fill).unwrap_err();
    let plain = |to: Planes| weight::plain(&[0; 100], 2, 32, to);
    assert_eq!(refused(Packing::Plain, 32, &plain), "a plain weight of [2, 32] is 128 bytes, not 100");
    let blocks = |to: Planes| weight::blocks(Packing::Q4_1, &[0; 39], 2, 32, to);
    assert_eq!(refused(Packing::Q4_1, 32, &blocks), "a q4_1 weight of [2, 32] is 40 bytes, not 39");
    let uneven = |to: Planes| weight::blocks(Packing::Q8_0, &[], 2, 48, to);
    assert_eq!(refused(Packing::Q8_0, 48, &uneven), "no weight of [2, 48]: rows come in chunks of 32");
    let rows = |to: Planes| weight::scale_rows(Packing::Int8, &[0.0; 3], 2, 32, to);
    assert_eq!(refused(Packing::Int8, 32, &rows), "a weight of [2, 32] has 64 values, not 3");
    let elsewhere = |to: Planes| weight::plain(&[0; 64], 1, 32, to);
    assert_eq!(
        refused(Packing::Plain, 32, &elsewhere),
        "the planes of [1, 32] in plain are (64, 0) bytes, not (128, 0)"
    );
}

#[test]
fn what_was_in_the_planes_before_does_not_matter() {
    let mut random = Random::fresh();
    // Half of the last group of a row is empty.
    let (rows, k) = (3, 96);
    for packing in Packing::ALL {
        let (quants, scales) = packing.bytes(rows, k);
        let (mut quants, mut scales) = (vec![0xa5; quants], vec![0xa5; scales]);
        let values = random.normal(rows * k);
        let bytes = vec![0x3c; rows * k / 32 * 20];
        let fill = |to: Planes| match packing {
            Packing::Plain => weight::plain(&[7; 2 * 3 * 96], rows, k, to),
            Packing::Q8_0 => weight::blocks(packing, &[7; 3 * 3 * 34], rows, k, to),
            Packing::Q4_0 => weight::blocks(packing, &[7; 3 * 3 * 18], rows, k, to),
            Packing::Q4_1 => weight::blocks(packing, &bytes, rows, k, to),
            Packing::Int8 | Packing::Fp8 => weight::scale_rows(packing, &values, rows, k, to),
        };
        fill(Planes { quants: &mut quants, scales: &mut scales }).unwrap();
        let fresh = Packed::new(packing, rows, k, fill).unwrap();
        assert!(fresh.quants == quants && fresh.scales == scales, "{}, seed {}", packing.name(), random.seed);
    }
}

/// Q4_K by its definition in ggml: eight sub-blocks of 32, six-bit scales and minima in twelve bytes.
#[test]
fn q4_k_becomes_q4_1_within_the_rounding_of_its_scales() {
    let mut random = Random::fresh();
    for _ in 0..50 {
        let mut block: Vec<u8> = (0..144).map(|_| random.below(256) as u8).collect();
        let (d, dmin) = (f16::from_f32(random.uniform() * 0.01), f16::from_f32(random.uniform() * 0.01));
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&dmin.to_le_bytes());
        let made = weight::q4_1_from_q4_k(&block).unwrap();
        let (s, q) = (&block[4..16], &block[16..]);
        for i in 0..256 {
            let sub = i / 32;
            let (scale, least) = match sub {
                0..4 => (s[sub] % 64, s[sub + 4] % 64),
                _ => (s[sub + 4] % 16 + s[sub - 4] / 64 * 16, s[sub + 4] / 16 + s[sub] / 64 * 16),
            };
            let byte = q[sub / 2 * 32 + i % 32];
            let nibble = if sub % 2 == 0 { byte % 16 } else { byte / 16 };
            let (scaled, offset) =
                (d.to_f64() * f64::from(scale) * f64::from(nibble), dmin.to_f64() * f64::from(least));
            let new = &made[sub * 20..][..20];
            let half = |at: usize| f16::from_le_bytes([new[at], new[at + 1]]).to_f64();
            let bits = if i % 32 < 16 { new[4 + i % 32] % 16 } else { new[4 + i % 16] / 16 };
            assert_eq!(bits, nibble);
            let (got, expected) = (half(0) * f64::from(bits) + half(2), scaled - offset);
            let allowed = (scaled + offset) / 2048.0 + 1e-6;
            assert!((got - expected).abs() <= allowed, "{got}, not {expected}, seed {}", random.seed);
        }
    }
}

#[test]
fn what_does_not_fit_a_product_is_refused() {
    let gpu = Gpu { multiprocessors: 1, shared_bytes_per_block: 100 << 10 };
    assert!(!product::norms_itself(&gpu, Packing::Plain, 9, 64));
    assert!(!product::norms_itself(&gpu, Packing::Plain, 8, 8192), "128 kB into 100");
    assert!(product::norms_itself(&gpu, Packing::Plain, 5, 8192));
}

#[test]
#[should_panic(expected = "a vocabulary of 1048577; at most 1048576")]
fn a_vocabulary_beyond_two_digits_is_refused() {
    let none = Choice { logits: Ptr::NONE, asks: Ptr::NONE, counts: Ptr::NONE, bans: Ptr::NONE, chosen: Ptr::NONE };
    rows::choose(&none, 1, (1 << 20) + 1);
}
