//! Layers as a GPU has them, candle's tensors on the CPU and our kernels on the emulator, beside the same layers of the CPU.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::conv::in_bands;
use super::*;
use crate::Format;
use crate::cuda::image::Walk;
use crate::testing::Random;

/// Fresh numbers, the same ones each time it is asked anew.
struct Numbers {
    random: RefCell<Random>,
    dtype: DType,
    pool: Arc<Pool>,
}

impl Numbers {
    fn floats(&self, dims: &[usize]) -> Tensor {
        let values = self.random.borrow_mut().normal(dims.iter().product());
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }

    /// Of the type that is computed in.
    fn tensor(&self, dims: &[usize]) -> Tensor {
        // On the CPU too they are what f16 can hold.
        self.floats(dims).to_dtype(DType::F16).unwrap().to_dtype(self.dtype).unwrap()
    }

    fn weight(&self, out: usize, inputs: usize) -> (Format, Vec<u8>) {
        let halves: Vec<half::f16> = self.random.borrow_mut().normal(out * inputs).iter().map(scaled).collect();
        match self.dtype {
            DType::F32 => (Format::F32, halves.iter().flat_map(|v| v.to_f32().to_le_bytes()).collect()),
            _ => (Format::F16, halves.iter().flat_map(|v| v.to_le_bytes()).collect()),
        }
    }

    fn dense(&self, outs: &[usize], inputs: usize, bias: bool) -> Dense {
        let weights: Vec<_> = outs.iter().map(|out| self.weight(*out, inputs)).collect();
        let parts: Vec<_> =
            outs.iter().zip(&weights).map(|(&out, (format, bytes))| Part { format: *format, out, bytes }).collect();
        let bias = bias.then(|| self.random.borrow_mut().normal(outs.iter().sum()));
        Dense::new(&parts, inputs, bias, &Device::Cpu, &self.pool).unwrap()
    }

    fn conv(&self, shape: ConvShape) -> Conv2d {
        let (format, bytes) = self.weight(shape.out, shape.in_ * shape.kernel * shape.kernel);
        let bias = Some(self.random.borrow_mut().normal(shape.out));
        let weight = Part { format, out: shape.out, bytes: &bytes };
        Conv2d::new(weight, shape, bias, &Device::Cpu, &self.pool).unwrap()
    }
}

fn scaled(v: &f32) -> half::f16 {
    half::f16::from_f32(v * 0.1)
}

/// `make` on the CPU, then as on a GPU in f32 and in f16: the same within what their sums and roundings lose.
fn the_same(make: impl Fn(&Numbers) -> Result<Tensor>) {
    let (seed, pool) = (Random::fresh().seed, Arc::new(Pool::new(2)));
    let run = |dtype| {
        let random = RefCell::new(Random::new(seed));
        let numbers = Numbers { random, dtype, pool: pool.clone() };
        make(&numbers).unwrap().to_dtype(DType::F32).unwrap()
    };
    let expected = run(DType::F32);
    let Some(_gpu) = emulate() else { return };
    for (dtype, allowed) in [(DType::F32, 2e-5), (DType::F16, 4e-3)] {
        let got = run(dtype);
        assert_eq!(got.dims(), expected.dims());
        let most = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let error = most((got - &expected).unwrap()) / most(expected.clone());
        assert!(error <= allowed, "{dtype:?}: {error} of the largest, seed {seed}");
    }
}

#[test]
fn dense_layers_of_a_gpu_stack_add_and_gate_as_those_of_the_cpu() {
    the_same(|numbers| {
        let x = numbers.tensor(&[70, 24]);
        let y = numbers.dense(&[32, 32, 16], 24, true).forward(&x)?;
        // A view into a stack, and what has another width than the kernels take.
        let (up, odd) = (numbers.dense(&[48], 80, true).forward_geglu(&y)?, numbers.dense(&[21], 80, true));
        let y = numbers.dense(&[80], 24, true).forward_add(&up, &y)?;
        Tensor::cat(&[numbers.dense(&[16], 80, false).forward_gelu(&y)?, odd.forward(&y)?], 1)
    });
}

#[test]
fn norms_of_a_gpu_are_those_of_the_cpu_on_views_too() {
    the_same(|numbers| {
        let (weight, bias) = (numbers.floats(&[64]), numbers.floats(&[64]));
        let wide = numbers.tensor(&[30, 192]);
        let rows = layer_norm(&wide.narrow(1, 64, 64)?, &weight, &bias, 1e-5, &numbers.pool)?;
        let image = rows.reshape((2, 3, 5, 64))?;
        let normal = group_norm(&image, 32, &weight, &bias, 1e-5, true, &numbers.pool)?;
        let cut = upsample_nearest_2x(&normal, &numbers.pool)?.narrow(2, 0, 9)?;
        group_norm(&cut.contiguous()?, 4, &weight, &bias, 1e-6, false, &numbers.pool)
    });
}

#[test]
fn convolutions_of_a_gpu_are_those_of_the_cpu() {
    let plain = ConvShape { in_: 8, out: 24, kernel: 3, stride: 1, pad: [1; 4] };
    for shape in [
        plain,
        ConvShape { stride: 2, pad: [0, 1, 0, 1], ..plain },
        ConvShape { in_: 4, ..plain },
        ConvShape { in_: 9, out: 5, ..plain },
        ConvShape { kernel: 1, pad: [0; 4], ..plain },
    ] {
        the_same(|numbers| {
            let (conv, x) = (numbers.conv(shape), numbers.tensor(&[2, 7, 6, shape.in_]));
            let y = conv.forward(&x)?;
            // A shift is a part of a wider row, as of all resnets' times.
            let shifted = conv.forward_shifted(&x, &numbers.floats(&[2, 60]).narrow(1, 12, shape.out)?)?;
            let residual = numbers.tensor(y.dims());
            Tensor::cat(&[&y, &shifted, &conv.forward_add(&x, &residual)?], 3)
        });
    }
}

#[test]
fn windows_in_bands_are_the_windows() {
    let Some(_gpu) = emulate() else { return };
    let mut random = Random::fresh();
    let seed = random.seed;
    let (height, width, channels, out) = (5, 6, 8, 3);
    let mut tensor =
        |dims: &[usize]| Tensor::from_vec(random.normal(dims.iter().product()), dims, &Device::Cpu).unwrap();
    let (x, weight) = (tensor(&[2, height, width, channels]), tensor(&[out, 9 * channels]));
    let (rows, columns) = (height, width);
    let pixel_bytes = channels * 4;
    let walk =
        Walk { height, width, pixel_bytes, kernel: 3, stride: 1, top: 1, left: 1, rows, columns, doubled: false };
    let of = |most| in_bands(&x, &walk, &weight, 2 * rows * columns, most).unwrap();
    let whole = of(usize::MAX);
    assert_eq!(whole.dims(), [60, out]);
    // Less than one window is one after all.
    for most in [0, 7 * walk.window_bytes()] {
        let apart = (of(most) - &whole).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 1e-4, "{apart} apart, {most} bytes at a time, seed {seed}");
    }
}

/// Heads of 64 take the kernel, others candle's words, and both see their own part of the batch.
#[test]
fn attention_of_a_gpu_reads_a_stack_in_place() {
    for (heads, dim) in [(2, 64), (3, 16)] {
        the_same(|numbers| {
            let (parts, pixels, tokens, width) = (2, 70, 77, heads * dim);
            let qkv = numbers.tensor(&[parts * pixels, 3 * width]);
            let shape = MemoryShape { positions: pixels, heads, dim };
            let mut own = Scene::new(shape, parts, &Device::Cpu, &numbers.pool)?;
            own.show(&qkv.narrow(1, width, 2 * width)?)?;
            let seen = own.attend(&qkv.narrow(1, 0, width)?, 0.2)?;
            let shape = MemoryShape { positions: tokens, ..shape };
            let mut texts = Scene::new(shape, parts, &Device::Cpu, &numbers.pool)?;
            texts.show(&numbers.tensor(&[parts * tokens, 2 * width]))?;
            assert!(texts.show(&qkv).is_err(), "rows of another width");
            let seen = texts.attend(&seen, 0.3)?;
            let mut said = Scene::new(shape, parts, &Device::Cpu, &numbers.pool)?.causal();
            said.show(&numbers.tensor(&[parts * tokens, 2 * width]))?;
            Tensor::cat(&[&seen, &said.attend(&seen, 0.3)?], 0)
        });
        let Some(_gpu) = emulate() else { return };
        assert_eq!(attends_in_one_kernel(&Device::Cpu, DType::F16, dim), dim == 64);
        assert!(!attends_in_one_kernel(&Device::Cpu, DType::F32, dim));
    }
}
