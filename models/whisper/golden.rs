//! Our Whisper against the reference's numbers: `input_features`, `encoder_out`, `first_logits` and `tokens` of a golden
//! file (see golden/make.py) beside what these weights say to the same recording. The measure of a tensor is
//! max|a-b| / max|b|; of features max|a-b|.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use kernels::Pool;
use prediction::PredictError;
use safetensors::SafeTensors;

use super::mel::Mel;
use super::net::Feed;
use super::pipeline::device_error;
use super::recording::{Scan, Windows};
use super::rules::greatest;
use super::vocabulary::Specials;
use super::weights::Opened;
use crate::shared::shelf::Shelf;

/// Of the log-mel values, which run from about -1 to 2.
pub const FEATURE_TOLERANCE: f32 = 1e-4;
/// Of what the net computes in f32: sums differ by their order alone.
pub const TOLERANCE: f32 = 1e-3;
/// Seconds of a recording read at once.
const PIECE_SECONDS: usize = 600;

pub struct Golden {
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
    tokens: Vec<u32>,
    about: HashMap<String, String>,
}

/// Largest error per tensor; none where the golden has no such tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Errors {
    pub input_features: Option<f32>,
    pub encoder_out: Option<f32>,
    pub first_logits: Option<f32>,
    /// Tokens that are not the golden's.
    pub tokens: usize,
    pub compared_tokens: usize,
}

impl Golden {
    pub fn read(path: &Path) -> Result<Self, PredictError> {
        let wrong = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| wrong(&error))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(&error))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(&error))?;
        let mut tensors = HashMap::new();
        for name in ["input_features", "encoder_out", "first_logits"] {
            let Ok(tensor) = file.tensor(name) else { continue };
            if tensor.dtype() != safetensors::Dtype::F32 {
                return Err(wrong(&format_args!("{name} is {:?}; it has to be F32", tensor.dtype())));
            }
            let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            tensors.insert(name.to_owned(), (tensor.shape().to_vec(), values.collect()));
        }
        let tokens = file.tensor("tokens").map_err(|error| wrong(&error))?;
        let size = tokens.data().len() / tokens.shape().iter().product::<usize>().max(1);
        let low = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        if ![4, 8].contains(&size) {
            return Err(wrong(&format_args!("tokens are {:?}; i64 or i32 are read", tokens.dtype())));
        }
        let tokens = tokens.data().chunks_exact(size).map(low).collect();
        Ok(Self { tensors, tokens, about: header.metadata().clone().unwrap_or_default() })
    }

    /// Every so many positions were kept.
    fn stride(&self, name: &str) -> usize {
        self.about.get(name).and_then(|stride| stride.parse().ok()).filter(|&stride| stride > 0).unwrap_or(1)
    }
}

/// Prints one line per tensor; true where all of them are equal within the tolerance. Arithmetic in f32.
pub fn compare(
    weights: &Path,
    inputs: &[PathBuf],
    golden: &Path,
    device: &Device,
    out: &mut dyn Write,
) -> Result<bool, PredictError> {
    let [audio] = inputs else {
        return Err(PredictError::Operator(format!("one audio file is compared; {} were given", inputs.len())));
    };
    let errors = errors(&Opened::open(weights)?, audio, &Golden::read(golden)?, device, DType::F32)?;
    let failed = |error: std::io::Error| PredictError::Operator(format!("the result cannot be written: {error}"));
    let mut good = errors.tokens == 0;
    for (name, error, allowed) in [
        ("input_features", errors.input_features, FEATURE_TOLERANCE),
        ("encoder_out", errors.encoder_out, TOLERANCE),
        ("first_logits", errors.first_logits, TOLERANCE),
    ] {
        let Some(error) = error else { continue };
        good &= error <= allowed;
        writeln!(out, "{name:<15} {error:.3e}  (allowed {allowed:e})").map_err(failed)?;
    }
    let Errors { tokens, compared_tokens, .. } = errors;
    writeln!(out, "{:<15} {tokens} differ  (allowed 0; {compared_tokens} tokens)", "tokens").map_err(failed)?;
    Ok(good)
}

pub fn errors(
    opened: &Opened,
    audio: &Path,
    golden: &Golden,
    device: &Device,
    precision: DType,
) -> Result<Errors, PredictError> {
    let pool = Arc::new(Pool::new(runner::device::cpu().cores));
    let net = opened.net(device, &pool, precision, &Shelf::forgetful(device))?;
    let specials = Specials::of(&net.config);
    let mel = Arc::new(Mel::new(net.config.mels));
    let mut scan = Scan::open(audio.to_owned(), &mel)?;
    while !scan.advance(PIECE_SECONDS)? {}
    let features = Windows::new(&Arc::new(scan.finish()), &mel).beginning()?;
    let encoded = net.encode(&features).map_err(device_error)?;
    let values = encoded.flatten_all().and_then(|all| all.to_vec1::<f32>()).map_err(device_error)?;

    let hidden = net.config.hidden;
    let kept = golden.stride("encoder_stride");
    let kept: Vec<f32> = values.chunks_exact(hidden).step_by(kept).flatten().copied().collect();
    let bands = net.config.mels;
    let stride = golden.stride("feature_stride");
    // The reference has band by band what we have frame by frame.
    let frames: Vec<&[f32]> = features.chunks_exact(bands).step_by(stride).collect();
    let turned: Vec<f32> = (0..bands).flat_map(|band| frames.iter().map(move |frame| frame[band])).collect();
    let features = golden.tensors.get("input_features").map(|(_, theirs)| difference(&turned, theirs));
    let encoder = golden.tensors.get("encoder_out").map(|(_, theirs)| relative(&kept, theirs));

    // The prompt is what stands before the first text token or timestamp.
    let control = |token: &u32| *token >= specials.start && *token < specials.first_time;
    let prompt: Vec<u32> = golden.tokens.iter().copied().take_while(control).collect();
    let (prompt, expected) = match prompt.is_empty() {
        true => (vec![specials.start, specials.no_timestamps], golden.tokens.as_slice()),
        false => (prompt.clone(), &golden.tokens[prompt.len()..]),
    };
    let heard = net.hear(&encoded).map_err(device_error)?;
    let mut said = net.say(net.config.text_context).map_err(device_error)?;
    let (mut logits, mut tokens) = (Vec::new(), Vec::new());
    let mut first = None;
    let mut position = 0;
    let mut next = prompt;
    while tokens.len() < expected.len() && position + next.len() < net.config.text_context {
        let wanted = vec![next.len() - 1];
        let length = next.len();
        let mut feed = [Feed { tokens: next, position, said: &mut said, heard: &heard, wanted }];
        let row = net.decode(&mut feed, None).and_then(|row| row.flatten_all()?.to_vec1::<f32>());
        logits.clear();
        logits.extend(row.map_err(device_error)?);
        first.get_or_insert_with(|| logits.clone());
        position += length;
        let token = greatest(&logits).0 as u32;
        tokens.push(token);
        next = vec![token];
    }
    let first = golden.tensors.get("first_logits").map(|(shape, theirs)| {
        let width = shape.last().copied().unwrap_or(0);
        relative(first.as_deref().unwrap_or(&[]), &theirs[theirs.len().saturating_sub(width)..])
    });
    let same = tokens.iter().zip(expected).filter(|(ours, theirs)| ours == theirs).count();
    Ok(Errors {
        input_features: features,
        encoder_out: encoder,
        first_logits: first,
        tokens: expected.len() - same,
        compared_tokens: expected.len(),
    })
}

fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    if ours.len() != theirs.len() {
        return f32::INFINITY;
    }
    // What is no number is no equality.
    let largest = |most: f32, d: f32| if d.is_nan() { f32::INFINITY } else { most.max(d) };
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, largest)
}

fn relative(ours: &[f32], theirs: &[f32]) -> f32 {
    difference(ours, theirs) / theirs.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()))
}
