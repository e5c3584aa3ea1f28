//! Every CPU kernel of the Llama beside its floors, SmolLM2's shapes: what it moves over the reading speed measured in this run,
//! and its operations over the nominal rate of the threads. Prints a table. What fits into a cache beats the first floor; on a
//! busy machine the figures say nothing.
//!
//! `cargo run --release -p kernels --example cpu_kernels [THREADS]`

use std::time::Instant;

use kernels::attention::{Cache, Places, Queries, Shape, attention};
use kernels::linear::{Weight, matmul};
use kernels::rope::{RopeTable, rope};
use kernels::sample::{Ask, sample};
use kernels::{Format, Pool, bandwidth, norm, swiglu};

const HIDDEN: usize = 576;
const INNER: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const VOCABULARY: usize = 49_152;
const CONTEXT: usize = 512;
/// f32 multiplications and additions of one AVX2 core a second, as the kernels' files take it.
const FLOPS_PER_THREAD: f64 = 200e9;
/// A figure is the median of as many groups of runs as this takes, 11 at least.
const SECONDS: f64 = 0.3;
const LEAST_GROUPS: usize = 11;
const GROUP_SECONDS: f64 = 1e-4;

struct Table {
    bytes_per_s: f64,
    flops: f64,
}

impl Table {
    fn line(&self, name: &str, rows: usize, bytes: usize, flops: f64, mut run: impl FnMut()) {
        run();
        // A call of a fraction of a microsecond is timed in groups, so that the clock is not what is measured.
        let began = Instant::now();
        run();
        let group = (GROUP_SECONDS / began.elapsed().as_secs_f64()).clamp(1.0, 1e4) as usize;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < LEAST_GROUPS || start.elapsed().as_secs_f64() < SECONDS {
            let began = Instant::now();
            (0..group).for_each(|_| run());
            times.push(began.elapsed().as_secs_f64() / group as f64);
        }
        times.sort_by(f64::total_cmp);
        let us = |seconds: f64| seconds * 1e6;
        let (took, moved, counted) = (times[times.len() / 2], bytes as f64 / self.bytes_per_s, flops / self.flops);
        let share = 100.0 * moved.max(counted) / took;
        println!(
            "| {name} | {rows} | {:.3} | {:.1} | {:.4} | {:.1} | {:.1} | {share:.0} % |",
            bytes as f64 / 1e6,
            us(moved),
            flops / 1e9,
            us(counted),
            us(took)
        );
    }
}

/// Numbers of no meaning around zero.
fn numbers(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let pool = Pool::new(threads);
    let bytes_per_s = bandwidth::read_bytes_per_s(&pool);
    println!("{threads} threads, {}, {:.1} GB/s read\n", pool.simd().name(), bytes_per_s / 1e9);
    println!(
        "| kernel | rows | MB | at that speed, us | GFLOP | at 200 GFLOP/s a thread, us | measured, us | larger floor over it |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let table = Table { bytes_per_s, flops: FLOPS_PER_THREAD * threads as f64 };
    for rows in [1, 512] {
        by_rows(&table, rows, &pool);
    }
    // Zipf's law over the ids in no order, about what a language model is sure of. The choice leaves weights behind, so each call
    // gets them anew, and the copy is in the figure.
    let ranks = (0..VOCABULARY as u32).map(|id| id.wrapping_mul(2_654_435_761) % VOCABULARY as u32);
    let fresh: Vec<f32> = ranks.map(|rank| -1.2 * (1.0 + rank as f32).ln()).collect();
    let mut logits = fresh.clone();
    for (name, ask, operations) in [
        ("choice, greedy", Ask::greedy(), 1.0),
        ("choice, drawn", Ask { temperature: 0.8, top_p: 0.9, seed: 7, ..Ask::greedy() }, 15.0),
    ] {
        let mut chosen = [Ok(0)];
        let flops = operations * VOCABULARY as f64;
        table.line(name, 1, VOCABULARY * 4, flops, || {
            logits.copy_from_slice(&fresh);
            sample(&mut logits, VOCABULARY, &[ask], &mut chosen, &pool);
        });
    }
}

fn by_rows(table: &Table, rows: usize, pool: &Pool) {
    let count = rows as f64;
    let (x, gamma) = (numbers(rows * HIDDEN), numbers(HIDDEN));
    let mut y = vec![0.0; rows * HIDDEN];
    table.line("norm", rows, rows * HIDDEN * 8, count * HIDDEN as f64 * 4.0, || {
        norm::rms_norm(&x, HIDDEN, &gamma, 1e-5, &mut y, pool);
    });
    let (gate_up, mut hidden) = (numbers(rows * 2 * INNER), vec![0.0; rows * INNER]);
    table.line("swiglu", rows, rows * INNER * 12, count * INNER as f64 * 16.0, || {
        swiglu::swiglu(&gate_up, INNER, &mut hidden, pool);
    });
    let frequencies: Vec<f32> = (0..DIM / 2).map(|i| 1e5f32.powf(-(i as f32) / 32.0)).collect();
    let angles = RopeTable::new(&frequencies, CONTEXT);
    let positions: Vec<u32> = if rows == 1 { vec![CONTEXT as u32 - 1] } else { (0..rows as u32).collect() };
    let (heads, mut turned) = (numbers(rows * HIDDEN), vec![0.0; rows * HIDDEN]);
    table.line("rope", rows, rows * HIDDEN * 8, count * HIDDEN as f64 * 4.0, || {
        rope(&heads, HIDDEN, HEADS, &angles, &positions, &mut turned, pool);
    });
    for (name, out, in_) in [("down", HIDDEN, INNER), ("head", VOCABULARY, HIDDEN)] {
        for format in [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_1] {
            let Ok(size) = format.size(out, in_) else { continue };
            // Small whatever they are taken for: no infinity, no NaN.
            let bytes: Vec<u8> = (0..size).map(|i| (i * 7 % 48) as u8).collect();
            let Ok(weight) = Weight::new(format, out, in_, &bytes, pool) else { continue };
            let (x, mut y) = (numbers(rows * in_), vec![0.0; rows * out]);
            let flops = 2.0 * count * (out * in_) as f64;
            table.line(&format!("{name} {}", format.name()), rows, size, flops, || {
                matmul(&x, in_, rows, &weight, &mut y, false, pool);
            });
        }
    }
    let blocks: Vec<u32> = (0..(CONTEXT / 64) as u32).collect();
    let shape = Shape { blocks: blocks.len(), kv_heads: KV_HEADS, head_dim: DIM };
    let mut cache = Cache::f16(shape);
    let (width, starts) = (KV_HEADS * DIM, [0, blocks.len() as u32]);
    let all: Vec<u32> = (0..CONTEXT as u32).collect();
    let (keys, one) = (numbers(CONTEXT * width), vec![0; CONTEXT]);
    let Ok(places) = Places::new(&one, &all, &starts, &blocks) else { return };
    cache.write((&keys, width), (&keys, width), &places, pool);
    let Ok(places) = Places::new(&one[..rows], &positions, &starts, &blocks) else { return };
    let (q, mut seen) = (numbers(rows * HIDDEN), vec![0.0; rows * HIDDEN]);
    let pairs: f64 = positions.iter().map(|p| f64::from(*p) + 1.0).sum();
    let queries = || Queries { values: &q, stride: HIDDEN, heads: HEADS, scale: 0.125 };
    table.line("attention at 512", rows, CONTEXT * width * 4, 4.0 * pairs * HIDDEN as f64, || {
        attention(queries(), &cache, &places, &mut seen, pool);
    });
}
