//! Weights to a net: CTranslate2's file (as packages carry it) or a transformers folder of safetensors. Knows both sets of
//! names; refuses to know what is done with them.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::Pool;
use kernels::op::{Dense, Part};
use prediction::PredictError;
use runner::synth::Synth;
use runner::{Ct2, Origin, SafeTensors};
use serde_json::Value;

use super::config::Config;
use super::net::{CrossAttention, Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward, Net, Norm, SelfAttention};
use crate::shared::raw::Raw;
use crate::shared::shelf::Shelf;

/// Files with weights, opened and understood.
pub struct Opened {
    pub config: Config,
    folder: PathBuf,
    files: Files,
}

enum Files {
    Ct2(Ct2),
    /// `prefix` stands before every name, or nothing does.
    Folder {
        tensors: SafeTensors,
        prefix: &'static str,
    },
    /// Made as they are asked for.
    Synth(Synth),
}

impl Opened {
    /// A folder that holds `model.bin` (or its parts) or safetensors, beside `config.json` and `tokenizer.json`.
    pub fn open(folder: &Path) -> Result<Self, PredictError> {
        if !folder.is_dir() {
            let why = format!("{}: is not a folder; a Whisper is a folder of several files", folder.display());
            return Err(PredictError::Operator(why));
        }
        let read = |name: &str| -> Result<Option<Value>, PredictError> {
            let path = folder.join(name);
            let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
            let wrong = |error| PredictError::Operator(format!("{}: {error}", path.display()));
            serde_json::from_slice(&bytes).map(Some).map_err(wrong)
        };
        let (config, folder) = (read("config.json")?, folder.to_owned());
        if let Some(parts) = Ct2::in_folder(&folder) {
            let file = Ct2::open(&parts)?;
            let config = Config::from_ct2(&file, &config.unwrap_or_default())?;
            return Ok(Self { config, folder, files: Files::Ct2(file) });
        }
        let config = config.ok_or_else(|| {
            let why = "holds neither model.bin (CTranslate2) nor config.json (transformers)";
            PredictError::Operator(format!("{}: {why}", folder.display()))
        })?;
        let tensors = SafeTensors::open(&folder)?;
        let config = Config::from_json(&config, read("generation_config.json")?.as_ref())?;
        let prefix = if tensors.has("model.encoder.conv1.weight") { "model." } else { "" };
        Ok(Self { config, folder, files: Files::Folder { tensors, prefix } })
    }

    /// Random weights of a shape in `ENTRY.synth`.
    pub fn synth(shape: &str, dtype: &str, seed: u64) -> Result<Self, PredictError> {
        let synth = Synth::new(super::ENTRY.shape(shape)?, dtype, seed)?;
        let config = serde_json::from_slice(synth.file("config.json").unwrap_or_default())
            .map_err(|error| PredictError::Operator(format!("config.json: {error}")))?;
        let config = Config::from_json(&config, None)?;
        Ok(Self { config, folder: PathBuf::from(synth.title()), files: Files::Synth(synth) })
    }

    /// The text of the vocabulary, and where it stands.
    pub fn tokenizer(&self) -> Result<(Vec<u8>, PathBuf), PredictError> {
        let path = self.folder.join("tokenizer.json");
        let bytes = match &self.files {
            Files::Synth(synth) => synth.file("tokenizer.json").unwrap_or_default().to_vec(),
            _ => {
                std::fs::read(&path).map_err(|error| PredictError::Operator(format!("{}: {error}", path.display())))?
            }
        };
        Ok((bytes, path))
    }

    /// What the largest weights are stored in.
    pub fn dtype(&self) -> Result<DType, PredictError> {
        match &self.files {
            Files::Synth(synth) => Ok(synth.dtype()),
            _ => Ok(self.raw("decoder.embed_tokens.weight", "decoder/embeddings/weight")?.dtype),
        }
    }

    /// The bytes of all weights as the files have them.
    pub fn bytes(&self) -> u64 {
        match &self.files {
            Files::Ct2(file) => {
                file.names().filter_map(|name| file.variable(name).ok()).map(|v| v.bytes.len() as u64).sum()
            }
            Files::Folder { tensors, .. } => {
                tensors.names().filter_map(|name| tensors.tensor(name).ok()).map(|t| t.bytes.len() as u64).sum()
            }
            Files::Synth(synth) => synth.total_bytes(),
        }
    }

    /// Which bytes they are.
    pub fn origin(&self) -> Origin {
        match &self.files {
            Files::Ct2(file) => file.origin(),
            Files::Folder { tensors, .. } => tensors.origin(),
            Files::Synth(synth) => synth.origin(),
        }
    }

    /// Every weight is wanted soon.
    pub fn read_ahead(&self) {
        match &self.files {
            Files::Ct2(file) => file.read_ahead(),
            Files::Folder { tensors, .. } => tensors.read_ahead(),
            Files::Synth(_) => {}
        }
    }

    /// The net in `precision`; its memories are f32 for f32 and f16 for everything else. What is on the shelf is not read.
    pub fn net(&self, device: &Device, pool: &Arc<Pool>, precision: DType, shelf: &Shelf) -> Result<Net, PredictError> {
        let loader = Loader { from: self, device, pool, precision, shelf };
        let config = self.config.clone();
        let Config { hidden, mels, .. } = config;
        let encoder = Encoder {
            conv1: loader.conv(1, mels)?,
            conv2: loader.conv(2, hidden)?,
            positions: loader.plain(
                ("encoder.embed_positions.weight", "encoder/position_encodings/encodings"),
                &[config.audio_context, hidden],
            )?,
            layers: (0..config.encoder_layers).map(|n| loader.encoder_layer(n)).collect::<Result<_, _>>()?,
            norm: loader.norm("encoder.layer_norm", "encoder/layer_norm")?,
        };
        let decoder = Decoder {
            embed: loader.dense(&["decoder.embed_tokens"], "decoder/embeddings", config.vocabulary, hidden)?,
            positions: loader.plain(
                ("decoder.embed_positions.weight", "decoder/position_encodings/encodings"),
                &[config.text_context, hidden],
            )?,
            layers: (0..config.decoder_layers).map(|n| loader.decoder_layer(n)).collect::<Result<_, _>>()?,
            norm: loader.norm("decoder.layer_norm", "decoder/layer_norm")?,
        };
        let memory = if precision == DType::F32 { DType::F32 } else { DType::F16 };
        Ok(Net { config, encoder, decoder, memory, device: device.clone(), pool: pool.clone() })
    }

    /// A tensor by its two names.
    fn raw(&self, folder: &str, ct2: &str) -> Result<Raw<'_>, PredictError> {
        match &self.files {
            Files::Ct2(file) => {
                let variable = file.variable(ct2)?;
                let dtype = variable.kind.dtype().ok_or_else(|| {
                    let kind = variable.kind;
                    PredictError::Operator(format!("variable {ct2} is {kind:?}; f32, f16 and bf16 are run"))
                })?;
                Raw::new(ct2, dtype, variable.shape, variable.bytes)
            }
            Files::Folder { tensors, prefix } => {
                let tensor = tensors.tensor(&format!("{prefix}{folder}"))?;
                Raw::new(folder, tensor.dtype, tensor.shape, Cow::Borrowed(tensor.bytes))
            }
            Files::Synth(synth) => {
                let name = format!("model.{folder}");
                Raw::new(folder, synth.dtype(), synth.shape(&name)?, Cow::Owned(synth.bytes(&name)?))
            }
        }
    }

    fn has(&self, folder: &str, ct2: &str) -> bool {
        match &self.files {
            Files::Ct2(file) => file.has(ct2),
            Files::Folder { tensors, prefix } => tensors.has(&format!("{prefix}{folder}")),
            Files::Synth(synth) => synth.shape(&format!("model.{folder}")).is_ok(),
        }
    }

    /// The weight is in memory in its own layout: its pages of the file need not be.
    fn done(&self, folder: &str, ct2: &str) {
        match &self.files {
            Files::Ct2(file) => file.advise_drop(ct2),
            Files::Folder { tensors, prefix } => tensors.advise_drop(&format!("{prefix}{folder}")),
            Files::Synth(_) => {}
        }
    }
}

struct Loader<'a> {
    from: &'a Opened,
    device: &'a Device,
    pool: &'a Arc<Pool>,
    precision: DType,
    shelf: &'a Shelf,
}

impl Loader<'_> {
    fn encoder_layer(&self, n: usize) -> Result<EncoderLayer, PredictError> {
        let (folder, ct2) = (format!("encoder.layers.{n}"), format!("encoder/layer_{n}"));
        Ok(EncoderLayer {
            attention: self.self_attention(&folder, &ct2)?,
            feed_forward: self.feed_forward(&folder, &ct2)?,
        })
    }

    fn decoder_layer(&self, n: usize) -> Result<DecoderLayer, PredictError> {
        let (folder, ct2) = (format!("decoder.layers.{n}"), format!("decoder/layer_{n}"));
        let hidden = self.from.config.hidden;
        let part = |name: &str| format!("{folder}.encoder_attn.{name}_proj");
        let layer = |names: &[&str], index: usize, out: usize| {
            let names: Vec<String> = names.iter().map(|name| part(name)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.dense(&names, &format!("{ct2}/attention/linear_{index}"), out, hidden)
        };
        Ok(DecoderLayer {
            attention: self.self_attention(&folder, &ct2)?,
            cross: CrossAttention {
                norm: self
                    .norm(&format!("{folder}.encoder_attn_layer_norm"), &format!("{ct2}/attention/layer_norm"))?,
                q: layer(&["q"], 0, hidden)?,
                kv: layer(&["k", "v"], 1, 2 * hidden)?,
                out: layer(&["out"], 2, hidden)?,
            },
            feed_forward: self.feed_forward(&folder, &ct2)?,
        })
    }

    fn self_attention(&self, folder: &str, ct2: &str) -> Result<SelfAttention, PredictError> {
        let hidden = self.from.config.hidden;
        let names = ["q", "k", "v", "out"].map(|name| format!("{folder}.self_attn.{name}_proj"));
        let [q, k, v, out] = &names;
        let ct2 = format!("{ct2}/self_attention");
        Ok(SelfAttention {
            norm: self.norm(&format!("{folder}.self_attn_layer_norm"), &format!("{ct2}/layer_norm"))?,
            qkv: self.dense(&[q, k, v], &format!("{ct2}/linear_0"), 3 * hidden, hidden)?,
            out: self.dense(&[out], &format!("{ct2}/linear_1"), hidden, hidden)?,
        })
    }

    fn feed_forward(&self, folder: &str, ct2: &str) -> Result<FeedForward, PredictError> {
        let hidden = self.from.config.hidden;
        Ok(FeedForward {
            norm: self.norm(&format!("{folder}.final_layer_norm"), &format!("{ct2}/ffn/layer_norm"))?,
            up: self.dense(&[&format!("{folder}.fc1")], &format!("{ct2}/ffn/linear_0"), 4 * hidden, hidden)?,
            down: self.dense(&[&format!("{folder}.fc2")], &format!("{ct2}/ffn/linear_1"), hidden, 4 * hidden)?,
        })
    }

    /// `names` are the folder's parts, stacked; the other file has them in one.
    fn dense(&self, names: &[&str], ct2: &str, out: usize, inputs: usize) -> Result<Dense, PredictError> {
        let names = match self.from.files {
            Files::Ct2(_) => &names[..1],
            Files::Folder { .. } | Files::Synth(_) => names,
        };
        self.shelf.dense(names[0].to_owned(), self.pool, || self.read_dense(names, ct2, out, inputs))
    }

    fn read_dense(&self, names: &[&str], ct2: &str, out: usize, inputs: usize) -> Result<Dense, PredictError> {
        let (ct2_weight, rows) = (format!("{ct2}/weight"), out / names.len());
        let (mut raws, mut bias) = (Vec::new(), Vec::with_capacity(out));
        for name in names {
            let raw = self.from.raw(&format!("{name}.weight"), &ct2_weight)?;
            raws.push(raw.of_shape(&[rows, inputs])?.converted(self.precision));
            let (folder, ct2) = (format!("{name}.bias"), format!("{ct2}/bias"));
            match self.from.has(&folder, &ct2) {
                true => bias.extend(self.from.raw(&folder, &ct2)?.of_shape(&[rows])?.to_f32()),
                false => bias.extend(std::iter::repeat_n(0.0, rows)),
            }
        }
        let dense = self.finish(&raws, inputs, bias)?;
        names.iter().for_each(|name| self.from.done(&format!("{name}.weight"), &ct2_weight));
        Ok(dense)
    }

    /// `[out, in, 3]` as a dense layer over three neighbours, one after the other.
    fn conv(&self, number: usize, inputs: usize) -> Result<Dense, PredictError> {
        let out = self.from.config.hidden;
        let (folder, ct2) = (format!("encoder.conv{number}"), format!("encoder/conv{number}"));
        self.shelf.dense(folder.clone(), self.pool, || self.read_conv(&folder, &ct2, out, inputs))
    }

    fn read_conv(&self, folder: &str, ct2: &str, out: usize, inputs: usize) -> Result<Dense, PredictError> {
        let raw = self.from.raw(&format!("{folder}.weight"), &format!("{ct2}/weight"))?.of_shape(&[out, inputs, 3])?;
        let values = raw.to_f32();
        let value = |i: usize| values[i / (3 * inputs) * 3 * inputs + i % inputs * 3 + i / inputs % 3];
        let turned: Vec<f32> = (0..values.len()).map(value).collect();
        let raw = raw.with_values(&turned, self.precision);
        let bias = self.from.raw(&format!("{folder}.bias"), &format!("{ct2}/bias"))?.of_shape(&[out])?.to_f32();
        self.finish(&[raw], 3 * inputs, bias)
    }

    fn finish(&self, raws: &[Raw], inputs: usize, bias: Vec<f32>) -> Result<Dense, PredictError> {
        let parts: Vec<Part> =
            raws.iter().map(|raw| Part { format: raw.format(), out: raw.shape[0], bytes: &raw.bytes }).collect();
        let bias = Some(bias).filter(|bias| bias.iter().any(|&b| b != 0.0));
        Dense::new(&parts, inputs, bias, self.device, self.pool)
            .map_err(|error| PredictError::Operator(format!("tensor {}: {error}", raws[0].name)))
    }

    fn norm(&self, folder: &str, ct2: &str) -> Result<Norm, PredictError> {
        let size = [self.from.config.hidden];
        Ok(Norm {
            weight: self.plain((&format!("{folder}.weight"), &format!("{ct2}/gamma")), &size)?,
            bias: self.plain((&format!("{folder}.bias"), &format!("{ct2}/beta")), &size)?,
        })
    }

    /// As f32, whatever the precision.
    fn plain(&self, (folder, ct2): (&str, &str), shape: &[usize]) -> Result<Tensor, PredictError> {
        self.shelf.tensor(folder.to_owned(), || {
            let values = self.from.raw(folder, ct2)?.of_shape(shape)?.to_f32();
            Tensor::from_vec(values, shape, self.device).map_err(|error| PredictError::Operator(error.to_string()))
        })
    }
}
