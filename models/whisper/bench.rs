//! How fast these weights run here: the net alone, on windows of noise, greedily, never ending early. Refuses to know
//! audio and text: what those cost is for the benches above.

use std::time::Instant;

use prediction::{LoadSpec, PredictError};

use super::config::FRAMES;
use super::mel::FRAMES_PER_SECOND;
use super::net::{Feed, Heard, Net, Said};
use super::pipeline::{Pipeline, device_error};
use super::rules::greatest;
use crate::{BenchResult, BenchShape, StepTimes, Told};

/// Encodes `batch` windows, then says `decode_tokens` over each of them, all together; the same once before, unmeasured
/// and with a single step. Tells how many times real time that is, the log-mel left out. A result's prompt tokens are the encoder's positions, 1,500 per window of 30 s.
pub fn run(spec: &LoadSpec, shapes: &[BenchShape], told: &mut dyn FnMut(Told)) -> Result<(), PredictError> {
    let began = Instant::now();
    let pipeline = Pipeline::load(spec, None, &mut |line| told(Told::Line(line)))?;
    let load_s = began.elapsed().as_secs_f64();
    let net = &pipeline.shared.net;
    let most = net.config.text_context - 1;
    if let Some(BenchShape { batch, decode_tokens, .. }) =
        shapes.iter().find(|shape| shape.batch == 0 || shape.decode_tokens > most)
    {
        let why = format!("batch is {batch} and decode tokens {decode_tokens}; 1 or more, and {most} at most");
        return Err(PredictError::FixInput(why));
    }
    let bandwidth_bytes_per_s = kernels::bandwidth::read_bytes_per_s(&net.pool);
    for shape in shapes {
        measure(net, &BenchShape { decode_tokens: 1, batch: 1, ..*shape }).map_err(device_error)?;
        let times = measure(net, shape).map_err(device_error)?;
        let positions = net.config.audio_context;
        let decode_s = times.steps.total_s().max(f64::MIN_POSITIVE);
        let token_p50_s = times.steps.quantile_s(0.5);
        let (audio, work) = ((shape.batch * FRAMES) as f64 / FRAMES_PER_SECOND as f64, times.encode_s + decode_s);
        told(Told::Line(&format!("{audio:.0} s of audio in {work:.2} s: {:.1} times real time", audio / work)));
        told(Told::Result(BenchResult {
            load_s,
            time_to_first_token_s: times.first_token_s,
            prefill_tokens_per_s: (shape.batch * positions) as f64 / times.encode_s,
            decode_tokens_per_s: (shape.batch * shape.decode_tokens) as f64 / decode_s,
            token_p50_s,
            token_p99_s: times.steps.quantile_s(0.99),
            read_bytes_per_s: (net.step_bytes() + times.heard_bytes) as f64 / token_p50_s.max(f64::MIN_POSITIVE),
            bandwidth_bytes_per_s,
            prompt_tokens: positions,
            decode_tokens: shape.decode_tokens,
            batch: shape.batch,
            threads: net.pool.threads(),
            weights_bytes: net.bytes(),
        }));
    }
    Ok(())
}

/// Of one pass.
struct Times {
    first_token_s: f64,
    encode_s: f64,
    steps: StepTimes,
    /// What was heard in all windows, which every step reads.
    heard_bytes: u64,
}

fn measure(net: &Net, shape: &BenchShape) -> candle_core::Result<Times> {
    let began = Instant::now();
    let mut first_token_s = 0.0;
    let mut heard = Vec::with_capacity(shape.batch);
    let mut said = Vec::with_capacity(shape.batch);
    for window in 0..shape.batch {
        heard.push(net.hear(&net.encode(&noise(window as u64, FRAMES * net.config.mels))?)?);
        said.push(net.say(shape.decode_tokens + 1)?);
        if window == 0 {
            decode(net, &mut said, &heard, &[0], 0)?;
            first_token_s = began.elapsed().as_secs_f64();
        }
    }
    let encode_s = began.elapsed().as_secs_f64();
    let (mut steps, mut tokens) = (StepTimes::default(), vec![0; shape.batch]);
    for position in 0..shape.decode_tokens {
        let began = Instant::now();
        tokens = decode(net, &mut said, &heard, &tokens, position)?;
        steps.push(began.elapsed().as_secs_f64());
    }
    Ok(Times { first_token_s, encode_s, steps, heard_bytes: heard.iter().map(Heard::bytes).sum() })
}

/// The likeliest next token of every window.
fn decode(
    net: &Net,
    said: &mut [Said],
    heard: &[Heard],
    tokens: &[u32],
    position: usize,
) -> candle_core::Result<Vec<u32>> {
    let feed = |((said, heard), &token)| Feed { tokens: vec![token], position, said, heard, wanted: vec![0] };
    let mut feeds: Vec<Feed> = said.iter_mut().zip(heard).zip(tokens).map(feed).collect();
    let logits = net.decode(&mut feeds, None)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(logits.chunks_exact(net.config.vocabulary).map(|row| greatest(row).0 as u32).collect())
}

/// Values like log-mel ones: a linear congruence over the window's number.
fn noise(window: u64, length: usize) -> Vec<f32> {
    let mut state = window.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 * 1.5 - 0.5
    };
    (0..length).map(|_| next()).collect()
}
