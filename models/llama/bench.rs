//! How fast these weights run here: the net alone, on prompts drawn from a fixed seed, greedily, never ending early.
//! Refuses to know prediction and text: what those cost is for the benches above.

use std::time::Instant;

use kernels::attention::BLOCK;
use kernels::op::{self, Ask};
use prediction::{LoadSpec, PredictError};

use super::net::Rows;
use super::pipeline::{Pipeline, device_error};
use crate::{BenchResult, BenchShape};

/// Prompt tokens in one forward.
const CHUNK_TOKENS: usize = 512;

/// Reads `batch` prompts, then says `decode_tokens` behind each of them, all together; the same once before, unmeasured
/// and with a single step, so that every page and buffer has been touched.
pub fn run(spec: &LoadSpec, shape: &BenchShape, report: &mut dyn FnMut(&str)) -> Result<BenchResult, PredictError> {
    let BenchShape { prompt_tokens, decode_tokens, batch } = *shape;
    if prompt_tokens == 0 || batch == 0 {
        return Err(PredictError::FixInput("prompt tokens and batch are at least 1".into()));
    }
    let positions = prompt_tokens + decode_tokens;
    let spec =
        LoadSpec { concurrency: Some(batch as u32), context_tokens: Some(positions.max(2) as u32), ..spec.clone() };
    let began = Instant::now();
    let blocks = batch * positions.div_ceil(BLOCK);
    let mut pipeline = Pipeline::with_cache(&spec, Some(blocks), report)?;
    let load_s = began.elapsed().as_secs_f64();

    measure(&mut pipeline, &BenchShape { decode_tokens: 1, ..*shape })?;
    let times = measure(&mut pipeline, shape)?;
    Ok(BenchResult {
        load_s,
        time_to_first_token_s: times.first_token_s,
        prefill_tokens_per_s: (batch * prompt_tokens) as f64 / times.prefill_s,
        decode_tokens_per_s: (batch * decode_tokens) as f64 / times.decode_s.max(f64::MIN_POSITIVE),
        prompt_tokens,
        decode_tokens,
        batch,
        threads: pipeline.net.pool.threads(),
        weights_bytes: pipeline.net.bytes(),
    })
}

/// Seconds of one pass.
struct Times {
    first_token_s: f64,
    prefill_s: f64,
    decode_s: f64,
}

fn measure(pipeline: &mut Pipeline, shape: &BenchShape) -> Result<Times, PredictError> {
    let BenchShape { prompt_tokens, decode_tokens, batch } = *shape;
    // Every prediction has its blocks from the start, none of them shared.
    let own = (prompt_tokens + decode_tokens).div_ceil(BLOCK);
    let blocks: Vec<u32> = (0..(batch * own) as u32).collect();
    let table = |slot: usize| &blocks[slot * own..][..own];
    let mut rows = Rows::default();
    let began = Instant::now();
    let mut first_token_s = 0.0;
    let mut said = Vec::with_capacity(batch);
    for slot in 0..batch {
        let prompt = prompt(slot as u64, prompt_tokens, pipeline.net.vocabulary() as u64);
        let mut last = 0;
        for (index, part) in prompt.chunks(CHUNK_TOKENS).enumerate() {
            rows.clear();
            rows.push(table(slot), index * CHUNK_TOKENS, part);
            if (index + 1) * CHUNK_TOKENS >= prompt_tokens {
                rows.want_last();
            }
            if let Some(&token) = step(pipeline, &rows)?.first() {
                last = token;
            }
        }
        said.push(last);
        if slot == 0 {
            first_token_s = began.elapsed().as_secs_f64();
        }
    }
    let prefill_s = began.elapsed().as_secs_f64();

    let began = Instant::now();
    for position in prompt_tokens..prompt_tokens + decode_tokens {
        rows.clear();
        for (slot, token) in said.iter().enumerate() {
            rows.push(table(slot), position, &[*token]);
            rows.want_last();
        }
        said = step(pipeline, &rows)?;
    }
    Ok(Times { first_token_s, prefill_s, decode_s: began.elapsed().as_secs_f64() })
}

/// The likeliest token of every wanted row.
fn step(pipeline: &mut Pipeline, rows: &Rows) -> Result<Vec<u32>, PredictError> {
    let Some(logits) = pipeline.net.forward(rows, &mut pipeline.cache).map_err(device_error)? else {
        return Ok(Vec::new());
    };
    let asks = vec![Ask::greedy(); logits.dim(0).map_err(device_error)?];
    let chosen = op::sample(&logits, &asks, &pipeline.net.pool).map_err(device_error)?;
    let chosen = chosen.into_iter().collect::<Result<_, _>>();
    chosen.map_err(|_| PredictError::Operator("the logits are no numbers".into()))
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
