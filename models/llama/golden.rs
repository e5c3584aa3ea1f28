//! Our Llama against the reference's numbers: `prompt_ids`, `last_logits` and `greedy_ids` of a golden file (see
//! golden/make.py) beside what these weights say here. The measure of each tensor is max|a-b| / max|b|.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use kernels::Pool;
use kernels::attention::BLOCK;
use kernels::sample::greatest;
use prediction::PredictError;
use safetensors::SafeTensors;
use serde_json::Value;

use super::engine::Engine;
use super::needs::Load;
use super::pipeline::device_error;
use super::rows::Rows;
use super::template::Chat;
use super::weights::{Opened, Storage};

/// Prompt tokens in one forward, as the pipeline has it.
const CHUNK_TOKENS: usize = 256;

/// What passes for equal. Plain weights differ from the reference by the order of sums alone (1.3e-6 on the tiny ones).
pub const PLAIN_TOLERANCE: f32 = 1e-5;
/// Quantised weights meet activations that were rounded to 16 bits (1.1e-4 on SmolLM2; 5e-4 with keys and values in f16).
pub const QUANTISED_TOLERANCE: f32 = 1e-3;
/// Formats without a kernel of their own become Q8_0 at load (1.6e-2 on tiny-q.gguf, whose layers are all different).
pub const CONVERTED_TOLERANCE: f32 = 3e-2;
/// Where activations are rounded too, to f16 or to bf16, as on a GPU: on SmolLM2, 30 layers, transformers loses 2e-3 and 8e-3.
const F16_TOLERANCE: f32 = 5e-3;
const BF16_TOLERANCE: f32 = 2e-2;

pub struct Golden {
    pub prompt_ids: Vec<u32>,
    pub last_logits: Vec<f32>,
    pub greedy_ids: Vec<u32>,
    /// The recipe.
    pub about: HashMap<String, String>,
}

/// Largest relative error per tensor; none where ours has another length.
#[derive(Debug, Clone, PartialEq)]
pub struct Errors {
    /// None also where the weights bring no tokenizer or the golden no messages: the prompt is then given.
    pub prompt_ids: Option<f32>,
    pub last_logits: f32,
    pub greedy_ids: f32,
    /// What activations were rounded to.
    pub activations: DType,
}

impl Golden {
    pub fn read(path: &Path) -> Result<Self, PredictError> {
        let wrong = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| wrong(&error))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(&error))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(&error))?;
        let data = |name: &str| tensors.tensor(name).map(|t| (t.dtype(), t.data().to_vec())).map_err(|e| wrong(&e));
        let ids = |name: &str| -> Result<Vec<u32>, PredictError> {
            let (dtype, data) = data(name)?;
            match dtype {
                safetensors::Dtype::I64 => {
                    Ok(data.chunks_exact(8).map(|b| i64::from_le_bytes(eight(b)) as u32).collect())
                }
                safetensors::Dtype::I32 | safetensors::Dtype::U32 => {
                    Ok(data.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
                }
                other => Err(wrong(&format!("{name} is {other:?}; token ids are i64, i32 or u32"))),
            }
        };
        let (dtype, logits) = data("last_logits")?;
        if dtype != safetensors::Dtype::F32 {
            return Err(wrong(&format!("last_logits is {dtype:?}; it has to be F32")));
        }
        let last_logits = logits.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let about = header.metadata().clone().unwrap_or_default();
        Ok(Self { prompt_ids: ids("prompt_ids")?, last_logits, greedy_ids: ids("greedy_ids")?, about })
    }

    /// The one chat the prompt was rendered from: (system, user).
    fn chat(&self) -> Option<(Option<String>, String)> {
        let messages: Value = serde_json::from_str(self.about.get("messages")?).ok()?;
        let content = |role: &str| {
            let message = messages.as_array()?.iter().find(|message| message["role"] == role)?;
            message["content"].as_str().map(str::to_owned)
        };
        Some((content("system"), content("user")?))
    }
}

fn eight(bytes: &[u8]) -> [u8; 8] {
    bytes.try_into().expect("chunks of eight")
}

/// Prints one line per tensor; true where all of them are equal within the tolerance. Arithmetic is as served, except
/// that on the CPU the cache is f32 whatever the weights are: `precision` f32.
pub fn compare(
    weights: &Path,
    _: &[PathBuf],
    golden: &Path,
    device: &Device,
    out: &mut dyn Write,
) -> Result<bool, PredictError> {
    let golden = Golden::read(golden)?;
    let opened = Opened::open(weights)?;
    let errors = errors(&opened, &golden, device, device.is_cpu().then_some("f32"), CHUNK_TOKENS)?;
    let rounded = match errors.activations {
        DType::F16 => F16_TOLERANCE,
        DType::BF16 => BF16_TOLERANCE,
        _ => 0.0,
    };
    let stored = match opened.storage() {
        Storage::Plain => PLAIN_TOLERANCE,
        Storage::Quantised => QUANTISED_TOLERANCE,
        Storage::Converted => CONVERTED_TOLERANCE,
    };
    let tolerance = stored.max(rounded);
    let prompt = match errors.prompt_ids {
        Some(error) => format!("{error:.3e}  (allowed 0; {} tokens)", golden.prompt_ids.len()),
        None => format!("given  ({} tokens)", golden.prompt_ids.len()),
    };
    let printed = writeln!(out, "prompt_ids   {prompt}")
        .and_then(|()| writeln!(out, "last_logits  {:.3e}  (allowed {tolerance:e})", errors.last_logits))
        .and_then(|()| {
            let tokens = golden.greedy_ids.len();
            writeln!(out, "greedy_ids   {:.3e}  (allowed 0; {tokens} tokens)", errors.greedy_ids)
        });
    printed.map_err(|error| PredictError::Operator(format!("the result cannot be written: {error}")))?;
    Ok(errors.prompt_ids.unwrap_or(0.0) == 0.0 && errors.last_logits <= tolerance && errors.greedy_ids == 0.0)
}

/// What these weights say to the golden's prompt, read in parts of `chunk` tokens.
pub fn errors(
    opened: &Opened,
    golden: &Golden,
    device: &Device,
    precision: Option<&str>,
    chunk: usize,
) -> Result<Errors, PredictError> {
    let prompt_ids = match (opened.tokenizer(), golden.chat()) {
        (Ok((tokenizer, words)), Some((system, user))) => {
            let chat = Chat::new(words.chat_template.unwrap_or_default(), words.bos, words.eos);
            let text = chat.map_err(PredictError::Operator)?.render(system.as_deref(), &user)?;
            Some(id_error(&tokenizer.encode(&text)?, &golden.prompt_ids))
        }
        _ => None,
    };
    let pool = Arc::new(Pool::new(runner::device::cpu().cores));
    let positions = golden.prompt_ids.len() + golden.greedy_ids.len();
    let blocks = positions.div_ceil(BLOCK);
    let (context, rows) = (positions, chunk + 1);
    let load = Load { device, precision, slots: 1, context, blocks, rows, batch_invariant: false };
    let mut engine = opened.engine(&load, &pool, None, &mut |_| ())?;
    let vocabulary = engine.vocabulary();
    if let Some(id) = golden.prompt_ids.iter().find(|&&id| id as usize >= vocabulary) {
        return Err(PredictError::Operator(format!(
            "the golden's prompt has token {id}; the weights have {vocabulary}"
        )));
    }
    let mut logits = Vec::new();
    for (index, part) in golden.prompt_ids.chunks(chunk).enumerate() {
        logits = last_logits(&mut *engine, index * chunk, part)?;
    }
    let last = relative(&logits, &golden.last_logits);
    let mut said = Vec::with_capacity(golden.greedy_ids.len());
    while said.len() < golden.greedy_ids.len() {
        let (token, _) = greatest(&logits).map_err(|_| PredictError::Operator("the logits are no numbers".into()))?;
        said.push(token);
        logits = last_logits(&mut *engine, golden.prompt_ids.len() + said.len() - 1, &[token])?;
    }
    let greedy_ids = id_error(&said, &golden.greedy_ids);
    Ok(Errors { prompt_ids, last_logits: last, greedy_ids, activations: engine.activations() })
}

fn last_logits(engine: &mut dyn Engine, position: usize, tokens: &[u32]) -> Result<Vec<f32>, PredictError> {
    let table: Vec<u32> = (0..engine.blocks() as u32).collect();
    let mut rows = Rows::default();
    rows.push(&table, position, tokens);
    rows.want_last(0);
    engine.logits(&rows).map_err(device_error)
}

/// max|a-b| / max|b|; infinite where the lengths differ.
fn relative(ours: &[f32], theirs: &[f32]) -> f32 {
    if ours.len() != theirs.len() {
        return f32::INFINITY;
    }
    let largest = theirs.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    // NaN must not vanish in a `max`.
    let apart = ours
        .iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max: f32, x| if x > max || x.is_nan() { x } else { max });
    if apart == 0.0 { 0.0 } else { apart / largest }
}

fn id_error(ours: &[u32], theirs: &[u32]) -> f32 {
    let float = |ids: &[u32]| ids.iter().map(|&id| id as f32).collect::<Vec<_>>();
    relative(&float(ours), &float(theirs))
}
