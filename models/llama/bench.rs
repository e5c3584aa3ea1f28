//! How fast these weights run here: the net alone, on prompts drawn from a fixed seed, greedily, never ending early.
//! Refuses to know prediction and text: what those cost is for the benches above.

use std::time::Instant;

use kernels::attention::BLOCK;
use kernels::op::Ask;
use prediction::{LoadSpec, PredictError};

use super::engine::{Chosen, Engine};
use super::pipeline::{Pipeline, device_error};
use super::rows::Rows;
use crate::{BenchResult, BenchShape, StepTimes, Told};

/// Prompt tokens in one forward.
const CHUNK_TOKENS: usize = 512;

/// Reads `batch` prompts, then says `decode_tokens` behind each of them, all together; the same once before, unmeasured
/// and with a single step, so that every page and buffer has been touched. The weights are loaded once, with a cache for
/// the largest of the shapes.
pub fn run(spec: &LoadSpec, shapes: &[BenchShape], told: &mut dyn FnMut(Told)) -> Result<(), PredictError> {
    if shapes.iter().any(|shape| shape.prompt_tokens == 0 || shape.batch == 0) {
        return Err(PredictError::FixInput("prompt tokens and batch are at least 1".into()));
    }
    let most = |of: fn(&BenchShape) -> usize| shapes.iter().map(of).max().unwrap_or_default();
    let context = most(|shape| shape.prompt_tokens + shape.decode_tokens).max(2);
    let concurrency = Some(most(|shape| shape.batch) as u32);
    let spec = LoadSpec { concurrency, context_tokens: Some(context as u32), ..spec.clone() };
    let began = Instant::now();
    let mut pipeline = Pipeline::with_cache(&spec, Some(most(blocks)), None, &mut |line| told(Told::Line(line)))?;
    let load_s = began.elapsed().as_secs_f64();
    let bandwidth_bytes_per_s = pipeline.engine.bandwidth().map_err(device_error)?;

    for shape in shapes {
        measure(&mut *pipeline.engine, &BenchShape { decode_tokens: 1, ..*shape })?;
        let times = measure(&mut *pipeline.engine, shape)?;
        let BenchShape { prompt_tokens, decode_tokens, batch, .. } = *shape;
        let decode_s = times.steps.total_s().max(f64::MIN_POSITIVE);
        let token_p50_s = times.steps.quantile_s(0.5);
        let positions = batch * (prompt_tokens + decode_tokens / 2);
        told(Told::Result(BenchResult {
            load_s,
            time_to_first_token_s: times.first_token_s,
            prefill_tokens_per_s: (batch * prompt_tokens) as f64 / times.prefill_s,
            decode_tokens_per_s: (batch * decode_tokens) as f64 / decode_s,
            token_p50_s,
            token_p99_s: times.steps.quantile_s(0.99),
            read_bytes_per_s: pipeline.engine.step_bytes(positions) as f64 / token_p50_s.max(f64::MIN_POSITIVE),
            bandwidth_bytes_per_s,
            prompt_tokens,
            decode_tokens,
            batch,
            threads: pipeline.threads,
            weights_bytes: pipeline.engine.weights_bytes(),
        }));
    }
    Ok(())
}

/// Of the cache, for every prediction its own.
fn blocks(shape: &BenchShape) -> usize {
    shape.batch * (shape.prompt_tokens + shape.decode_tokens).div_ceil(BLOCK)
}

/// Seconds of one pass.
struct Times {
    first_token_s: f64,
    prefill_s: f64,
    steps: StepTimes,
}

fn measure(engine: &mut dyn Engine, shape: &BenchShape) -> Result<Times, PredictError> {
    let BenchShape { prompt_tokens, decode_tokens, batch, .. } = *shape;
    // Every prediction has its blocks from the start, none of them shared.
    let own = (prompt_tokens + decode_tokens).div_ceil(BLOCK);
    let blocks: Vec<u32> = (0..(batch * own) as u32).collect();
    let table = |slot: usize| &blocks[slot * own..][..own];
    let mut rows = Rows::default();
    let began = Instant::now();
    let mut first_token_s = 0.0;
    let mut said = Vec::with_capacity(batch);
    for slot in 0..batch {
        let prompt = prompt(slot as u64, prompt_tokens, engine.vocabulary() as u64);
        let mut last = 0;
        for (index, part) in prompt.chunks(CHUNK_TOKENS).enumerate() {
            rows.clear();
            rows.push(table(slot), index * CHUNK_TOKENS, part);
            if (index + 1) * CHUNK_TOKENS >= prompt_tokens {
                rows.want_last(slot as u64);
            }
            let asks = vec![Ask::greedy(); rows.wanted().len()];
            if let Some(&token) = tokens(engine.step(&rows, &asks).map_err(device_error)?)?.first() {
                last = token;
            }
        }
        said.push(last);
        if slot == 0 {
            first_token_s = began.elapsed().as_secs_f64();
        }
    }
    let prefill_s = began.elapsed().as_secs_f64();

    let (mut steps, mut began) = (StepTimes::default(), Instant::now());
    let (asks, ahead) = (vec![Ask::greedy(); batch], engine.looks_ahead());
    for position in prompt_tokens..prompt_tokens + decode_tokens {
        // Where the engine can, a step is sent before the tokens of the last one are taken, as the pipeline does it.
        let known = !ahead || position == prompt_tokens;
        rows.clear();
        for (slot, token) in said.iter().enumerate() {
            match known {
                true => rows.push(table(slot), position, &[*token]),
                false => rows.push_next(table(slot), position, slot),
            }
            rows.want_last(slot as u64);
        }
        engine.send(&rows, &asks).map_err(device_error)?;
        if !ahead || position > prompt_tokens {
            said = tokens(engine.take().map_err(device_error)?)?;
            steps.push(lap(&mut began));
        }
    }
    if ahead && decode_tokens > 0 {
        tokens(engine.take().map_err(device_error)?)?;
        steps.push(lap(&mut began));
    }
    Ok(Times { first_token_s, prefill_s, steps })
}

/// Seconds since `began`, which is now.
fn lap(began: &mut Instant) -> f64 {
    let now = Instant::now();
    now.duration_since(std::mem::replace(began, now)).as_secs_f64()
}

fn tokens(chosen: Vec<Chosen>) -> Result<Vec<u32>, PredictError> {
    let tokens = chosen.into_iter().collect::<Result<_, _>>();
    tokens.map_err(|_| PredictError::Operator("the logits are no numbers".into()))
}

/// Token ids that look like nothing in particular: a linear congruence over the slot's number.
fn prompt(slot: u64, tokens: usize, vocabulary: u64) -> Vec<u32> {
    let mut state = slot.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary) as u32
    };
    (0..tokens).map(|_| next()).collect()
}
