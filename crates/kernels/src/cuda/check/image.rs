//! Norms, what follows a product, and windows.

use super::*;
use crate::cuda::call::Real;
use crate::cuda::image::{self, Activation, Added, Groups, Walk};

/// A case in each type that these kernels take, with what its rounding may lose.
fn reals(bench: &mut Bench, mut check: impl FnMut(&mut Case, Kind)) {
    each(bench, &[Packing::Plain], |case| check(case, Kind(Real::Half(case.element))));
    let mut case = Case {
        machine: bench.machine,
        random: &mut bench.random,
        element: bench.machine.elements()[0],
        packing: Packing::Plain,
    };
    check(&mut case, Kind(Real::F32));
}

#[derive(Clone, Copy)]
struct Kind(Real);

impl Kind {
    fn hold(self, case: &Case, values: &[f32]) -> Buffer {
        match self.0 {
            Real::Half(_) => case.reals(values),
            Real::F32 => case.of(values),
        }
    }

    fn round(self, value: f32) -> f64 {
        match self.0 {
            Real::Half(element) => element.round(value),
            Real::F32 => f64::from(value),
        }
    }

    fn read(self, buffer: &Buffer) -> Vec<f64> {
        match self.0 {
            Real::Half(element) => element.read(buffer),
            Real::F32 => buffer.read::<f32>().into_iter().map(f64::from).collect(),
        }
    }

    #[track_caller]
    fn close(self, case: &Case, got: f64, expected: f64, size: f64, what: &str) {
        let rounding = match self.0 {
            Real::Half(element) => 1.01 * element.epsilon(),
            Real::F32 => 0.0,
        };
        let allowed = rounding * expected.abs() + 4e-6 * (size + expected.abs());
        let name = self.0.name();
        assert!((got - expected).abs() <= allowed, "{got}, not {expected}: {what}, {name}, seed {}", case.random.seed);
    }
}

fn silu(v: f64) -> f64 {
    v / (1.0 + (-v).exp())
}

fn gelu(v: f64) -> f64 {
    v * 0.5 * (1.0 + erf(v / std::f64::consts::SQRT_2))
}

/// The integral of the normal distribution by Simpson's rule, to ten digits.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    const STEPS: usize = 400;
    let h = x / STEPS as f64;
    let of = |i: usize| (-(i as f64 * h).powi(2)).exp() * if i.is_multiple_of(2) { 2.0 } else { 4.0 };
    let inner: f64 = (1..STEPS).map(of).sum();
    (1.0 + inner + (-x * x).exp()) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

pub fn group_norm_equals_f64_also_far_from_zero(bench: &mut Bench) {
    reals(bench, |case, kind| {
        for (images, pixels, channels, groups) in
            [(2, 100, 64, 32), (1, 33, 320, 32), (1, 4200, 8, 4), (1, 5, 2560, 32), (2, 17, 96, 8), (1, 1, 16, 1)]
        {
            let silu_behind = case.random.below(2) == 1;
            let over = Groups { images, pixels, channels, groups, eps: 1e-5, silu: silu_behind };
            // Channels with means of their own; one image's first pixel is far from all the others.
            let mut x = case.random.normal(images * pixels * channels);
            for (i, x) in x.iter_mut().enumerate() {
                *x += 3.0 * (i % channels % 5) as f32 + if i < channels { 20.0 } else { 0.0 };
            }
            let (weight, bias) = (case.random.normal(channels), case.random.normal(channels));
            let (from, partial) = (kind.hold(case, &x), case.poisoned(over.partial_bytes()));
            let y = case.poisoned(x.len() * kind.0.bytes());
            let (weights, biases) = (case.of(&weight), case.of(&bias));
            let learned = (weights.ptr(), biases.ptr());
            for call in image::group_norm(kind.0, &over, from.ptr(), learned, partial.ptr(), y.ptr()) {
                case.run(&call);
            }
            let (got, each) = (kind.read(&y), channels / groups);
            for group in 0..images * groups {
                let (image, group) = (group / groups, group % groups);
                let places: Vec<usize> = (0..pixels * each)
                    .map(|i| (image * pixels + i / each) * channels + group * each + i % each)
                    .collect();
                let values: Vec<f64> = places.iter().map(|place| kind.round(x[*place])).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
                for (place, value) in places.iter().zip(&values) {
                    let channel = place % channels;
                    let normal = (value - mean) / (variance + 1e-5).sqrt() * f64::from(weight[channel]);
                    let plain = normal + f64::from(bias[channel]);
                    let expected = if silu_behind { silu(plain) } else { plain };
                    kind.close(case, got[*place], expected, 5.0 + normal.abs(), &format!("{over:?} at {place}"));
                }
            }
        }
    });
}

pub fn layer_norm_equals_f64_on_rows_of_any_distance(bench: &mut Bench) {
    reals(bench, |case, kind| {
        for (rows, width, stride) in [(1, 8, 8), (9, 640, 648), (20, 1280, 1280), (3, 2048, 4096)] {
            let x: Vec<f32> = case.random.normal(rows * stride).iter().map(|v| v * 3.0 + 10.0).collect();
            let (weight, bias) = (case.random.normal(width), case.random.normal(width));
            let (from, weights, biases) = (kind.hold(case, &x), case.of(&weight), case.of(&bias));
            let y = case.poisoned(rows * width * kind.0.bytes());
            let learned = (weights.ptr(), biases.ptr());
            case.run(&image::layer_norm(kind.0, (from.ptr(), stride), (rows, width), learned, 1e-5, y.ptr()));
            let got = kind.read(&y);
            for (row, got) in got.chunks(width).enumerate() {
                let values: Vec<f64> = x[row * stride..][..width].iter().map(|v| kind.round(*v)).collect();
                let mean = values.iter().sum::<f64>() / width as f64;
                let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, got) in got.iter().enumerate() {
                    let normal = (values[i] - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]);
                    kind.close(case, *got, normal + f64::from(bias[i]), 5.0, &format!("{rows} rows of {width}"));
                }
            }
        }
    });
}

pub fn what_follows_a_product_equals_f64_alone_and_together(bench: &mut Bench) {
    reals(bench, |case, kind| {
        let (images, rows_each, width, shift_stride) = (2, 13, 40, 44);
        let rows = images * rows_each;
        for activation in [Activation::None, Activation::Gelu, Activation::Geglu] {
            let wide = if activation == Activation::Geglu { 2 * width } else { width };
            let mut x: Vec<f32> = case.random.normal(rows * wide).iter().map(|v| v * 2.0).collect();
            (x[0], x[wide - 1]) = (-40.0, 40.0);
            let (bias, residual) = (case.random.normal(wide), case.random.normal(rows * width));
            let shift = case.random.normal(images * shift_stride);
            let held = (case.of(&bias), kind.hold(case, &residual), case.of(&shift));
            for which in 0..8 {
                let shifted = which & 2 != 0 && activation != Activation::Geglu;
                let added = Added {
                    bias: (which & 1 != 0).then(|| held.0.ptr()),
                    shift: shifted.then(|| (held.2.ptr(), shift_stride, rows_each)),
                    residual: (which & 4 != 0).then(|| held.1.ptr()),
                };
                let from = kind.hold(case, &x);
                let other = case.poisoned(rows * width * kind.0.bytes());
                // In place where that is allowed.
                let y = if activation == Activation::None { &from } else { &other };
                case.run(&image::finish(kind.0, activation, from.ptr(), (rows, width), &added, y.ptr()));
                for (i, got) in kind.read(y).into_iter().enumerate() {
                    let (row, column) = (i / width, i % width);
                    let biased = |column: usize| {
                        kind.round(x[row * wide + column]) + added.bias.map_or(0.0, |_| f64::from(bias[column]))
                    };
                    let shift = added.shift.map_or(0.0, |_| f64::from(shift[row / rows_each * shift_stride + column]));
                    let value = match activation {
                        Activation::None => biased(column) + shift,
                        Activation::Gelu => gelu(biased(column) + shift),
                        Activation::Geglu => biased(column) * gelu(biased(width + column)),
                    };
                    let expected = value + added.residual.map_or(0.0, |_| kind.round(residual[i]));
                    kind.close(case, got, expected, 5.0 + value.abs(), &format!("{activation:?} {which} at {i}"));
                }
            }
        }
    });
}

pub fn windows_are_the_pixels_around_and_zeros_outside(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        for (channels, kernel, stride, [top, bottom, left, right], doubled) in [
            (8, 3, 1, [1; 4], false),
            (24, 3, 2, [0, 1, 0, 1], false),
            (3, 3, 1, [1; 4], false),
            (4, 1, 1, [0; 4], true),
            (8, 3, 1, [1; 4], true),
            (5, 2, 3, [2, 0, 0, 1], false),
        ] {
            let (images, height, width) = (2, 5, 4 + case.random.below(3));
            let x: Vec<u16> = (0..images * height * width * channels).map(|i| i as u16).collect();
            let times = if doubled { 2 } else { 1 };
            let rows = (height * times + top + bottom - kernel) / stride + 1;
            let columns = (width * times + left + right - kernel) / stride + 1;
            let walk =
                Walk { height, width, pixel_bytes: channels * 2, kernel, stride, top, left, rows, columns, doubled };
            let all = images * rows * columns;
            let first = case.random.below(all);
            let count = 1 + case.random.below(all - first);
            let (from, to) = (case.of(&x), case.poisoned(count * walk.window_bytes()));
            case.run(&image::columns(&walk, from.ptr(), (first, count), to.ptr()));
            let got = to.read::<u16>();
            for (i, got) in got.iter().enumerate() {
                let (pixel, place) = (first + i / (kernel * kernel * channels), i / channels % (kernel * kernel));
                let (image, inside) = (pixel / (rows * columns), pixel % (rows * columns));
                let y = (inside / columns * stride + place / kernel).checked_sub(top).filter(|y| *y < height * times);
                let x_ = (inside % columns * stride + place % kernel).checked_sub(left).filter(|x| *x < width * times);
                let expected = y.zip(x_).map_or(0, |(y, x_)| {
                    let at = ((image * height + y / times) * width + x_ / times) * channels + i % channels;
                    x[at]
                });
                assert_eq!(*got, expected, "{walk:?} at {i}, seed {}", case.random.seed);
            }
        }
    });
}
