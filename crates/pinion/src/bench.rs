//! `pinion bench`: a model's speed on this machine, without HTTP, text and store.

use std::path::PathBuf;

use clap::Args;
use prediction::Weights;
use serde_json::json;

use crate::deployment::{CogYaml, Deployment};
use crate::failure::Failure;
use crate::fetch;
use crate::out::print_line;

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
    /// Predictions at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// CPU threads; left out: all cores
    #[arg(long)]
    threads: Option<u32>,
    /// Weights of your own in place of the pinned ones
    #[arg(long, value_name = "DIR_OR_FILE")]
    weights: Option<PathBuf>,
    /// One JSON object on stdout
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
    let shape = models::BenchShape {
        prompt_tokens: words.prompt_tokens,
        decode_tokens: words.decode_tokens,
        batch: words.batch,
    };
    let result = (offer.model.bench)(&spec, &shape, &mut |line| eprintln!("pinion: {line}"))?;
    let cpu = runner::device::cpu();
    let device = if spec.device == "cpu" { cpu.model } else { spec.device };
    let random = match &spec.weights {
        Weights::Synth { shape, dtype, seed } => Some(runner::synth::title(shape, dtype, *seed)),
        _ => None,
    };
    if !words.json {
        print_line!("{} on {device} ({} threads)", random.as_deref().unwrap_or(&offer.served.name), result.threads);
        print_line!("prefill  {:.1} tokens/s ({} tokens)", result.prefill_tokens_per_s, shape.prompt_tokens);
        print_line!("decode   {:.1} tokens/s (batch {})", result.decode_tokens_per_s, shape.batch);
        print_line!("load {:.3} s, time to first token {:.3} s", result.load_s, result.time_to_first_token_s);
        return Ok(());
    }
    let mut body = serde_json::to_value(&result).map_err(Failure::failed)?;
    let here = json!({"device": device, "random_weights": random, "cpu_features": cpu.features, "peak_rss_bytes": peak_rss_bytes()});
    if let (Some(body), Some(here)) = (body.as_object_mut(), here.as_object()) {
        body.extend(here.clone());
    }
    print_line!("{body}");
    Ok(())
}

/// The most memory this process has held, in bytes, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
