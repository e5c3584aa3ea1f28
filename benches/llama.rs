//! The real SmolLM2 without text, store and HTTP: prefill of 512 tokens, time to the first token, decode at batch 1 and 4.
//! Knows the registry's bench entry and the pinned weights; the ratios to a peer come from `cargo xtask bench --peer llama`.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use models::{BenchResult, BenchShape, Entry, Told};
use prediction::{LoadSpec, Weights};

fn measure(shape: &BenchShape) -> BenchResult {
    let weights = Weights::Locked { name: "smollm2".into(), offline: false };
    let spec = LoadSpec::new("smollm2", "llama", weights);
    let llama = Entry::named("llama").expect("it is registered");
    let mut found = None;
    let measured = (llama.bench)(&spec, std::slice::from_ref(shape), &mut |told| {
        if let Told::Result(result) = told {
            found = Some(result);
        }
    });
    measured.expect("the weights can be had: `pinion weights pull smollm2`");
    found.expect("one shape, one result")
}

fn llama(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("smollm2");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(20));
    let mut case = |name: &str, shape: BenchShape, tokens: usize, seconds: fn(&BenchResult, usize) -> f64| {
        group.throughput(Throughput::Elements(tokens as u64)).bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                (0..times).map(|_| Duration::from_secs_f64(seconds(&measure(&shape), tokens))).sum()
            });
        });
    };
    let prefill: fn(&BenchResult, usize) -> f64 = |result, tokens| tokens as f64 / result.prefill_tokens_per_s;
    let decode: fn(&BenchResult, usize) -> f64 = |result, tokens| tokens as f64 / result.decode_tokens_per_s;
    let first: fn(&BenchResult, usize) -> f64 = |result, _| result.time_to_first_token_s;
    let shape =
        |prompt_tokens, decode_tokens, batch| BenchShape { prompt_tokens, decode_tokens, batch, side: 0, steps: 0 };
    case("prefill 512", shape(512, 1, 1), 512, prefill);
    case("first token of a 32-token prompt", shape(32, 1, 1), 1, first);
    case("decode, batch 1", shape(16, 128, 1), 128, decode);
    case("decode, batch 4", shape(16, 128, 4), 4 * 128, decode);
    group.finish();
}

criterion_group!(benches, llama);
criterion_main!(benches);
