//! Bytes per second of each kernel and tokens per second of whole steps, Llama-3-8B shape, beside a device-to-device copy. Weights
//! are random, and every launch reads others than the last ones did, so that no cache holds them. Many launches go as one graph;
//! the median of several replays counts.

use std::cell::Cell;

use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::{Error, Result};
use kernels::cuda::attention::{self, Paged};
use kernels::cuda::call::{Call, Element, Gpu};
use kernels::cuda::check::Random;
use kernels::cuda::decoder::{Decoder, Layer, Plan, Room, Told, room_bytes};
use kernels::cuda::device::{Kernels, Memory};
use kernels::cuda::graph::Captured;
use kernels::cuda::params::{Ask, Ptr};
use kernels::cuda::product::{self, Input, Matrix};
use kernels::cuda::rows::{self, Choice};
use kernels::cuda::stream::{Memory as _, Stream, Work};
use kernels::cuda::weight::Packing;

const HIDDEN: usize = 4096;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
const FF: usize = 14336;
const VOCABULARY: usize = 128_256;
const LAYERS: usize = 32;
const QKV: usize = (HEADS + 2 * KV_HEADS) * DIM;
/// More than any cache: what a kernel reads in one graph.
const SPREAD_BYTES: usize = 512 << 20;
const REPLAYS: usize = 9;
const COPY_BYTES: usize = 1 << 30;
const BATCHES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// The median of the replays of a graph, in seconds.
pub fn seconds(kernels: &Kernels, calls: impl FnMut(&Kernels) -> Result<()>) -> Result<f64> {
    let graph = Captured::new(kernels, calls)?;
    let context = kernels.stream().context();
    let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(Error::wrap);
    let (begin, end) = (event()?, event()?);
    let mut times = Vec::new();
    for replay in 0..REPLAYS + 2 {
        begin.record(kernels.stream()).map_err(Error::wrap)?;
        graph.launch()?;
        end.record(kernels.stream()).map_err(Error::wrap)?;
        let took = begin.elapsed_ms(&end).map_err(Error::wrap)?;
        // The first ones warm up.
        if replay >= 2 {
            times.push(f64::from(took) / 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Weights enough for a model, filled with random numbers of a size that keeps every sum finite.
struct Arena {
    quants: Memory,
    scales: Memory,
    packing: Packing,
    quants_used: Cell<usize>,
    scales_used: Cell<usize>,
}

impl Arena {
    fn new(
        kernels: &Kernels,
        random: &mut Random,
        packing: Packing,
        element: Element,
        bytes: (usize, usize),
    ) -> Result<Arena> {
        let block: Vec<u8> = match packing {
            Packing::Plain => random
                .normal(8 << 20)
                .into_iter()
                .flat_map(|v| match element {
                    Element::Bf16 => half::bf16::from_f32(v * 0.02).to_le_bytes(),
                    Element::F16 => half::f16::from_f32(v * 0.02).to_le_bytes(),
                })
                .collect(),
            // No NaN among the fp8.
            _ => (0..16 << 20).map(|_| random.below(256) as u8 & 0xbf).collect(),
        };
        let scale: [u8; 4] = match packing {
            Packing::Int8 | Packing::Fp8 => 1e-4f32.to_le_bytes(),
            _ => {
                let [a, b] = half::f16::from_f32(1e-3).to_le_bytes();
                [a, b, a, b]
            }
        };
        let mut quants = Memory::zeros(kernels, bytes.0 + 256)?;
        for at in (0..bytes.0).step_by(block.len()) {
            quants.write(kernels, at, &block[..block.len().min(bytes.0 - at)])?;
        }
        let scales = Memory::of(kernels, &scale.repeat(bytes.1.div_ceil(4) + 64))?;
        kernels.synchronize()?;
        Ok(Arena { quants, scales, packing, quants_used: Cell::new(0), scales_used: Cell::new(0) })
    }

    /// The next weight; begins anew where the arena ends.
    fn matrix(&self, rows: usize, k: usize) -> Matrix {
        let (quants, scales) = self.packing.bytes(rows, k);
        let take = |used: &Cell<usize>, memory: &Memory, bytes: usize| {
            let at = if used.get() + bytes > memory.bytes() { 0 } else { used.get() };
            used.set((at + bytes).next_multiple_of(256));
            memory.ptr().at(at)
        };
        let (quants, scales) =
            (take(&self.quants_used, &self.quants, quants), take(&self.scales_used, &self.scales, scales));
        Matrix { packing: self.packing, rows, k, quants, scales }
    }
}

fn bytes_of(packing: Packing, shapes: &[(usize, usize)]) -> (usize, usize) {
    shapes.iter().fold((0, 0), |sum, &(rows, k)| {
        let (quants, scales) = packing.bytes(rows, k);
        (sum.0 + quants.next_multiple_of(256), sum.1 + scales.next_multiple_of(256))
    })
}

/// Everything but weights that a step reads and writes.
struct Bench {
    room: Room,
    ones: Memory,
    rope: Memory,
    keys: Memory,
    values: Memory,
    tables: Memory,
    positions: Memory,
    asks: Memory,
    words: Memory,
    table_blocks: usize,
    layer_bytes: usize,
    rows: usize,
    /// What `room` points to.
    _held: Vec<Memory>,
}

fn bytes<T: Copy>(values: &[T]) -> Vec<u8> {
    // SAFETY: plain numbers.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }.to_vec()
}

impl Bench {
    /// For `rows` rows that stand at `context`, with a cache of `layers`.
    fn new(kernels: &Kernels, random: &mut Random, rows: usize, context: usize, layers: usize) -> Result<Bench> {
        let zeros = |bytes| Memory::zeros(kernels, bytes);
        let table_blocks = context / attention::BLOCK + 1;
        let blocks = rows * table_blocks;
        let layer_bytes = blocks * KV_HEADS * attention::BLOCK * DIM * 2;
        let shape = decoder(kernels.element(), |rows, k| matrix(Packing::Plain, rows, k), 1);
        let sizes = room_bytes(&shape, (rows, rows, rows), false);
        let mut held = sizes.into_iter().map(zeros).collect::<Result<Vec<_>>>()?;
        let x: Vec<f32> = random.normal(rows * HIDDEN);
        held[0].write(kernels, 0, &bytes(&x))?;
        Ok(Bench {
            room: Room::of(std::array::from_fn(|part| held[part].ptr())),
            ones: Memory::of(kernels, &bytes(&vec![1f32; HIDDEN]))?,
            rope: Memory::of(kernels, &bytes(&vec![0.7f32; (context + 1) * DIM]))?,
            keys: zeros(layer_bytes * layers)?,
            values: zeros(layer_bytes * layers)?,
            tables: Memory::of(kernels, &bytes(&(0..blocks as u32).collect::<Vec<_>>()))?,
            positions: Memory::of(kernels, &bytes(&vec![context as u32; rows]))?,
            asks: Memory::of(kernels, &bytes(&vec![Ask::GREEDY; rows]))?,
            words: Memory::of(kernels, &bytes(&[vec![1u32; rows], vec![u32::MAX; rows], vec![0; rows]].concat()))?,
            table_blocks,
            layer_bytes,
            rows,
            _held: held,
        })
    }

    fn plane(&self, memory: &Memory, layer: usize) -> Ptr {
        memory.ptr().at(layer * self.layer_bytes)
    }

    fn paged(&self, layer: usize) -> Paged {
        Paged {
            keys: self.plane(&self.keys, layer),
            values: self.plane(&self.values, layer),
            tables: self.tables.ptr(),
            positions: self.positions.ptr(),
            table_blocks: self.table_blocks,
            heads: HEADS,
            kv_heads: KV_HEADS,
            dim: DIM,
        }
    }

    /// The work of one decode step, the choice of tokens included.
    fn step(&self, gpu: &Gpu, mut decoder: Decoder) -> Vec<Work> {
        for (index, layer) in decoder.layers.iter_mut().enumerate() {
            (layer.attn_gamma, layer.ffn_gamma) = (self.ones.ptr(), self.ones.ptr());
            (layer.keys, layer.values) = (self.plane(&self.keys, index), self.plane(&self.values, index));
        }
        (decoder.gamma, decoder.rope) = (self.ones.ptr(), self.rope.ptr());
        let words = self.words.ptr();
        let (tokens, from, chosen) = (words, words.at(self.rows * 4), words.at(self.rows * 8));
        let (positions, tables, table_blocks) = (self.positions.ptr(), self.tables.ptr(), self.table_blocks);
        let told = Told { tokens, from, chosen, positions, tables, table_blocks };
        let mut work = decoder.forward(gpu, &self.room, &told, &Plan::decode(self.rows));
        let (logits, asks) = (self.room.logits, self.asks.ptr());
        let choice = Choice { logits, asks, counts: Ptr::NONE, bans: Ptr::NONE, chosen };
        work.push(Work::Call(rows::choose(&choice, self.rows, VOCABULARY)));
        work
    }
}

const LAYER: [(usize, usize); 4] = [(QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * FF, HIDDEN), (HIDDEN, FF)];

fn matrix(packing: Packing, rows: usize, k: usize) -> Matrix {
    Matrix { packing, rows, k, quants: Ptr::NONE, scales: Ptr::NONE }
}

/// The shape's weights from wherever; gains, cache and rotary table are `Bench`'s.
fn decoder(element: Element, weight: impl Fn(usize, usize) -> Matrix, layers: usize) -> Decoder {
    let layer = |_| {
        let [qkv, o, gate_up, down] = LAYER.map(|(out, k)| weight(out, k));
        let none = Ptr::NONE;
        Layer { attn_gamma: none, qkv, o, ffn_gamma: none, gate_up, down, keys: none, values: none }
    };
    Decoder {
        element,
        heads: HEADS,
        kv_heads: KV_HEADS,
        dim: DIM,
        eps: 1e-5,
        embedding: weight(VOCABULARY, HIDDEN),
        layers: (0..layers).map(layer).collect(),
        gamma: Ptr::NONE,
        head: weight(VOCABULARY, HIDDEN),
        rope: Ptr::NONE,
    }
}

pub fn launch(kernels: &Kernels, calls: &[Call]) -> Result<()> {
    // SAFETY: the arena and the room are as large as the shapes say, and outlive the measurement.
    calls.iter().try_for_each(|call| unsafe { kernels.launch(call) })
}

pub fn all(kernels: &Kernels) -> Result<()> {
    let mut random = Random::fresh();
    let (from, mut to) = (Memory::zeros(kernels, COPY_BYTES)?, Memory::zeros(kernels, COPY_BYTES)?);
    let copy = 2.0 * COPY_BYTES as f64 / seconds(kernels, |kernels| to.copy_from(kernels, &from))?;
    drop((from, to));
    println!("\ncopy of 1 GiB: {:.0} GB/s, read and written\n", copy / 1e9);
    let element = kernels.element();
    println!("| kernel | weights | rows | MB | us | GB/s | of the copy |\n|---|---|---|---|---|---|---|");
    for packing in Packing::ALL {
        products(kernels, &mut random, element, packing, copy)?;
    }
    attention_and_rows(kernels, &mut random, element, copy)?;
    super::image::all(kernels, &mut random, element, copy)?;
    println!("\nDecode steps at context 512, {}\n", element.name());
    println!(
        "| weights | layers | batch | ms | tokens/s | weights GB/s | of the copy |\n|---|---|---|---|---|---|---|"
    );
    for packing in Packing::ALL {
        steps(kernels, &mut random, element, packing, copy)?;
    }
    Ok(())
}

fn line(name: &str, packing: &str, rows: usize, bytes: usize, seconds: f64, copy: f64) {
    let rate = bytes as f64 / seconds;
    let (mb, us) = (bytes as f64 / 1e6, seconds * 1e6);
    println!("| {name} | {packing} | {rows} | {mb:.1} | {us:.1} | {:.0} | {:.0} % |", rate / 1e9, 100.0 * rate / copy);
}

fn products(kernels: &Kernels, random: &mut Random, element: Element, packing: Packing, copy: f64) -> Result<()> {
    let head = bytes_of(packing, &[(VOCABULARY, HIDDEN)]);
    let spread = (SPREAD_BYTES.max(2 * head.0), SPREAD_BYTES.max(2 * head.1));
    let arena = Arena::new(kernels, random, packing, element, spread)?;
    let room = Bench::new(kernels, random, 64, 512, 1)?;
    let gpu = kernels.gpu();
    for rows in [1, 8, 64] {
        let stream = Input::Stream { x: room.room.stream, gamma: room.ones.ptr(), eps: 1e-5, rows };
        let ready = Input::Ready { x: room.room.ready, rows };
        let input = if product::norms_itself(gpu, packing, rows, HIDDEN) { stream } else { ready };
        let (paged, rope, queries) = (room.paged(0), room.rope.ptr(), room.room.queries);
        let call = |name: &str, matrix: &Matrix| match name {
            "qkv" => product::qkv(gpu, element, matrix, &input, &paged, rope, queries),
            "o" => product::add(gpu, element, matrix, room.room.seen, rows, room.room.stream),
            "gate_up" => product::gate_up(gpu, element, matrix, &input, room.room.hidden),
            "down" => product::add(gpu, element, matrix, room.room.hidden, rows, room.room.stream),
            _ => product::head(gpu, element, matrix, &input, room.room.logits),
        };
        let shapes = [
            ("qkv", LAYER[0]),
            ("o", LAYER[1]),
            ("gate_up", LAYER[2]),
            ("down", LAYER[3]),
            ("head", (VOCABULARY, HIDDEN)),
        ];
        for (name, (out, k)) in shapes {
            let (quants, scales) = packing.bytes(out, k);
            let turns = (SPREAD_BYTES / quants).max(4);
            let calls: Vec<Call> = (0..turns).map(|_| call(name, &arena.matrix(out, k))).collect();
            let took = seconds(kernels, |kernels| launch(kernels, &calls))? / turns as f64;
            line(name, packing.name(), rows, quants + scales, took, copy);
        }
    }
    Ok(())
}

fn attention_and_rows(kernels: &Kernels, random: &mut Random, element: Element, copy: f64) -> Result<()> {
    const TURNS: usize = 20;
    let scale = 1.0 / (DIM as f32).sqrt();
    for (rows, context) in [(1, 512), (1, 8192), (16, 2048), (64, 512)] {
        let per_layer = 2 * rows * KV_HEADS * (context + 1) * DIM * 2;
        let layers = (SPREAD_BYTES / per_layer).clamp(2, TURNS);
        let room = Bench::new(kernels, random, rows, context, layers)?;
        let segments = (2 * kernels.gpu().multiprocessors as usize).div_ceil(rows * KV_HEADS);
        let scratch = (room.room.partial, room.room.done);
        let call = |turn: usize| {
            let paged = room.paged(turn % layers);
            attention::decode(element, &paged, rows, scale, room.room.queries, scratch, room.room.seen, segments)
        };
        let calls: Vec<Call> = (0..TURNS).map(call).collect();
        let took = seconds(kernels, |kernels| launch(kernels, &calls))? / TURNS as f64;
        line(&format!("decode at {context}"), "-", rows, per_layer, took, copy);
    }
    let rows = 2048;
    let room = Bench::new(kernels, random, rows, 0, 1)?;
    let y = Memory::zeros(kernels, rows * 2 * FF * 2)?;
    let runs = attention::prefill_tiles(&[(0, rows)], HEADS, KV_HEADS);
    let tiles = Memory::of(kernels, &bytes(&runs))?;
    let positions = Memory::of(kernels, &bytes(&(0..rows as u32).collect::<Vec<_>>()))?;
    let prompt =
        Memory::of(kernels, &bytes(&(0..rows / 64).map(|block| block as u32).collect::<Vec<_>>().repeat(rows)))?;
    let paged = Paged { tables: prompt.ptr(), positions: positions.ptr(), table_blocks: rows / 64, ..room.paged(0) };
    let rope = Memory::of(kernels, &bytes(&vec![0.7f32; rows * DIM]))?;
    let (ones, stream, ready) = (room.ones.ptr(), room.room.stream, room.room.ready);
    let row_calls = [
        ("norm", rows * HIDDEN * 6, rows::norm(element, stream, ones, 1e-5, Ptr::NONE, (rows, HIDDEN), ready)),
        ("place", rows * QKV * 4, rows::place(element, &paged, rope.ptr(), y.ptr(), rows, room.room.queries)),
        ("swiglu", rows * FF * 6, rows::swiglu(element, y.ptr(), rows, FF, room.room.hidden)),
        (
            "prefill",
            rows * (2 * HEADS + 2 * KV_HEADS) * DIM * 2,
            attention::prefill(element, &paged, scale, room.room.queries, (tiles.ptr(), runs.len()), room.room.seen),
        ),
    ];
    for (name, moved, call) in row_calls {
        let calls = vec![call; TURNS];
        let took = seconds(kernels, |kernels| launch(kernels, &calls))? / TURNS as f64;
        line(name, "-", rows, moved, took, copy);
        if name == "prefill" {
            let flops = 4.0 * (HEADS * DIM) as f64 * (rows * (rows + 1) / 2) as f64;
            println!("\nprefill of {rows}: {:.0} TFLOP/s\n", flops / took / 1e12);
        }
    }
    Ok(())
}

fn steps(kernels: &Kernels, random: &mut Random, element: Element, packing: Packing, copy: f64) -> Result<()> {
    let most = *BATCHES.last().unwrap_or(&1);
    let (free, _) = kernels.stream().context().mem_get_info().map_err(Error::wrap)?;
    let (ends, layer) = (bytes_of(packing, &[(VOCABULARY, HIDDEN); 2]), bytes_of(packing, &LAYER));
    let cache = 2 * most * KV_HEADS * (512 + 64) * DIM * 2;
    // What is left over is for the activations and the pool.
    let usable = (free as f64 * 0.8) as usize;
    let layers = usable.saturating_sub(ends.0 + ends.1) / (layer.0 + layer.1 + cache);
    let layers = layers.min(LAYERS);
    if layers == 0 {
        println!("| {} | no room |", packing.name());
        return Ok(());
    }
    let all = (ends.0 + layers * layer.0, ends.1 + layers * layer.1);
    let arena = Arena::new(kernels, random, packing, element, all)?;
    let model = decoder(element, |rows, k| arena.matrix(rows, k), layers);
    // The embedding's rows are next to nothing.
    let read = (all.0 + all.1) - (ends.0 + ends.1) / 2;
    for rows in BATCHES {
        let room = Bench::new(kernels, random, rows, 511, layers)?;
        let work = room.step(kernels.gpu(), model.clone());
        // SAFETY: as of `launch`.
        let took = seconds(kernels, |kernels| work.iter().try_for_each(|work| unsafe { kernels.run(work) }))?;
        let rate = read as f64 / took;
        println!(
            "| {} | {layers} | {rows} | {:.3} | {:.0} | {:.0} | {:.0} % |",
            packing.name(),
            took * 1e3,
            rows as f64 / took,
            rate / 1e9,
            100.0 * rate / copy
        );
    }
    Ok(())
}
