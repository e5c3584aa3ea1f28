//! Products against sums in f64, on odd shapes, every format and every path.

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use std::borrow::Cow;

use super::*;
use crate::simd::Simd;
use crate::testing::{Random, same_bits};

const FORMATS: [Format; 13] = [
    Format::F32,
    Format::F16,
    Format::BF16,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Q2_K,
    Format::Q3_K,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
];

/// The bytes of a weight of normal values in `format`, and the values those bytes stand for, both by candle.
fn weight(format: Format, out: usize, in_: usize, random: &mut Random) -> (Vec<u8>, Vec<f32>) {
    let values = Tensor::from_vec(random.normal(out * in_), (out, in_), &Device::Cpu).unwrap();
    let packed = QTensor::quantize(&values, format.ggml()).unwrap();
    let bytes = packed.data().unwrap().into_owned();
    let values = packed.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (bytes, values)
}

fn product(x: &[f32], rows: usize, w: &Weight, pool: &Pool) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows * w.out_features()];
    matmul(x, w.in_features(), rows, w, &mut y, false, pool);
    y
}

/// Every result within the error that 16-bit activations, f32 sums and (for formats that become Q8_0) int8 weights may
/// cause: half a step of the block's scale times the other factor, and 2^-23 per term for the sum.
fn check(format: Format, in_: usize, x: &[f32], values: &[f32], y: &[f32], seed: u64) {
    let (rows, out) = (x.len() / in_, values.len() / in_);
    let quantised = Kind::of(format).quantised();
    let converted = quantised && Kind::of(format).source() != format;
    let largest = |block: &[f32]| block.iter().fold(0f32, |m, v| m.max(v.abs())) as f64;
    for row in 0..rows {
        for o in 0..out {
            let (x, w) = (&x[row * in_..][..in_], &values[o * in_..][..in_]);
            let (mut sum, mut error) = (0f64, 1e-6);
            for (x, w) in x.chunks(BLOCK).zip(w.chunks(BLOCK)) {
                let (x_step, w_step) =
                    (largest(x) / f64::from(i16::MAX), if converted { largest(w) / 127.0 } else { 0.0 });
                for (x, w) in x.iter().zip(w) {
                    let (x, w) = (*x as f64, *w as f64);
                    sum += x * w;
                    // The scale of a converted block is itself rounded to f16: an 11th bit of the value.
                    let w_error = if converted { 0.51 * w_step + w.abs() / 1024.0 } else { 0.0 };
                    error += if quantised { 0.52 * x_step * (w.abs() + w_error) } else { 0.0 };
                    error += x.abs() * w_error + (x * w).abs() * in_ as f64 * f64::from(f32::EPSILON);
                    // A minimum is added once per block, not once per value: it may be larger than the values.
                    error += if quantised { x.abs() * 4.0 * 1e-6 } else { 0.0 };
                }
            }
            let got = y[row * out + o] as f64;
            assert!(
                (got - sum).abs() <= error,
                "{format:?} [{row}, {o}]: {got}, not {sum} within {error}; seed {seed}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn every_format_equals_the_sum_in_f64(
        format in prop::sample::select(&FORMATS[..]), rows in 1usize..10, out in 1usize..70, blocks in 1usize..5, seed: u64,
    ) {
        let in_ = blocks * format.block_len().max(BLOCK);
        let mut random = Random::new(seed);
        let (bytes, values) = weight(format, out, in_, &mut random);
        let x = random.normal(rows * in_);
        let mut first: Option<Vec<f32>> = None;
        for simd in Simd::available() {
            let pool = Pool::with_simd(1, simd);
            let w = Weight::new(format, out, in_, &bytes, &pool).unwrap();
            let y = product(&x, rows, &w, &pool);
            check(format, in_, &x, &values, &y, seed);
            same_bits(first.get_or_insert_with(|| y.clone()), &y, || format!("{format:?} on {}, seed {seed}", simd.name()));
        }
    }

    #[test]
    fn a_row_is_the_same_alone_in_a_batch_and_on_any_threads(
        format in prop::sample::select(&FORMATS[..8]), rows in 1usize..40, out in 1usize..200, blocks in 1usize..9, seed: u64,
    ) {
        let in_ = blocks * BLOCK;
        let mut random = Random::new(seed);
        let (bytes, _) = weight(format, out, in_, &mut random);
        let x = random.normal(rows * in_);
        let one = Pool::new(1);
        let w = Weight::new(format, out, in_, &bytes, &one).unwrap();
        let alone: Vec<f32> = x.chunks(in_).flat_map(|x| product(x, 1, &w, &one)).collect();
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            let y = product(&x, rows, &w, &pool);
            same_bits(&alone, &y, || format!("{format:?}, {threads} threads, seed {seed}"));
        }
    }

    #[test]
    fn packing_keeps_every_value(format in prop::sample::select(&FORMATS[..]), out in 1usize..40, blocks in 1usize..4, seed: u64) {
        let in_ = blocks * format.block_len().max(BLOCK);
        let (bytes, values) = weight(format, out, in_, &mut Random::new(seed));
        let w = Weight::new(format, out, in_, &bytes, &Pool::new(2)).unwrap();
        let converted = Kind::of(format).source() != format;
        for (o, values) in values.chunks(in_).enumerate() {
            let mut row = vec![0f32; in_];
            w.row(o, &mut row);
            let most = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            let allowed = if converted { most / 200.0 } else { most * 1e-6 };
            for (got, value) in row.iter().zip(values) {
                prop_assert!((got - value).abs() <= allowed, "{:?} row {}: {} not {}", format, o, got, value);
            }
        }
    }
}

#[test]
fn the_largest_integers_do_not_overflow_on_any_path() {
    let in_ = 4 * BLOCK;
    for (format, values) in [(Format::Q8_0, [0x80, 0x7f]), (Format::Q4_0, [0x00, 0xff]), (Format::Q4_1, [0x00, 0xff])] {
        for value in values {
            let block: Vec<u8> = f16::ONE
                .to_le_bytes()
                .into_iter()
                .chain(std::iter::repeat_n(value, format.block_bytes() - 2))
                .collect();
            let mut bytes = block.repeat(4 * 16);
            if format == Format::Q4_1 {
                bytes.chunks_exact_mut(20).for_each(|b| b[2..4].copy_from_slice(&f16::NEG_ONE.to_le_bytes()));
            }
            let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, format.ggml()).unwrap();
            let tensor = QTensor::new(storage, (16, in_)).unwrap().dequantize(&Device::Cpu).unwrap();
            let weights: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            for simd in Simd::available() {
                let pool = Pool::with_simd(1, simd);
                let w = Weight::new(format, 16, in_, &bytes, &pool).unwrap();
                for x in [1f32, -1.0] {
                    let y = product(&vec![x; 5 * in_], 5, &w, &pool);
                    let expected: f32 = weights[..in_].iter().map(|w| w * x).sum();
                    for y in y {
                        assert!(
                            (y - expected).abs() <= expected.abs() * 1e-5,
                            "{format:?} {} {y} {expected}",
                            simd.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_stack_of_formats_equals_its_parts() {
    let (pool, mut random, in_) = (Pool::new(2), Random::fresh(), 256);
    let parts = [(Format::Q4_1, 20), (Format::Q6_K, 24), (Format::Q8_0, 5), (Format::F16, 33), (Format::F16, 7)];
    let bytes: Vec<Vec<u8>> = parts.iter().map(|(format, out)| weight(*format, *out, in_, &mut random).0).collect();
    let stack: Vec<Part> =
        parts.iter().zip(&bytes).map(|((format, out), bytes)| Part { format: *format, out: *out, bytes }).collect();
    let whole = Weight::stack(&stack, in_, &pool).unwrap();
    let x = random.normal(3 * in_);
    let y = product(&x, 3, &whole, &pool);
    let (mut first, mut row) = (0, vec![0f32; in_]);
    for part in stack {
        let alone = Weight::new(part.format, part.out, in_, part.bytes, &pool).unwrap();
        let expected = product(&x, 3, &alone, &pool);
        for r in 0..3 {
            let got = &y[r * whole.out_features() + first..][..part.out];
            same_bits(&expected[r * part.out..][..part.out], got, || {
                format!("{:?}, seed {}", part.format, random.seed)
            });
        }
        let mut expected = vec![0f32; in_];
        alone.row(part.out - 1, &mut expected);
        whole.row(first + part.out - 1, &mut row);
        assert_eq!(row, expected);
        first += part.out;
    }
}

#[test]
fn adding_and_strided_rows_give_the_plain_product_and_a_sum() {
    let mut random = Random::fresh();
    let (rows, out, in_, stride) = (11, 37, 64, 100);
    for format in [Format::Q4_1, Format::Q8_0, Format::F32, Format::F16, Format::BF16] {
        let (bytes, _) = weight(format, out, in_, &mut random);
        let x = random.normal(rows * stride);
        let packed: Vec<f32> = x.chunks(stride).flat_map(|row| row[..in_].to_vec()).collect();
        let before = random.normal(rows * out);
        for simd in Simd::available() {
            let pool = Pool::with_simd(2, simd);
            let w = Weight::new(format, out, in_, &bytes, &pool).unwrap();
            let mut y = before.clone();
            matmul(&x, stride, rows, &w, &mut y, true, &pool);
            let plain = product(&packed, rows, &w, &pool);
            let sum: Vec<f32> = plain.iter().zip(&before).map(|(a, b)| a + b).collect();
            same_bits(&sum, &y, || format!("{format:?} on {}, seed {}", simd.name(), random.seed));
        }
    }
}

#[test]
fn a_long_prompt_equals_its_rows_alone() {
    let (pool, mut random) = (Pool::new(2), Random::fresh());
    let (rows, out, in_) = (530, 100, 576);
    for format in [Format::Q4_1, Format::F16] {
        let (bytes, _) = weight(format, out, in_, &mut random);
        let w = Weight::new(format, out, in_, &bytes, &pool).unwrap();
        let x = random.normal(rows * in_);
        let y = product(&x, rows, &w, &pool);
        for (x, y) in x.chunks(in_).zip(y.chunks(out)) {
            same_bits(&product(x, 1, &w, &pool), y, || format!("{format:?}, seed {}", random.seed));
        }
    }
}

#[test]
fn a_value_that_is_no_number_stays_visible() {
    let (bytes, _) = weight(Format::Q4_1, 16, 64, &mut Random::fresh());
    for simd in Simd::available() {
        let pool = Pool::with_simd(1, simd);
        let w = Weight::new(Format::Q4_1, 16, 64, &bytes, &pool).unwrap();
        let mut x = vec![1.0; 64];
        x[40] = f32::NAN;
        assert!(product(&x, 1, &w, &pool).iter().all(|y| y.is_nan()), "{}", simd.name());
    }
}

#[test]
fn bytes_that_do_not_fit_the_shape_are_refused() {
    let pool = Pool::new(1);
    let refusal = |format, out, in_, bytes: &[u8]| Weight::new(format, out, in_, bytes, &pool).err().unwrap();
    assert!(refusal(Format::Q4_1, 16, 64, &[0; 639]).contains("is 640 bytes, not 639"));
    assert!(refusal(Format::Q4_1, 16, 63, &[0; 640]).contains("blocks of 32"));
    assert!(refusal(Format::F16, 0, 64, &[]).contains("no F16 weight of [0, 64]"));
}

#[test]
fn many_strided_rows_meet_parts_of_several_formats_as_each_row_does_alone() {
    let mut random = Random::fresh();
    let (rows, in_, stride) = (70, 200, 213);
    let formats = [(Format::F32, 100), (Format::F16, 70), (Format::BF16, 5), (Format::F32, 1)];
    let bytes: Vec<Vec<u8>> = formats.iter().map(|(f, out)| weight(*f, *out, in_, &mut random).0).collect();
    let parts: Vec<Part> =
        formats.iter().zip(&bytes).map(|((format, out), bytes)| Part { format: *format, out: *out, bytes }).collect();
    let (x, before) = (random.normal(rows * stride), random.normal(rows * 176));
    for (simd, threads) in Simd::available().into_iter().flat_map(|s| [(s, 1), (s, 3)]) {
        let pool = Pool::with_simd(threads, simd);
        let w = Weight::stack(&parts, in_, &pool).unwrap();
        for add in [false, true] {
            let (mut many, mut alone) = (before.clone(), before.clone());
            matmul(&x, stride, rows, &w, &mut many, add, &pool);
            for (x, y) in x.chunks(stride).zip(alone.chunks_mut(176)) {
                matmul(x, stride, 1, &w, y, add, &pool);
            }
            same_bits(&alone, &many, || {
                format!("added {add}, {}, {threads} threads, seed {}", simd.name(), random.seed)
            });
        }
    }
}
