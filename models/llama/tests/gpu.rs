//! The engine of a GPU with all of its host's code, on the emulator, beside the CPU: the same kernels' source, tables, buckets,
//! copies and steps sent ahead; what only a GPU can show is its speed and the order of sums inside its matrix instruction.

use std::sync::Arc;

use ::prediction::{Event, Id, LoadSpec, Loaded, Outcome, Weights};
use candle_core::Device;
use kernels::Pool;
use kernels::attention::BLOCK;
use kernels::cuda::emulated::Emulated;
use kernels::cuda::emulator::emulator;
use kernels::op::Ask;
use serde_json::{Value, json};

use super::super::engine::Engine;
use super::super::gpu::{Fit, Gpu, needs};
use super::super::input::Asked;
use super::super::needs::Load;
use super::super::pipeline::Pipeline;
use super::super::rows::Rows;
use super::super::weights::Opened;
use super::{golden, job, of, pieces, spec, steps};

const SLOTS: usize = 6;
const CONTEXT: usize = 256;
/// As many as the pipeline plans at most.
const ROWS: usize = 512 + SLOTS;

fn opened(dtype: &str) -> Opened {
    Opened::synth("tiny-64", dtype, 3).unwrap()
}

pub fn load(precision: Option<&str>, blocks: usize, batch_invariant: bool) -> Load<'_> {
    Load { device: &Device::Cpu, precision, slots: SLOTS, context: CONTEXT, blocks, rows: ROWS, batch_invariant }
}

/// None where there is no C++ compiler for the kernels' source.
fn on_gpu(opened: &Opened, load: &Load) -> Option<Gpu<Emulated>> {
    let fit = Fit::of(opened, load.precision, true).unwrap();
    Some(Gpu::load(Emulated::new(emulator()?), opened, fit, load, &Pool::new(2), None, &mut |_, _| ()).unwrap())
}

fn on_cpu(opened: &Opened, load: &Load) -> Box<dyn Engine> {
    opened.engine(load, &Arc::new(Pool::new(2)), None, &mut |_| ()).unwrap()
}

fn tokens(count: usize, from: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (from + i * i * 7 + 31 * i) % 600).collect()
}

/// A sequence of the cache: its blocks, and how far it was read.
struct Sequence {
    table: Vec<u32>,
    tokens: Vec<u32>,
    read: usize,
}

impl Sequence {
    fn new(first_block: u32, tokens: Vec<u32>) -> Sequence {
        let blocks = (tokens.len() + 8).div_ceil(BLOCK) as u32;
        // Backwards, so that no two neighbours are neighbours in memory.
        Sequence { table: (first_block..first_block + blocks).rev().collect(), tokens, read: 0 }
    }
}

/// Reads so many tokens of each more, together. Their last logits.
fn read(engine: &mut dyn Engine, parts: &mut [(&mut Sequence, usize)]) -> Vec<Vec<f32>> {
    let mut rows = Rows::default();
    for (number, (sequence, count)) in parts.iter_mut().enumerate() {
        rows.push(&sequence.table, sequence.read, &sequence.tokens[sequence.read..sequence.read + *count]);
        rows.want_last(number as u64);
        sequence.read += *count;
    }
    let logits = engine.logits(&rows).unwrap();
    logits.chunks(engine.vocabulary()).map(<[f32]>::to_vec).collect()
}

/// |a - b| / |b|
fn off(a: &[f32], b: &[f32]) -> f32 {
    let size = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
    size(&mut a.iter().zip(b).map(|(a, b)| a - b)) / size(&mut b.iter().copied())
}

/// Prompts short and long, alone and together, cut anywhere, then tokens one by one in company.
pub fn schedule(engine: &mut dyn Engine) -> Vec<Vec<f32>> {
    let mut a = Sequence::new(0, tokens(75, 1));
    let mut b = Sequence::new(3, tokens(140, 2));
    let mut c = Sequence::new(7, tokens(39, 3));
    let mut all = read(engine, &mut [(&mut a, 70)]);
    all.extend(read(engine, &mut [(&mut b, 33), (&mut a, 1)]));
    all.extend(read(engine, &mut [(&mut a, 1), (&mut b, 100), (&mut c, 30)]));
    all.extend(read(engine, &mut [(&mut a, 1), (&mut b, 1), (&mut c, 1)]));
    all.extend(read(engine, &mut [(&mut c, 1)]));
    all.extend(read(engine, &mut [(&mut b, 1), (&mut c, 2)]));
    all
}

#[test]
fn logits_are_the_cpus_within_what_rounding_activations_costs() {
    // Stored as, precision on the GPU, on the CPU, |difference| / |logits| allowed. Sixteen-bit activations are rounded some ten
    // times on their way: 2^-11 and 2^-8 each; a scale per row is no format of the CPU, which then keeps f16.
    let cases = [
        ("f16", None, None, 1.5e-3),
        ("bf16", None, None, 1.2e-2),
        ("f32", Some("f16"), Some("f16"), 1.5e-3),
        ("f16", Some("q8_0"), Some("q8_0"), 1.5e-3),
        ("bf16", Some("q8_0"), Some("q8_0"), 1.2e-2),
        ("f16", Some("q4_0"), Some("q4_0"), 1.5e-3),
        ("f16", Some("int8"), None, 2e-2),
        ("f16", Some("fp8"), None, 6e-2),
    ];
    for (stored, precision, on_the_cpu, allowed) in cases {
        let opened = opened(stored);
        let expected = schedule(&mut *on_cpu(&opened, &load(on_the_cpu, 8, false)));
        // The way of single rows is the same for all formats.
        for batch_invariant in [false, true].into_iter().take(if precision.is_none() { 2 } else { 1 }) {
            let Some(mut gpu) = on_gpu(&opened, &load(precision, 8, batch_invariant)) else { return };
            for (step, (got, expected)) in schedule(&mut gpu).iter().zip(&expected).enumerate() {
                let off = off(got, expected);
                assert!(off <= allowed, "{stored} {precision:?} {batch_invariant} logits {step}: off by {off}");
            }
        }
    }
}

#[test]
fn batch_invariant_logits_are_bit_equal_however_a_sequence_was_read() {
    for (stored, precision) in [("bf16", None), ("f16", Some("q4_0"))] {
        let opened = opened(stored);
        let load = Load { slots: 16, ..load(precision, 26, true) };
        let Some(mut gpu) = on_gpu(&opened, &load) else { return };
        let text = tokens(71, 9);
        let mut whole = Sequence::new(0, text.clone());
        let want = read(&mut gpu, &mut [(&mut whole, 71)]).remove(0);
        let bits = |logits: &[f32]| logits.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let mut check = |how: &str, cuts: &[usize], company: usize| {
            let mut own = Sequence::new(4, text.clone());
            let mut others: Vec<_> =
                (0..company).map(|i| Sequence::new(8 + i as u32, tokens(60, 50 + i as u32))).collect();
            let mut last = Vec::new();
            for &cut in cuts {
                let mut parts: Vec<_> = others.iter_mut().map(|other| (other, 1)).collect();
                parts.insert(company / 2, (&mut own, cut));
                last = read(&mut gpu, &mut parts).remove(company / 2);
            }
            assert_eq!(bits(&last), bits(&want), "{stored} {precision:?}: {how}");
        };
        check("in parts", &[1, 40, 24, 6], 0);
        check("in company", &[30, 40, 1], 5);
        check("in a batch of 16", &[30, 40, 1], 15);
        check("the end token by token", &[66, 1, 1, 1, 1, 1], 2);
    }
}

/// The pipeline on random weights, its engine a GPU's.
fn pipeline(precision: Option<&str>, dtype: &str, blocks: usize, gpu: Option<bool>) -> Option<Pipeline> {
    let weights = Weights::Synth { shape: "tiny-64".into(), dtype: dtype.into(), seed: 3 };
    let spec = LoadSpec {
        weights,
        precision: precision.map(str::to_owned),
        concurrency: Some(SLOTS as u32),
        context_tokens: Some(CONTEXT as u32),
        ..spec(&golden("tiny-tied"))
    };
    let mut pipeline = Pipeline::with_cache(&spec, Some(blocks), None, &mut |_| ()).unwrap();
    if let Some(batch_invariant) = gpu {
        pipeline.engine = Box::new(on_gpu(&opened(dtype), &load(precision, blocks, batch_invariant))?);
    }
    Some(pipeline)
}

/// Greedy and drawn, with penalties and without; some begin the same.
fn inputs() -> Vec<Value> {
    let beginning = "The tide gauge at the outer light has been read twice a day since it was set up";
    vec![
        json!({"prompt": beginning, "temperature": 0, "max_tokens": 8, "min_tokens": 8}),
        json!({"prompt": "x", "temperature": 0, "max_tokens": 16, "min_tokens": 16}),
        json!({"prompt": format!("{beginning} by hand."), "temperature": 0.9, "top_p": 0.9, "seed": 5, "max_tokens": 6}),
        json!({"prompt": "Who rang?", "seed": 4, "temperature": 0.8, "top_k": 20, "frequency_penalty": 0.4,
            "presence_penalty": 0.2, "max_tokens": 7, "min_tokens": 7}),
        json!({"prompt": "nine people aboard", "temperature": 0, "repetition_penalty": 1.3, "max_tokens": 8}),
    ]
}

/// Everybody's text: they join while others are at work, one is cancelled, and the first is asked again when all have left.
fn texts(pipeline: &mut Pipeline) -> Vec<Vec<String>> {
    let mut events = Vec::new();
    for (name, input) in inputs().into_iter().enumerate() {
        pipeline.admit(job(&name.to_string(), input)).unwrap();
        events.extend(steps(pipeline, 1 + name));
        if name == 1 {
            pipeline.admit(job("gone", inputs().remove(1))).unwrap();
        }
        if name == 3 {
            pipeline.cancel(&Id::from("gone"));
        }
    }
    events.extend(steps(pipeline, 1000));
    pipeline.admit(job("again", inputs().remove(0))).unwrap();
    events.extend(steps(pipeline, 1000));
    let names = (0..inputs().len()).map(|name| name.to_string()).chain(["again".to_owned()]);
    let text = |name: String| {
        let own = of(&name, &events);
        assert_eq!(own.last(), Some(&&Event::Ended(Outcome::Succeeded)), "{name}");
        pieces(own)
    };
    let texts: Vec<_> = names.map(text).collect();
    assert_eq!(texts.first(), texts.last(), "asked again, with its beginning known");
    texts
}

#[test]
fn everybody_says_what_the_cpu_says_with_joins_and_leaves() {
    for (precision, batch_invariant) in [(None, false), (None, true), (Some("q8_0"), false), (Some("q4_0"), false)] {
        let expected = texts(&mut pipeline(precision, "f16", 40, None).unwrap());
        let Some(mut gpu) = pipeline(precision, "f16", 40, Some(batch_invariant)) else { return };
        assert_eq!(texts(&mut gpu), expected, "{precision:?}, {batch_invariant}");
    }
}

/// What two say whose prompts fill their blocks but for two places, with blocks for one of them to go on; how often one was
/// stopped for the other.
fn crowded(pipeline: &mut Pipeline) -> (Vec<Vec<String>>, usize) {
    let input = |prompt: String| json!({"prompt": prompt, "temperature": 0, "max_tokens": 6, "min_tokens": 6, "log_performance_metrics": true});
    let length = |pipeline: &Pipeline, prompt: &str| {
        let input = input(prompt.to_owned()).as_object().unwrap().clone();
        pipeline.prompt(&Asked::read(input, &Default::default(), 1).unwrap()).unwrap().len()
    };
    let least = length(pipeline, "a");
    let mut events = Vec::new();
    for name in ["a", "b"] {
        let prompt = name.repeat(2 * BLOCK - 2 - least + 1);
        assert_eq!(length(pipeline, &prompt), 2 * BLOCK - 2);
        pipeline.admit(job(name, input(prompt))).unwrap();
    }
    while pipeline.active() > 0 {
        // However slow this machine is, both are read at once.
        pipeline.seconds_per_row = Some(1e-6);
        events.extend(steps(pipeline, 1));
    }
    let stops = ["a", "b"].map(|name| super::engine::stops(&of(name, &events)));
    (["a", "b"].map(|name| pieces(of(name, &events))).to_vec(), stops.iter().sum())
}

#[test]
fn one_that_was_stopped_for_another_says_what_the_cpu_says() {
    let (expected, _) = crowded(&mut pipeline(None, "f16", 40, None).unwrap());
    for batch_invariant in [false, true] {
        let Some(mut gpu) = pipeline(None, "f16", 5, Some(batch_invariant)) else { return };
        let (texts, stops) = crowded(&mut gpu);
        assert_eq!(texts, expected, "{batch_invariant}");
        assert!(stops > 0, "five blocks were enough");
    }
}

#[test]
fn batch_invariant_texts_are_the_same_alone_in_a_batch_and_after_preemption() {
    let Some(mut roomy) = pipeline(None, "bf16", 40, Some(true)) else { return };
    let together = texts(&mut roomy);
    for (input, expected) in inputs().into_iter().zip(&together) {
        let mut alone = pipeline(None, "bf16", 8, Some(true)).unwrap();
        assert_eq!(&pieces(&super::alone(&mut alone, input)), expected);
    }
    let [mut roomy, mut narrow] = [40, 5].map(|blocks| pipeline(None, "bf16", blocks, Some(true)).unwrap());
    let ((texts, none), (same, stops)) = (crowded(&mut roomy), crowded(&mut narrow));
    assert_eq!((texts, none), (same, 0));
    assert!(stops > 0, "five blocks were enough");
}

#[test]
fn the_tokens_of_a_step_are_there_for_the_next_before_the_host_takes_them() {
    let opened = opened("f16");
    let load = load(None, 8, false);
    let Some(mut gpu) = on_gpu(&opened, &load) else { return };
    let prompts = [tokens(5, 1), tokens(66, 2)];
    let tables: [&[u32]; 2] = [&[3], &[2, 5]];
    let asks = [Ask::greedy(); 2];
    let mut rows = Rows::default();
    let prompt = |rows: &mut Rows| {
        rows.clear();
        for (number, (table, prompt)) in tables.iter().zip(&prompts).enumerate() {
            rows.push(table, 0, prompt);
            rows.want_last(number as u64);
        }
    };
    prompt(&mut rows);
    // Step by step: the second row first.
    let first: Vec<u32> = gpu.step(&rows, &asks).unwrap().into_iter().map(Result::unwrap).collect();
    rows.clear();
    rows.push(tables[1], 66, &[first[1]]);
    rows.want_last(1);
    rows.push(tables[0], 5, &[first[0]]);
    rows.want_last(0);
    let second = gpu.step(&rows, &asks).unwrap();
    // Ahead.
    prompt(&mut rows);
    gpu.send(&rows, &asks).unwrap();
    rows.clear();
    rows.push_next(tables[1], 66, 1);
    rows.want_last(1);
    rows.push_next(tables[0], 5, 0);
    rows.want_last(0);
    gpu.send(&rows, &asks).unwrap();
    assert!(gpu.send(&rows, &asks).is_err(), "two are under way");
    assert_eq!(gpu.take().unwrap(), [Ok(first[0]), Ok(first[1])]);
    assert_eq!(gpu.take().unwrap(), second);
    assert!(gpu.take().is_err(), "none is");
    assert_ne!(first[0], first[1], "else nobody would notice");
}

#[test]
fn a_row_without_a_token_to_choose_is_told_and_the_others_go_on() {
    let opened = opened("f16");
    let load = load(None, 8, false);
    let Some(mut gpu) = on_gpu(&opened, &load) else { return };
    let step = |gpu: &mut Gpu<Emulated>, position: usize, banned: &[u32]| {
        let mut rows = Rows::default();
        for sequence in 0..2 {
            rows.push(&[sequence], position, &[11 + sequence]);
            rows.want_last(u64::from(sequence));
        }
        gpu.step(&rows, &[Ask { banned, ..Ask::greedy() }, Ask::greedy()]).unwrap()
    };
    let free = step(&mut gpu, 0, &[]);
    assert!(free.iter().all(Result::is_ok));
    // All of them: more than there was room for when it was loaded.
    let all: Vec<u32> = (0..gpu.vocabulary() as u32).collect();
    let banned = step(&mut gpu, 0, &all);
    assert!(banned[0].is_err());
    assert_eq!(banned[1], free[1]);
    let but_one: Vec<u32> = all.iter().copied().filter(|token| *token != 77).collect();
    assert_eq!(step(&mut gpu, 0, &but_one), [Ok(77), free[1]]);
    assert_eq!(step(&mut gpu, 0, &[]), free);
}

#[test]
fn what_is_needed_is_what_is_taken_of_the_device() {
    for (precision, batch_invariant) in [(None, false), (Some("q4_0"), false), (Some("int8"), true)] {
        let (opened, load) = (opened("bf16"), load(precision, 8, batch_invariant));
        let fit = Fit::of(&opened, precision, true).unwrap();
        let told = needs(&opened, fit, &load).unwrap();
        let Some(emulator) = emulator() else { return };
        let stream = Emulated::new(emulator);
        let taken = stream.device_bytes();
        let mut gpu = Gpu::load(stream, &opened, fit, &load, &Pool::new(1), None, &mut |_, _| ()).unwrap();
        gpu.warm().unwrap();
        assert_eq!((taken.get() as u64, gpu.bytes()), (told.total(), told.total()), "{precision:?}");
        assert_eq!(gpu.weights_bytes(), told.weights);
    }
}

#[test]
fn what_our_kernels_cannot_run_is_told_with_the_reason() {
    let why = |opened: &Opened, precision, bf16| Fit::of(opened, precision, bf16).unwrap_err();
    let small = Opened::synth("tiny", "f16", 1).unwrap();
    assert_eq!(why(&small, None, true), "heads of 16; our CUDA kernels have 64 and 128");
    assert!(why(&opened("f32"), None, true).starts_with("numbers are to be f32;"));
    assert!(why(&opened("f16"), Some("f32"), true).starts_with("numbers are to be f32;"));
    assert_eq!(why(&opened("f16"), Some("bf16"), false), "precision bf16 is not for this GPU");
    let element = |stored, precision, bf16| Fit::of(&opened(stored), precision, bf16).unwrap().element.name();
    assert_eq!(element("bf16", None, true), "bf16");
    assert_eq!(element("bf16", None, false), "f16", "a GPU without it");
    assert_eq!(element("bf16", Some("fp8"), true), "bf16");
    assert_eq!(element("f32", Some("int8"), false), "f16");
    assert_eq!(element("f16", Some("q4_0"), true), "f16");
}

#[test]
fn a_step_for_which_there_is_no_room_is_refused() {
    let (opened, load) = (opened("f16"), load(None, 4, false));
    let Some(mut gpu) = on_gpu(&opened, &load) else { return };
    let mut refuse = |table: &[u32], position: usize, count: usize, words: &str| {
        let mut rows = Rows::default();
        rows.push(table, position, &tokens(count, 0));
        rows.want_last(0);
        let why = gpu.send(&rows, &[Ask::greedy()]).unwrap_err().to_string();
        assert!(why.contains(words), "{why:?} lacks {words:?}");
    };
    refuse(&[0; 9], 0, ROWS + 1, "a step of 519 rows");
    refuse(&[4], 0, 1, "4");
    refuse(&[0, 1, 2, 3, 3], 256, 1, "position 256 is outside the context of 256 tokens");
}
