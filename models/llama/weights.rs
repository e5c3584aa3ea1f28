//! Weight files to a `Net`: the names and layouts of GGUF and of safetensors checkpoints, brought to one. Every shape is
//! checked against the config. Memory at the peak: the repacked weights and the one matrix in hand, since pages of the
//! file are given back as soon as they were repacked. Refuses to know the network and what runs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::op::{Linear, Part};
use kernels::{Format, Pool};
use prediction::PredictError;
use runner::{Gguf, SafeTensors};
use serde_json::Value;

use super::config::Config;
use super::net::{Layer, Net};
use super::tokenizer::{Tokenizer, Words};

/// Weights that were opened and whose shape is known; nothing is in memory yet.
pub struct Opened {
    pub config: Config,
    files: Files,
}

enum Files {
    Gguf(Gguf),
    Folder { path: PathBuf, tensors: SafeTensors },
}

/// How weights are kept, coarser and coarser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Storage {
    Plain,
    /// In blocks that the kernels read as they are.
    Quantised,
    /// In blocks that become others at load.
    Converted,
}

impl Storage {
    fn of(format: Format) -> Self {
        match format {
            Format::F32 | Format::F16 | Format::BF16 => Self::Plain,
            Format::Q4_0 | Format::Q4_1 | Format::Q8_0 => Self::Quantised,
            _ => Self::Converted,
        }
    }
}

/// A weight of the architecture. Its names in the two worlds stand in `names`.
#[derive(Debug, Clone, Copy)]
enum Role {
    Embed,
    Head,
    Norm,
    AttnNorm(usize),
    Q(usize),
    K(usize),
    V(usize),
    O(usize),
    FfnNorm(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
}

/// (in GGUF, in safetensors)
fn names(role: Role) -> (String, String) {
    let of = |layer: usize, gguf: &str, folder: &str| {
        (format!("blk.{layer}.{gguf}.weight"), format!("model.layers.{layer}.{folder}.weight"))
    };
    match role {
        Role::Embed => ("token_embd.weight".into(), "model.embed_tokens.weight".into()),
        Role::Head => ("output.weight".into(), "lm_head.weight".into()),
        Role::Norm => ("output_norm.weight".into(), "model.norm.weight".into()),
        Role::AttnNorm(layer) => of(layer, "attn_norm", "input_layernorm"),
        Role::Q(layer) => of(layer, "attn_q", "self_attn.q_proj"),
        Role::K(layer) => of(layer, "attn_k", "self_attn.k_proj"),
        Role::V(layer) => of(layer, "attn_v", "self_attn.v_proj"),
        Role::O(layer) => of(layer, "attn_output", "self_attn.o_proj"),
        Role::FfnNorm(layer) => of(layer, "ffn_norm", "post_attention_layernorm"),
        Role::Gate(layer) => of(layer, "ffn_gate", "mlp.gate_proj"),
        Role::Up(layer) => of(layer, "ffn_up", "mlp.up_proj"),
        Role::Down(layer) => of(layer, "ffn_down", "mlp.down_proj"),
    }
}

/// One tensor as it lies in its file.
struct Raw<'a> {
    name: String,
    format: Format,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl Opened {
    /// A GGUF file, or a folder that holds one, or a folder with config.json and safetensors.
    pub fn open(path: &Path) -> Result<Self, PredictError> {
        if path.is_dir() {
            return match only_gguf(path)? {
                Some(file) => Self::open_gguf(&file),
                None => Self::open_folder(path),
            };
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => Self::open_gguf(path),
            // The config and the tokenizer lie beside it.
            Some("safetensors") => Self::open_folder(path.parent().unwrap_or(Path::new("."))),
            _ => Err(PredictError::Operator(format!(
                "{}: neither a .gguf or .safetensors file nor a folder with config.json",
                path.display()
            ))),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, PredictError> {
        let file = Gguf::open(path)?;
        if let Some(parts) = file.get("split.count").and_then(runner::gguf::Value::as_u64).filter(|&parts| parts > 1) {
            return Err(at(path, &format!("one of {parts} parts; join them into one file")));
        }
        let config = Config::from_gguf(&file).map_err(|error| at(path, &error))?;
        Ok(Self { config, files: Files::Gguf(file) })
    }

    fn open_folder(path: &Path) -> Result<Self, PredictError> {
        let read = |name: &str| -> Result<Value, PredictError> {
            let file = path.join(name);
            let bytes = std::fs::read(&file).map_err(|error| at(&file, &error))?;
            serde_json::from_slice(&bytes).map_err(|error| at(&file, &error))
        };
        let generation = path.join("generation_config.json").exists().then(|| read("generation_config.json"));
        let config = Config::from_json(&read("config.json")?, generation.transpose()?.as_ref())?;
        let tensors = SafeTensors::open(path)?;
        Ok(Self { config, files: Files::Folder { path: path.to_owned(), tensors } })
    }

    pub fn tokenizer(&self) -> Result<(Tokenizer, Words), PredictError> {
        match &self.files {
            Files::Gguf(file) => Tokenizer::from_gguf(file),
            Files::Folder { path, .. } => Tokenizer::from_folder(path),
        }
    }

    /// Weights and caches of quantised files are f16 where nothing else is asked; plain ones are what they are.
    pub fn cache_dtype(&self, precision: Option<&str>) -> Result<DType, PredictError> {
        let stored = match self.raw(Role::O(0))?.format {
            Format::F32 if self.storage() == Storage::Plain => DType::F32,
            _ => DType::F16,
        };
        let chosen = runner::device::precision(precision, stored)?;
        Ok(if chosen == DType::F32 { DType::F32 } else { DType::F16 })
    }

    /// Repacks every weight for the device. `precision` turns plain weights into that type; quantised blocks stay.
    pub fn net(&self, device: &Device, pool: &Arc<Pool>, precision: Option<&str>) -> Result<Net, PredictError> {
        let Config { hidden, inner, layers, heads, kv_heads, head_dim, .. } = self.config;
        let loader = Loader { from: self, device, pool, precision };
        let embed = loader.embedding(hidden)?;
        let vocabulary = embed.out_features();
        let layer = |i: usize| -> Result<Layer, PredictError> {
            Ok(Layer {
                attn_norm: loader.vector(Role::AttnNorm(i), hidden)?,
                qkv: loader.stack(
                    &[
                        (Role::Q(i), heads * head_dim),
                        (Role::K(i), kv_heads * head_dim),
                        (Role::V(i), kv_heads * head_dim),
                    ],
                    hidden,
                )?,
                o: loader.stack(&[(Role::O(i), hidden)], heads * head_dim)?,
                ffn_norm: loader.vector(Role::FfnNorm(i), hidden)?,
                gate_up: loader.stack(&[(Role::Gate(i), inner), (Role::Up(i), inner)], hidden)?,
                down: loader.stack(&[(Role::Down(i), hidden)], inner)?,
            })
        };
        let layers = (0..layers).map(layer).collect::<Result<_, _>>()?;
        let norm = loader.vector(Role::Norm, hidden)?;
        let head = if self.config.tied { None } else { Some(loader.stack(&[(Role::Head, vocabulary)], hidden)?) };
        Ok(Net { config: self.config.clone(), embed, layers, norm, head, device: device.clone(), pool: pool.clone() })
    }

    /// Bytes of every weight as it lies in the files.
    pub fn bytes(&self) -> Result<u64, PredictError> {
        let layer = |i| {
            use Role::*;
            [AttnNorm(i), Q(i), K(i), V(i), O(i), FfnNorm(i), Gate(i), Up(i), Down(i)]
        };
        let head = (!self.config.tied).then_some(Role::Head);
        let roles = (0..self.config.layers).flat_map(layer).chain([Role::Embed, Role::Norm]).chain(head);
        roles.map(|role| Ok(self.raw(role)?.bytes.len() as u64)).sum()
    }

    /// The coarsest that any weight of the files is.
    pub fn storage(&self) -> Storage {
        let Files::Gguf(file) = &self.files else { return Storage::Plain };
        let formats = file.tensors().filter_map(|tensor| format_of(tensor.kind));
        formats.map(Storage::of).max().unwrap_or(Storage::Plain)
    }

    fn raw(&self, role: Role) -> Result<Raw<'_>, PredictError> {
        let (gguf, folder) = names(role);
        match &self.files {
            Files::Gguf(file) => {
                refuse_bias(file.has(&gguf.replace(".weight", ".bias")), &gguf)?;
                let tensor = file.tensor(&gguf)?;
                let format = format_of(tensor.kind).ok_or_else(|| {
                    PredictError::Operator(format!("tensor {gguf} is {}; that format is not run", tensor.kind))
                })?;
                let (shape, bytes) = (tensor.shape.to_vec(), Cow::Borrowed(tensor.bytes));
                let raw = Raw { name: gguf, format, shape, bytes };
                Ok(match role {
                    Role::Q(_) => raw.unpermuted(self.config.heads),
                    Role::K(_) => raw.unpermuted(self.config.kv_heads),
                    _ => raw,
                })
            }
            Files::Folder { tensors, .. } => {
                refuse_bias(tensors.has(&folder.replace(".weight", ".bias")), &folder)?;
                let tensor = tensors.tensor(&folder)?;
                let format = match tensor.dtype {
                    DType::F32 => Format::F32,
                    DType::F16 => Format::F16,
                    DType::BF16 => Format::BF16,
                    other => {
                        let why = format!("tensor {folder} is {}; f32, f16 and bf16 are run", other.as_str());
                        return Err(PredictError::Operator(why));
                    }
                };
                Ok(Raw { name: folder, format, shape: tensor.shape.to_vec(), bytes: Cow::Borrowed(tensor.bytes) })
            }
        }
    }

    /// The weight is in memory in its own layout: its pages of the file need not be.
    fn done(&self, role: Role) {
        let (gguf, folder) = names(role);
        match &self.files {
            Files::Gguf(file) => file.advise_drop(&gguf),
            Files::Folder { tensors, .. } => tensors.advise_drop(&folder),
        }
    }
}

struct Loader<'a> {
    from: &'a Opened,
    device: &'a Device,
    pool: &'a Arc<Pool>,
    precision: Option<&'a str>,
}

impl Loader<'_> {
    /// The rows of the embedding say how large the vocabulary is.
    fn embedding(&self, hidden: usize) -> Result<Linear, PredictError> {
        let rows = self.from.raw(Role::Embed)?.shape.first().copied().unwrap_or(0);
        self.stack(&[(Role::Embed, rows)], hidden)
    }

    fn stack(&self, roles: &[(Role, usize)], inputs: usize) -> Result<Linear, PredictError> {
        let raws = roles.iter().map(|&(role, outputs)| self.raw(role, &[outputs, inputs]));
        let raws = raws.collect::<Result<Vec<_>, _>>()?;
        let part = |(raw, &(_, out)): (_, &(Role, usize))| {
            let Raw { format, bytes, .. }: &Raw = raw;
            Part { format: *format, out, bytes }
        };
        let parts: Vec<Part> = raws.iter().zip(roles).map(part).collect();
        let linear = Linear::stack(&parts, inputs, self.device, self.pool)
            .map_err(|error| PredictError::Operator(format!("tensor {}: {error}", raws[0].name)))?;
        roles.iter().for_each(|&(role, _)| self.from.done(role));
        Ok(linear)
    }

    /// A gain per feature, as f32.
    fn vector(&self, role: Role, size: usize) -> Result<Tensor, PredictError> {
        let raw = self.from.raw(role)?.of_shape(&[size])?;
        let values = raw.to_f32().ok_or_else(|| {
            PredictError::Operator(format!("tensor {} is {}; gains are f32, f16 or bf16", raw.name, raw.format.name()))
        })?;
        Tensor::from_vec(values, size, self.device).map_err(|error| PredictError::Operator(error.to_string()))
    }

    fn raw(&self, role: Role, shape: &[usize]) -> Result<Raw<'_>, PredictError> {
        let raw = self.from.raw(role)?.of_shape(shape)?;
        match (self.precision, raw.format) {
            (Some("f32"), Format::F16 | Format::BF16) => Ok(raw.converted(Format::F32)),
            (Some("f16"), Format::F32 | Format::BF16) => Ok(raw.converted(Format::F16)),
            (Some("bf16"), Format::F32 | Format::F16) => Ok(raw.converted(Format::BF16)),
            _ => Ok(raw),
        }
    }
}

impl<'a> Raw<'a> {
    fn of_shape(self, expected: &[usize]) -> Result<Self, PredictError> {
        if self.shape == expected {
            return Ok(self);
        }
        let Self { name, shape, .. } = self;
        Err(PredictError::Operator(format!("tensor {name} is {shape:?}; the config needs {expected:?}")))
    }

    /// GGUF keeps the rows of q and k in interleaved rotary pairs; the two halves of each head are wanted. Rows are whole
    /// blocks, so that this moves bytes.
    fn unpermuted(self, heads: usize) -> Self {
        let rows = self.shape[0];
        if !rows.is_multiple_of(2 * heads) {
            return self; // Of the wrong shape: refused by `of_shape`.
        }
        let (row, half) = (self.bytes.len() / rows, rows / heads / 2);
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for head in 0..heads {
            for part in 0..2 {
                for pair in 0..half {
                    let from = (head * half + pair) * 2 + part;
                    bytes.extend_from_slice(&self.bytes[from * row..(from + 1) * row]);
                }
            }
        }
        Self { bytes: Cow::Owned(bytes), ..self }
    }

    /// `None` for quantised blocks.
    fn to_f32(&self) -> Option<Vec<f32>> {
        let two = self.bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.format {
            Format::F32 => {
                Some(self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            Format::F16 => Some(two.map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
            Format::BF16 => Some(two.map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
            _ => None,
        }
    }

    fn converted(self, format: Format) -> Self {
        let Some(values) = self.to_f32() else { return self };
        let bytes: Vec<u8> = match format {
            Format::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            Format::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        Self { format, bytes: Cow::Owned(bytes), ..self }
    }
}

fn refuse_bias(there: bool, name: &str) -> Result<(), PredictError> {
    if there {
        return Err(PredictError::Operator(format!("tensor {name} comes with a bias; Llamas with biases are not run")));
    }
    Ok(())
}

fn at(path: &Path, why: &dyn std::fmt::Display) -> PredictError {
    PredictError::Operator(format!("{}: {why}", path.display()))
}

/// The GGUF file of a folder without config.json; several would leave a choice.
fn only_gguf(folder: &Path) -> Result<Option<PathBuf>, PredictError> {
    if folder.join("config.json").exists() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(folder).map_err(|error| at(folder, &error))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
    match (files.pop(), files.len()) {
        (None, _) => Err(at(folder, &"holds neither config.json nor a .gguf file")),
        (Some(file), 0) => Ok(Some(file)),
        (_, more) => Err(at(folder, &format!("holds {} .gguf files; name one of them", more + 1))),
    }
}

fn format_of(kind: runner::GgmlType) -> Option<Format> {
    use runner::GgmlType as G;
    Some(match kind {
        G::F32 => Format::F32,
        G::F16 => Format::F16,
        G::BF16 => Format::BF16,
        G::Q4_0 => Format::Q4_0,
        G::Q4_1 => Format::Q4_1,
        G::Q5_0 => Format::Q5_0,
        G::Q5_1 => Format::Q5_1,
        G::Q8_0 => Format::Q8_0,
        G::Q2_K => Format::Q2_K,
        G::Q3_K => Format::Q3_K,
        G::Q4_K => Format::Q4_K,
        G::Q5_K => Format::Q5_K,
        G::Q6_K => Format::Q6_K,
        _ => return None,
    })
}
