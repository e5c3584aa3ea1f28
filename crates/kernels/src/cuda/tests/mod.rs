//! The kernels' own source, run on the CPU, against plain f64 references on fresh random inputs. Every failure names its seed.

mod attention;
mod choose;
mod products;
mod rows;
mod weights;

use half::{bf16, f16};

use super::call::{Call, Element};
use super::emulator::{Buffer, Emulator, emulator};
use super::product::Matrix;
use super::weight::{self, Packed, Packing};
use crate::testing::Random;

impl Element {
    fn round(self, value: f32) -> f64 {
        match self {
            Element::Bf16 => bf16::from_f32(value).to_f64(),
            Element::F16 => f16::from_f32(value).to_f64(),
        }
    }

    fn bits(self, value: f32) -> u16 {
        match self {
            Element::Bf16 => bf16::from_f32(value).to_bits(),
            Element::F16 => f16::from_f32(value).to_bits(),
        }
    }

    fn value(self, bits: u16) -> f64 {
        match self {
            Element::Bf16 => bf16::from_bits(bits).to_f64(),
            Element::F16 => f16::from_bits(bits).to_f64(),
        }
    }

    /// What rounding to it may lose, relatively.
    fn epsilon(self) -> f64 {
        match self {
            Element::Bf16 => 1.0 / 256.0,
            Element::F16 => 1.0 / 2048.0,
        }
    }

    /// As a kernel reads them.
    fn buffer(self, values: &[f32]) -> Buffer {
        Buffer::of(&values.iter().map(|v| self.bits(*v)).collect::<Vec<u16>>())
    }

    fn read(self, buffer: &Buffer) -> Vec<f64> {
        buffer.read::<u16>().into_iter().map(|bits| self.value(bits)).collect()
    }
}

const ELEMENTS: [Element; 2] = [Element::Bf16, Element::F16];

/// A random weight, packed, and its values.
struct Sample {
    packed: Packed,
    values: Vec<f64>,
}

fn sample(random: &mut Random, packing: Packing, element: Element, rows: usize, k: usize) -> Sample {
    let count = rows * k;
    let half = |v: f32| f16::from_f32(v);
    match packing {
        Packing::Plain => {
            let bits: Vec<u16> = random.normal(count).into_iter().map(|v| element.bits(v)).collect();
            let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
            let values = bits.into_iter().map(|b| element.value(b)).collect();
            Sample { packed: weight::plain(&bytes, rows, k).unwrap(), values }
        }
        Packing::Q8_0 | Packing::Q4_0 | Packing::Q4_1 => {
            let (mut bytes, mut values) = (Vec::new(), Vec::new());
            for _ in 0..count / 32 {
                let (d, m) = (half(random.uniform() * 0.1 - 0.05), half(random.uniform() - 0.5));
                bytes.extend(d.to_le_bytes());
                if packing == Packing::Q4_1 {
                    bytes.extend(m.to_le_bytes());
                }
                let body: Vec<u8> = (0..if packing == Packing::Q8_0 { 32 } else { 16 }).map(|_| random.below(256) as u8).collect();
                values.extend((0..32).map(|i| match packing {
                    Packing::Q8_0 => d.to_f64() * f64::from(body[i] as i8),
                    _ => {
                        let q = f64::from(if i < 16 { body[i] % 16 } else { body[i - 16] / 16 });
                        if packing == Packing::Q4_0 { d.to_f64() * (q - 8.0) } else { d.to_f64() * q + m.to_f64() }
                    }
                }));
                bytes.extend(body);
            }
            Sample { packed: weight::blocks(packing, &bytes, rows, k).unwrap(), values }
        }
        Packing::Int8 | Packing::Fp8 => {
            // Values that eight bits hold exactly, so that rounding is another test's matter.
            let mut values = Vec::new();
            for _ in 0..rows {
                let scale = 2f32.powi(random.below(5) as i32 - 8);
                let row = values.len();
                values.extend((0..k).map(|_| {
                    if packing == Packing::Int8 {
                        (random.below(255) as f32 - 127.0) * scale
                    } else {
                        weights::e4m3_value(random.below(256) as u8).unwrap_or(0.0) * scale
                    }
                }));
                values[row] = if packing == Packing::Int8 { 127.0 } else { 448.0 } * scale;
            }
            let packed = weight::scale_rows(packing, &values, rows, k).unwrap();
            Sample { packed, values: values.into_iter().map(f64::from).collect() }
        }
    }
}

/// A weight on the "device".
struct Placed {
    quants: Buffer,
    scales: Buffer,
    packing: Packing,
    rows: usize,
    k: usize,
}

impl Placed {
    fn new(packed: &Packed) -> Placed {
        let Packed { packing, rows, k, .. } = *packed;
        Placed { quants: Buffer::of(&packed.quants), scales: Buffer::of(&packed.scales), packing, rows, k }
    }

    fn matrix(&self) -> Matrix {
        let Placed { packing, rows, k, .. } = *self;
        Matrix { packing, rows, k, quants: self.quants.ptr(), scales: self.scales.ptr() }
    }
}


fn normed(x: &[f32], gamma: &[f32], eps: f64) -> Vec<f64> {
    let k = gamma.len();
    x.chunks(k)
        .flat_map(|x| {
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / k as f64;
            let factor = 1.0 / (mean + eps).sqrt();
            x.iter().zip(gamma).map(move |(x, g)| f64::from(*x) * factor * f64::from(*g)).collect::<Vec<_>>()
        })
        .collect()
}

struct Case<'a> {
    emulator: Emulator,
    random: &'a mut Random,
    element: Element,
    packing: Packing,
}

impl Case<'_> {
    fn name(&self, rows: usize, out: usize, k: usize) -> String {
        format!("{} {} [{out}, {k}], {rows} rows, seed {}", self.packing.name(), self.element.name(), self.random.seed)
    }

    fn run(&mut self, call: &Call) {
        let order = self.random.below(1 << 30) as u64;
        self.emulator.run(call, order);
    }
}

fn each(packings: &[Packing], mut test: impl FnMut(&mut Case)) {
    let Some(emulator) = emulator() else { return };
    let mut random = Random::fresh();
    for element in ELEMENTS {
        for &packing in packings {
            test(&mut Case { emulator, random: &mut random, element, packing });
        }
    }
}
