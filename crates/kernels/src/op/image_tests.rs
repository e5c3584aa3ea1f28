//! The ops of image networks against plain sums in f64, fused and composed, alone and in company.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::{bf16, f16};

use super::*;
use crate::Format;
use crate::simd::Simd;
use crate::testing::{Random, erf, same_bits};

fn tensor(random: &mut Random, dims: &[usize]) -> Tensor {
    Tensor::from_vec(random.normal(dims.iter().product()), dims, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Within `allowed`, relative to what is expected or to 1.
fn near(expected: &[f64], got: &Tensor, allowed: f64, case: &str) {
    let got = values(got);
    assert_eq!(expected.len(), got.len(), "{case}");
    for (i, (a, b)) in expected.iter().zip(&got).enumerate() {
        assert!((a - f64::from(*b)).abs() <= allowed * (1.0 + a.abs()), "value {i} is {b}, not {a}: {case}");
    }
}

/// Bytes of random values in a format, and the values they stand for.
fn weight(random: &mut Random, format: Format, len: usize) -> (Vec<u8>, Vec<f32>) {
    let plain = random.normal(len);
    let as_bytes = |v: &f32| match format {
        Format::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
        Format::BF16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    };
    let held = plain.iter().map(|v| match format {
        Format::F16 => f16::from_f32(*v).to_f32(),
        Format::BF16 => bf16::from_f32(*v).to_f32(),
        _ => *v,
    });
    (plain.iter().flat_map(as_bytes).collect(), held.collect())
}

/// The convolution as its definition says, by output pixel.
fn plain_conv(x: &[f32], (batch, height, width): (usize, usize, usize), w: &[f32], shape: ConvShape) -> Vec<f64> {
    let ConvShape { in_, out, kernel, stride, pad: [top, _, left, _] } = shape;
    let (rows, columns) = shape.result(height, width).unwrap();
    let mut y = Vec::new();
    for at in 0..batch * rows * columns {
        let (image, row, column) = (at / columns / rows, at / columns % rows, at % columns);
        for o in 0..out {
            let mut sum = 0f64;
            for (ky, kx) in (0..kernel * kernel).map(|tap| (tap / kernel, tap % kernel)) {
                let (iy, ix) = (row * stride + ky, column * stride + kx);
                if iy < top || iy - top >= height || ix < left || ix - left >= width {
                    continue;
                }
                let pixel = &x[((image * height + iy - top) * width + ix - left) * in_..][..in_];
                for (c, v) in pixel.iter().enumerate() {
                    let w = w[((o * in_ + c) * kernel + ky) * kernel + kx];
                    sum += f64::from(*v) * f64::from(w);
                }
            }
            y.push(sum);
        }
    }
    y
}

#[test]
fn a_convolution_is_its_sum_with_bias_residual_and_shift() {
    let mut random = Random::fresh();
    let cases: [(usize, usize, [usize; 4], Format); 7] = [
        (3, 1, [1; 4], Format::F32),
        (3, 1, [1; 4], Format::F16),
        (3, 2, [1; 4], Format::BF16),
        (3, 2, [0, 1, 0, 1], Format::F32),
        (1, 1, [0; 4], Format::F16),
        (1, 2, [0; 4], Format::F32),
        (2, 1, [0, 1, 2, 0], Format::F32),
    ];
    for (kernel, stride, pad, format) in cases {
        let (in_, out) = (1 + random.below(300), 1 + random.below(150));
        let shape = ConvShape { in_, out, kernel, stride, pad };
        let (batch, height, width) = (1 + random.below(3), 3 + random.below(12), 3 + random.below(40));
        let case = format!("{shape:?} {format:?} of {batch} x {height} x {width}, seed {}", random.seed);
        let (bytes, held) = weight(&mut random, format, out * in_ * kernel * kernel);
        let bias = random.normal(out);
        let x = tensor(&mut random, &[batch, height, width, in_]);
        let (rows, columns) = shape.result(height, width).unwrap();
        let residual = tensor(&mut random, &[batch, rows, columns, out]);
        let shift = tensor(&mut random, &[batch, out]);
        let mut expected = plain_conv(&values(&x), (batch, height, width), &held, shape);
        expected.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(bias[i % out]));
        let plus = |of: &dyn Fn(usize) -> f32| -> Vec<f64> {
            expected.iter().enumerate().map(|(i, y)| y + f64::from(of(i))).collect()
        };
        let (residuals, shifts) = (values(&residual), values(&shift));
        let with_residual = plus(&|i| residuals[i]);
        let with_shift = plus(&|i| shifts[i / (rows * columns * out) * out + i % out]);
        let part = Part { format, out, bytes: &bytes };
        let composed = Conv2d::composed(part, shape, Some(bias.clone()), &Device::Cpu).unwrap();
        near(&expected, &composed.forward(&x).unwrap(), 2e-4, &case);
        near(&with_residual, &composed.forward_add(&x, &residual).unwrap(), 2e-4, &case);
        near(&with_shift, &composed.forward_shifted(&x, &shift).unwrap(), 2e-4, &case);
        let mut first: Option<Vec<f32>> = None;
        for (simd, threads) in Simd::available().into_iter().flat_map(|s| [(s, 1), (s, 3)]) {
            let pool = Arc::new(Pool::with_simd(threads, simd));
            let conv = Conv2d::new(part, shape, Some(bias.clone()), &Device::Cpu, &pool).unwrap();
            let y = conv.forward(&x).unwrap();
            assert_eq!(y.dims(), [batch, rows, columns, out], "{case}");
            assert_eq!(conv.bytes(), Conv2d::bytes_for(format, shape, true, &Device::Cpu).unwrap(), "{case}");
            same_bits(first.get_or_insert_with(|| values(&y)), &values(&y), || case.clone());
            near(&expected, &y, 2e-4, &case);
            near(&with_residual, &conv.forward_add(&x, &residual).unwrap(), 2e-4, &case);
            near(&with_shift, &conv.forward_shifted(&x, &shift).unwrap(), 2e-4, &case);
            let last = conv.forward(&x.narrow(0, batch - 1, 1).unwrap()).unwrap();
            let beside = values(&y.narrow(0, batch - 1, 1).unwrap());
            same_bits(&beside, &values(&last), || format!("the last image alone: {case}"));
        }
    }
}

#[test]
fn a_convolution_refuses_what_does_not_fit_and_says_why() {
    let pool = Arc::new(Pool::new(1));
    let shape = ConvShape { in_: 2, out: 3, kernel: 3, stride: 1, pad: [0; 4] };
    let bytes = vec![0u8; 3 * 2 * 9 * 4];
    let part = Part { format: Format::F32, out: 3, bytes: &bytes };
    let new = |part, shape, bias| Conv2d::new(part, shape, bias, &Device::Cpu, &pool);
    let conv = new(part, shape, None).unwrap();
    let error = |y: candle_core::Result<Tensor>| y.unwrap_err().to_string();
    let image = |dims: [usize; 4]| Tensor::zeros(&dims, DType::F32, &Device::Cpu).unwrap();
    assert!(error(conv.forward(&image([1, 2, 9, 2]))).contains("2 x 9 pixels is too small"));
    assert!(error(conv.forward(&image([1, 9, 9, 3]))).contains("3 channels"));
    assert!(error(conv.forward_add(&image([1, 3, 3, 2]), &image([1, 1, 1, 2]))).contains("beside [1, 1, 1, 3]"));
    assert!(new(part, ConvShape { stride: 0, ..shape }, None).is_err());
    assert!(new(part, ConvShape { in_: 3, ..shape }, None).is_err());
    assert!(new(part, shape, Some(vec![0.0])).is_err());
}

#[test]
fn a_group_norm_has_the_statistics_of_its_group_and_image() {
    let mut random = Random::fresh();
    // The last one is more pixels than are summed in one run.
    for (groups, per_group, silu, least) in
        [(32, 10, true, 1), (32, 1, false, 1), (1, 37, true, 1), (4, 32, false, 1), (2, 3, true, 129)]
    {
        let (batch, height, width) = (1 + random.below(3), least + random.below(30), least + 1 + random.below(30));
        let channels = groups * per_group;
        let case = format!("{groups} groups of {per_group}, {batch} x {height} x {width}, seed {}", random.seed);
        // Far from zero, where a sum of squares in f32 would lose the variance.
        let x = (tensor(&mut random, &[batch, height, width, channels]) + 300.0).unwrap();
        let (weight, bias) = (tensor(&mut random, &[channels]), tensor(&mut random, &[channels]));
        let (xs, ws, bs) = (values(&x), values(&weight), values(&bias));
        let pixels = height * width;
        let mut expected = vec![0f64; xs.len()];
        for (image, group) in (0..batch * groups).map(|at| (at / groups, at % groups)) {
            let places: Vec<usize> = (0..pixels * per_group)
                .map(|i| (image * pixels + i / per_group) * channels + group * per_group + i % per_group)
                .collect();
            let n = places.len() as f64;
            let mean = places.iter().map(|p| f64::from(xs[*p])).sum::<f64>() / n;
            let variance = places.iter().map(|p| (f64::from(xs[*p]) - mean).powi(2)).sum::<f64>() / n;
            for p in places {
                let y = (f64::from(xs[p]) - mean) / (variance + 1e-5).sqrt() * f64::from(ws[p % channels]);
                let y = y + f64::from(bs[p % channels]);
                expected[p] = if silu { y / (1.0 + (-y).exp()) } else { y };
            }
        }
        // candle's sums are f32's: 300 of a 24-bit number leave 1e-5 of the deviation, and a sum of thousands less.
        let composed = composed::group_norm(&x, groups, &weight, &bias, 1e-5, silu).unwrap();
        near(&expected, &composed, 3e-2, &case);
        let mut first: Option<Vec<f32>> = None;
        for (simd, threads) in Simd::available().into_iter().flat_map(|s| [(s, 1), (s, 3)]) {
            let pool = Pool::with_simd(threads, simd);
            let y = group_norm(&x, groups, &weight, &bias, 1e-5, silu, &pool).unwrap();
            near(&expected, &y, 1e-4, &case);
            same_bits(first.get_or_insert_with(|| values(&y)), &values(&y), || case.clone());
            let last = x.narrow(0, batch - 1, 1).unwrap();
            let alone = group_norm(&last, groups, &weight, &bias, 1e-5, silu, &pool).unwrap();
            same_bits(&values(&y.narrow(0, batch - 1, 1).unwrap()), &values(&alone), || case.clone());
        }
        assert!(group_norm(&x, channels + 1, &weight, &bias, 1e-5, silu, &Pool::new(1)).is_err());
    }
}

#[test]
fn activations_are_what_their_formulas_say() {
    let (mut random, pool) = (Random::fresh(), Pool::new(2));
    let case = format!("seed {}", random.seed);
    let x = tensor(&mut random, &[37, 66]);
    let of = |f: &dyn Fn(f64) -> f64| values(&x).iter().map(|v| f(f64::from(*v))).collect::<Vec<f64>>();
    near(&of(&|v| v / (1.0 + (-v).exp())), &silu(&x, &pool).unwrap(), 1e-6, &case);
    let quick = of(&|v| v / (1.0 + (-1.702 * v).exp()));
    near(&quick, &quick_gelu(&x, &pool).unwrap(), 1e-6, &case);
    near(&quick, &composed::quick_gelu(&x).unwrap(), 1e-6, &case);
    let rows = of(&|v| v);
    let gated: Vec<f64> = rows
        .chunks(66)
        .flat_map(|row| (0..33).map(|i| row[i] * row[33 + i] * 0.5 * (1.0 + erf(row[33 + i] / 2f64.sqrt()))))
        .collect();
    near(&gated, &geglu(&x, &pool).unwrap(), 1e-5, &case);
    near(&gated, &composed::geglu(&x).unwrap(), 1e-5, &case);
    assert!(geglu(&x.narrow(1, 0, 65).unwrap(), &pool).is_err());
}

#[test]
fn pixels_are_doubled_and_channels_put_side_by_side() {
    let (mut random, pool) = (Random::fresh(), Pool::new(2));
    let (a, b) = (tensor(&mut random, &[2, 3, 5, 7]), tensor(&mut random, &[2, 3, 5, 4]));
    let (xs, ys) = (values(&a), values(&upsample_nearest_2x(&a, &pool).unwrap()));
    let at = |image: usize, row: usize, column: usize, c: usize| ((image * 3 + row) * 5 + column) * 7 + c;
    for (i, y) in ys.iter().enumerate() {
        let (image, row, column, c) = (i / 7 / 10 / 6, i / 7 / 10 % 6, i / 7 % 10, i % 7);
        assert_eq!(*y, xs[at(image, row / 2, column / 2, c)], "value {i}");
    }
    assert_eq!(ys.len(), 4 * xs.len());
    let both = concat_channels(&[&a, &b], &pool).unwrap();
    assert_eq!(both.dims(), [2, 3, 5, 11]);
    assert_eq!(values(&both.narrow(3, 0, 7).unwrap()), xs);
    assert_eq!(values(&both.narrow(3, 7, 4).unwrap()), values(&b));
    assert!(concat_channels(&[&a, &tensor(&mut random, &[1, 3, 5, 4])], &pool).is_err());
}
