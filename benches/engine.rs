//! The engine as a worker drives it, on the real SmolLM2: the time to the first token of a long beginning the first and the
//! second time, and 200 requests at once beside 8 at once. Knows the seam of a model and the pinned weights; refuses to know
//! HTTP, store and dispatch.

use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use models::Entry;
use prediction::{Event, Id, Job, LoadSpec, Loaded, Outcome, Weights};
use serde_json::json;

/// About 1,000 tokens.
const BEGINNING_WORDS: usize = 830;
const REQUESTS: usize = 200;
const FEW: usize = 8;
/// As many requests as the other side has.
const FEW_TIMES: usize = REQUESTS / FEW;
const TOKENS: usize = 32;

fn load(concurrency: Option<u32>) -> Box<dyn Loaded> {
    let weights = Weights::Locked { name: "smollm2".into(), offline: false };
    let spec = LoadSpec { concurrency, ..LoadSpec::new("smollm2", "llama", weights) };
    let llama = Entry::named("llama").expect("it is registered");
    (llama.model)().load(&spec, &mut |_| ()).expect("the weights can be had: `pinion weights pull smollm2`")
}

fn job(id: &str, prompt: String, tokens: usize) -> Job {
    let input = json!({"prompt": prompt, "temperature": 0, "max_tokens": tokens, "min_tokens": tokens});
    Job { id: Id::from(id), input: input.as_object().expect("an object").clone(), seed: 1 }
}

/// A text that no other number gives.
fn beginning(number: u64) -> String {
    const WORDS: [&str; 8] = ["harbour", "lamp", "tide", "pilot", "salt", "bell", "keel", "gauge"];
    let word = |i: u64| WORDS[(number.wrapping_mul(0x9E37_79B9).wrapping_add(i * i) >> 3) as usize % WORDS.len()];
    let words: Vec<&str> = (0..BEGINNING_WORDS as u64).map(word).collect();
    format!("Log number {number}: {}", words.join(" "))
}

/// Until the first text of one prediction, and how many tokens it read.
fn first_token(model: &mut dyn Loaded, prompt: String) -> (Duration, u64) {
    let (began, mut first, mut read) = (Instant::now(), None, 0);
    model.admit(job("one", prompt, 2)).expect("it fits");
    while model.active() > 0 {
        let step = model.step(&mut |_, event| match event {
            Event::Output(_) => {
                first.get_or_insert_with(|| began.elapsed());
            }
            Event::Metric { name, value } if name == "input_token_count" => read = value.as_u64().unwrap_or(0),
            _ => (),
        });
        step.expect("the device works");
    }
    (first.expect("it speaks"), read)
}

/// Seconds until `requests` have ended, as many of them inside as the model takes.
fn all(model: &mut dyn Loaded, requests: usize) -> Duration {
    let (began, mut next, mut succeeded) = (Instant::now(), 0, 0);
    while next < requests || model.active() > 0 {
        while next < requests && model.active() < model.capacity() {
            let prompt = format!("Request {next}: say something about the sea and the number {}.", next * 7);
            model.admit(job(&next.to_string(), prompt, TOKENS)).expect("it fits");
            next += 1;
        }
        let step = model.step(&mut |_, event| succeeded += usize::from(event == Event::Ended(Outcome::Succeeded)));
        step.expect("the device works");
    }
    assert_eq!(succeeded, requests);
    began.elapsed()
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1000.0
}

fn engine(criterion: &mut Criterion) {
    let mut model = load(None);
    let mut number = 0;
    let mut fresh = || {
        number += 1;
        beginning(number)
    };
    first_token(&mut *model, fresh()); // Touches memory, and learns how fast prompts are read.
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    for _ in 0..5 {
        let text = fresh();
        let (first, read) = first_token(&mut *model, format!("{text} And now the first question: what is a buoy?"));
        let (second, _) = first_token(&mut *model, format!("{text} But here is quite another one: who rings a bell?"));
        println!("{read} tokens, first {first:.3?}, the same beginning again {second:.3?}");
        pairs.push((first.as_secs_f64(), second.as_secs_f64()));
    }
    pairs.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    println!("median ratio {:.1}", pairs[2].0 / pairs[2].1);
    // In turn, because a machine is seldom equally busy for half a minute.
    let mut few = load(Some(FEW as u32));
    all(&mut *few, FEW);
    let speed = |requests: usize, seconds: f64| (requests * TOKENS) as f64 / seconds;
    let mut ratios: Vec<f64> = Vec::new();
    for _ in 0..5 {
        let at_few =
            speed(FEW, (0..FEW_TIMES).map(|_| all(&mut *few, FEW).as_secs_f64()).sum::<f64>() / FEW_TIMES as f64);
        let at_once = speed(REQUESTS, all(&mut *model, REQUESTS).as_secs_f64());
        println!("{REQUESTS} requests: {at_once:.0} tokens/s, {FEW}: {at_few:.0}, resident {:.0} MB", resident_mb());
        ratios.push(at_once / at_few);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[2]);
    drop(few);
    drop(model);

    let mut group = criterion.benchmark_group("engine");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(10));
    let mut model = load(None);
    group.bench_function("first token of 1,000 tokens", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| first_token(&mut *model, fresh()).0).sum())
    });
    group.bench_function("first token of 1,000 known tokens", |bencher| {
        let text = fresh();
        first_token(&mut *model, text.clone());
        let mut asked = 0;
        bencher.iter_custom(|times| {
            let once = |_| {
                asked += 1;
                first_token(&mut *model, format!("{text} {asked}: is it far from here to the old light?")).0
            };
            (0..times).map(once).sum()
        })
    });
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
