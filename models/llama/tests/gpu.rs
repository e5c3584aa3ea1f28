//! The engine of a GPU, on the emulator: what a GPU would do, beside the CPU.

use std::sync::Arc;

use ::prediction::LoadSpec;
use candle_core::Device;
use kernels::Pool;
use kernels::attention::BLOCK;
use kernels::cuda::emulated::Emulated;
use kernels::cuda::emulator::emulator;

use super::super::blocks::Blocks;
use super::super::engine::Engine;
use super::super::gpu::{Fit, Gpu, needs};
use super::super::needs::Load;
use super::super::rows::Rows;
use super::super::sampler::{Sampler, Settings};
use super::super::schedule::{Past, Schedule, Turn};
use super::super::weights::Opened;

fn opened(dtype: &str) -> Opened {
    Opened::synth("tiny-64", dtype, 3).unwrap()
}

fn load<'a>(precision: Option<&'a str>, blocks: usize, batch_invariant: bool) -> Load<'a> {
    let (slots, context, rows) = (6, 256, 200);
    Load { device: &Device::Cpu, precision, slots, context, blocks, rows, batch_invariant }
}

fn on_gpu(opened: &Opened, load: &Load) -> Option<Gpu<Emulated>> {
    let fit = Fit::of(opened, load.precision, true).unwrap();
    Some(Gpu::load(Emulated::new(emulator()?), opened, fit, load, &Pool::new(2), &mut |_, _| ()).unwrap())
}

fn on_cpu(opened: &Opened, load: &Load) -> Box<dyn Engine> {
    opened.engine(load, &Arc::new(Pool::new(2)), &mut |_| ()).unwrap()
}

fn logits(engine: &mut dyn Engine, first: u32, tokens: &[u32]) -> Vec<f32> {
    let table: Vec<u32> = (first..first + tokens.len().div_ceil(BLOCK) as u32).collect();
    let mut rows = Rows::default();
    rows.push(&table, 0, tokens);
    rows.want_last(0);
    engine.logits(&rows).unwrap()
}

#[test]
fn time_of_one() {
    let opened = opened("f16");
    let load = load(None, 8, false);
    let Some(mut gpu) = on_gpu(&opened, &load) else { return };
    let began = std::time::Instant::now();
    let tokens: Vec<u32> = (5..25).collect();
    let a = logits(&mut gpu, 1, &tokens);
    eprintln!("20 rows {:?}", began.elapsed());
    let began = std::time::Instant::now();
    let b = logits(&mut *on_cpu(&opened, &load), 1, &tokens);
    eprintln!("cpu {:?}", began.elapsed());
    let n = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let d: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
    eprintln!("off {} of {}", n(&d), n(&b));
    let began = std::time::Instant::now();
    logits(&mut gpu, 1, &tokens[..1]);
    eprintln!("1 row {:?}", began.elapsed());
}
