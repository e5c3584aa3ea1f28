//! `pinion bench`: a model's speed on this machine, without HTTP, text and store.

use std::path::PathBuf;

use clap::Args;
use models::{BenchResult, BenchShape, PaintResult, Told};
use prediction::Weights;
use serde_json::json;

use crate::deployment::{CogYaml, Deployment};
use crate::failure::Failure;
use crate::fetch;
use crate::out::print_line;

const GIGA: f64 = 1e9;

#[derive(Args)]
pub struct Words {
    /// A served name, e.g. smollm2; with --synth a shape, e.g. llama-3-8b
    model: String,
    /// Random weights of this shape, made where they are used: no file is read
    #[arg(long, conflicts_with_all = ["weights", "config"])]
    synth: bool,
    /// With --synth: the precision they are made in; left out: as the real weights are published
    #[arg(long, requires = "synth", value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
    /// cpu or cuda:N; left out: what cog.yaml says, else cpu
    #[arg(long)]
    device: Option<String>,
    /// f32, f16, bf16, or int8, fp8, q8_0, q4_0 for the weights alone; left out: what cog.yaml says, else as they are
    #[arg(long)]
    precision: Option<String>,
    /// Every prediction has the same numbers to the bit in any batch; the CPU always has it so
    #[arg(long)]
    batch_invariant: bool,
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    #[arg(long, default_value_t = 128)]
    decode_tokens: usize,
    /// Predictions at once; several, as in 1,2,4,8, are measured one after the other on weights loaded once
    #[arg(long, value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Of a model that paints: pixels of both sides; several are measured one after the other
    #[arg(long, value_delimiter = ',', default_value = "1024")]
    side: Vec<usize>,
    /// Of a model that paints: steps of one image
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// CPU threads; left out: all cores
    #[arg(long)]
    threads: Option<u32>,
    /// Weights of your own in place of the pinned ones
    #[arg(long, value_name = "DIR_OR_FILE")]
    weights: Option<PathBuf>,
    /// One JSON object per batch on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: CogYaml,
}

pub fn main(words: Words) -> Result<(), Failure> {
    let deployment = match words.synth {
        true => Deployment::synth(&words.model, words.dtype.as_deref())?,
        false => words.config.load()?,
    };
    let offer = match deployment.offers.as_slice() {
        [only] if words.synth => only,
        _ => deployment.find(&words.model)?,
    };
    if words.weights.is_none() {
        fetch::ensure(offer, &runner::weights::Options::from_env())?;
    }
    let mut spec = offer.spec(words.weights);
    spec.threads = words.threads.or(spec.threads);
    spec.device = words.device.unwrap_or(spec.device);
    spec.precision = words.precision.or(spec.precision);
    spec.batch_invariant |= words.batch_invariant;
    let Words { prompt_tokens, decode_tokens, steps, json, .. } = words;
    let shape = |(batch, side)| BenchShape { prompt_tokens, decode_tokens, batch, side, steps };
    let several = words.batch.iter().flat_map(|batch| words.side.iter().map(|side| (*batch, *side)));
    let shapes: Vec<BenchShape> = several.map(shape).collect();
    let cpu = runner::device::cpu();
    let device = if spec.device == "cpu" { &cpu.model } else { &spec.device };
    let random = match &spec.weights {
        Weights::Synth { shape, dtype, seed } => Some(runner::synth::title(shape, dtype, *seed)),
        _ => None,
    };
    let name = random.as_deref().unwrap_or(&offer.served.name);
    let mut rows = 0;
    let as_json = |body: Result<serde_json::Value, serde_json::Error>| -> Result<(), Failure> {
        let mut body = body.map_err(Failure::failed)?;
        let here = json!({"device": device, "random_weights": random, "cpu_features": cpu.features, "peak_rss_bytes": peak_rss_bytes()});
        if let (Some(body), Some(here)) = (body.as_object_mut(), here.as_object()) {
            body.extend(here.clone());
        }
        print_line!("{body}");
        Ok(())
    };
    let mut show = |result: &BenchResult| -> Result<(), Failure> {
        if json {
            return as_json(serde_json::to_value(result));
        }
        if rows == 0 {
            heading(name, device, result)?;
        }
        rows += 1;
        row(result)
    };
    let mut shown = Ok(());
    (offer.model.bench)(&spec, &shapes, &mut |told| match told {
        Told::Line(line) => eprintln!("pinion: {line}"),
        // Behind a reader that has gone nothing is shown any more.
        Told::Result(result) if shown.is_ok() => shown = show(&result),
        Told::Painted(result) if shown.is_ok() && json => shown = as_json(serde_json::to_value(&result)),
        Told::Painted(result) if shown.is_ok() => shown = painted(name, device, &result),
        Told::Result(_) | Told::Painted(_) => (),
    })?;
    shown
}

/// What all rows have in common.
fn heading(name: &str, device: &str, result: &BenchResult) -> Result<(), Failure> {
    let BenchResult { threads, load_s, weights_bytes, bandwidth_bytes_per_s, .. } = *result;
    print_line!(
        "{name} on {device} ({threads} threads), {} MB of weights, loaded in {load_s:.3} s",
        weights_bytes / 1_000_000
    );
    print_line!("memory is read at {:.1} GB/s at most", bandwidth_bytes_per_s / GIGA);
    print_line!("{} tokens read, then {} said by each prediction", result.prompt_tokens, result.decode_tokens);
    print_line!("");
    print_line!(
        "batch  prefill, tokens/s  first token, ms  decode, tokens/s  a token, ms: p50     p99  read, GB/s  share"
    );
    Ok(())
}

fn row(result: &BenchResult) -> Result<(), Failure> {
    let ms = |seconds: f64| seconds * 1e3;
    let share = 100.0 * result.read_bytes_per_s / result.bandwidth_bytes_per_s;
    print_line!(
        "{:>5}  {:>17.1}  {:>15.1}  {:>16.1}  {:>16.3}  {:>6.3}  {:>10.1}  {share:>4.0}%",
        result.batch,
        result.prefill_tokens_per_s,
        ms(result.time_to_first_token_s),
        result.decode_tokens_per_s,
        ms(result.token_p50_s),
        ms(result.token_p99_s),
        result.read_bytes_per_s / GIGA,
    );
    Ok(())
}

fn painted(name: &str, device: &str, result: &PaintResult) -> Result<(), Failure> {
    let PaintResult { side, steps, threads, load_s, weights_bytes, .. } = *result;
    print_line!(
        "{name} on {device} ({threads} threads), {} MB of weights, loaded in {load_s:.3} s",
        weights_bytes / 1_000_000
    );
    print_line!(
        "{side} x {side}, {steps} steps: {:.3} s to the image; prompt {:.3} s, {:.3} steps/s (p50 {:.3} s), decoding {:.3} s",
        result.image_s,
        result.prompt_s,
        result.steps_per_s,
        result.step_p50_s,
        result.decode_s
    );
    if result.peak_operations_per_s > 0.0 {
        let share = 100.0 * result.operations_per_s / result.peak_operations_per_s;
        let [came, peak] = [result.operations_per_s, result.peak_operations_per_s].map(|speed| speed / GIGA);
        print_line!("{came:.0} of {peak:.0} GFLOP/s that this processor's multiply-adds come to: {share:.0}%");
    }
    if result.operations_per_processor_s > 0.0 {
        let (came, peak) = (result.operations_per_processor_s, result.peak_operations_of_one_thread_per_s);
        let (share, came, peak) = (100.0 * came / peak, came / GIGA, peak / GIGA);
        print_line!("by processor time, {came:.0} of {peak:.0} GFLOP/s of each thread: {share:.0}%");
    }
    if let Some(bytes) = peak_rss_bytes() {
        print_line!("{} MB of memory at most", bytes / 1_000_000);
    }
    Ok(())
}

/// The most memory this process has held, in bytes, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
