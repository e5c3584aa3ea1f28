//! The ops that image networks spend their time in, at SDXL's sizes, each beside the multiply-add peak of the same moments.
//! Weights and images are random. Knows the kernels; the ratios to a peer come from `peer_images.py`.
//!
//! `PINION_SIMD` names a path; `PINION_THREADS` the threads (2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use kernels::op::{self, Conv2d, ConvShape, Dense, Memory, MemoryShape, Part};
use kernels::{Format, Pool, peak};

/// Times that an op is measured beside the peak; the median counts.
const TIMES: usize = 5;

struct Case {
    name: String,
    /// Operations, or values for what is bound by memory.
    work: f64,
    multiplies: bool,
    run: Box<dyn Fn()>,
}

fn random(dims: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, dims, &Device::Cpu).expect("memory for an image")
}

fn weight(len: usize, format: Format) -> Vec<u8> {
    let values = random(&[len]).to_vec1::<f32>().expect("a flat tensor");
    match format {
        Format::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        Format::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn conv(pool: &Arc<Pool>, (in_, out, side): (usize, usize, usize), stride: usize, format: Format) -> Case {
    let shape = ConvShape { in_, out, kernel: 3, stride, pad: [1; 4] };
    let bytes = weight(out * in_ * 9, format);
    let part = Part { format, out, bytes: &bytes };
    let conv = Conv2d::new(part, shape, Some(vec![0.1; out]), &Device::Cpu, pool).expect("a convolution");
    let x = random(&[1, side, side, in_]);
    let pixels = (side / stride).pow(2);
    Case {
        name: format!("conv 3x3/{stride} {in_} to {out}, {side}x{side}, {}", format.name()),
        work: (2 * pixels * out * in_ * 9) as f64,
        multiplies: true,
        run: Box::new(move || drop(conv.forward(&x).expect("it fits"))),
    }
}

fn dense(pool: &Arc<Pool>, (rows, in_, out): (usize, usize, usize), gated: bool, format: Format) -> Case {
    let bytes = weight(out * in_, format);
    let part = Part { format, out, bytes: &bytes };
    let dense = Dense::new(&[part], in_, Some(vec![0.1; out]), &Device::Cpu, pool).expect("a layer");
    let x = random(&[rows, in_]);
    Case {
        name: format!("dense{} {rows} x {in_} to {out}, {}", if gated { " + geglu" } else { "" }, format.name()),
        work: (2 * rows * in_ * out) as f64,
        multiplies: true,
        run: Box::new(move || {
            drop(if gated { dense.forward_geglu(&x) } else { dense.forward(&x) }.expect("it fits"));
        }),
    }
}

fn attention(pool: &Arc<Pool>, queries: usize, positions: usize, heads: usize, dim: usize) -> Case {
    let shape = MemoryShape { positions, heads, dim };
    let mut memory = Memory::new(shape, DType::F32, &Device::Cpu, pool).expect("a memory");
    let (k, v) = (random(&[positions, heads * dim]), random(&[positions, heads * dim]));
    memory.write(0, &k, &v).expect("it fits");
    let q = random(&[queries, heads * dim]);
    Case {
        name: format!("attention {queries} x {positions}, {heads} heads of {dim}"),
        work: (4 * queries * positions * heads * dim) as f64,
        multiplies: true,
        run: Box::new(move || {
            let sights = vec![(&memory, positions); queries];
            drop(op::attend(&q, &sights, (dim as f32).powf(-0.5)).expect("it fits"));
        }),
    }
}

fn group_norm(pool: &Arc<Pool>, channels: usize, side: usize) -> Case {
    let x = random(&[1, side, side, channels]);
    let (weight, bias, pool) = (random(&[channels]), random(&[channels]), pool.clone());
    Case {
        name: format!("group norm + silu, {side}x{side} of {channels}"),
        work: (side * side * channels) as f64,
        multiplies: false,
        run: Box::new(move || {
            drop(op::group_norm(&x, 32, &weight, &bias, 1e-5, true, &pool).expect("it fits"));
        }),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The op and the peak in turn, so that what else runs on the machine slows both.
fn beside_the_peak(pool: &Pool, case: &Case) {
    (case.run)();
    let (mut speeds, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let start = Instant::now();
        (case.run)();
        let speed = case.work / start.elapsed().as_secs_f64();
        speeds.push(speed);
        shares.push(speed / peak::flops(pool));
    }
    let (speed, milliseconds) = (median(speeds.clone()), 1e3 * case.work / median(speeds));
    let what = if case.multiplies { "GFLOP/s" } else { "Gvalues/s" };
    let share = if case.multiplies { format!(", {:.0} % of the peak", 100.0 * median(shares)) } else { String::new() };
    println!("{}: {milliseconds:.2} ms, {:.1} {what}{share}", case.name, speed / 1e9);
}

fn images(criterion: &mut Criterion) {
    let threads = std::env::var("PINION_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let pool = Arc::new(Pool::new(threads));
    println!("{}, {threads} threads, peak {:.0} GFLOP/s", pool.simd().name(), peak::flops(&pool) / 1e9);
    let make: &[fn(&Arc<Pool>) -> Case] = &[
        |pool| conv(pool, (320, 320, 64), 1, Format::F32),
        |pool| conv(pool, (640, 640, 32), 1, Format::F32),
        |pool| conv(pool, (1280, 1280, 16), 1, Format::F32),
        |pool| conv(pool, (1280, 1280, 16), 1, Format::F16),
        |pool| conv(pool, (320, 320, 64), 2, Format::F32),
        |pool| dense(pool, (4096, 640, 5120), false, Format::F32),
        |pool| dense(pool, (4096, 640, 5120), false, Format::F16),
        |pool| dense(pool, (4096, 640, 5120), false, Format::BF16),
        |pool| dense(pool, (4096, 640, 5120), true, Format::F32),
        |pool| dense(pool, (1024, 1280, 1280), false, Format::F32),
        |pool| attention(pool, 4096, 4096, 10, 64),
        |pool| attention(pool, 4096, 77, 10, 64),
        |pool| attention(pool, 4096, 4096, 1, 512),
        |pool| group_norm(pool, 320, 64),
        |pool| group_norm(pool, 1280, 32),
    ];
    let mut group = criterion.benchmark_group("images");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    for make in make {
        let case = make(&pool);
        beside_the_peak(&pool, &case);
        group.throughput(Throughput::Elements(case.work as u64));
        group.bench_function(&case.name, |bencher| bencher.iter(|| (case.run)()));
    }
    group.finish();
}

criterion_group!(benches, images);
criterion_main!(benches);
