//! A Llama's tensors where they lie: in a GGUF file, in a folder of safetensors, or nowhere yet (random weights, made when
//! they are asked for). One name per tensor for those who read. Refuses to know the network and how weights are kept.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::DType;
use kernels::Format;
use prediction::PredictError;
use runner::synth::Synth;
use runner::{Gguf, Origin, SafeTensors};

pub enum Files {
    Gguf(Gguf),
    Folder { path: PathBuf, tensors: SafeTensors },
    Synth(Synth),
}

/// A weight of the architecture. Its names in the two worlds stand in `names`.
#[derive(Debug, Clone, Copy)]
pub enum Role {
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

/// Every weight of a Llama, in the order it is read.
pub fn roles(layers: usize, tied: bool) -> impl Iterator<Item = Role> {
    use Role::*;
    let layer = |i| [AttnNorm(i), Q(i), K(i), V(i), O(i), FfnNorm(i), Gate(i), Up(i), Down(i)];
    let head = (!tied).then_some(Head);
    std::iter::once(Embed).chain((0..layers).flat_map(layer)).chain([Norm]).chain(head)
}

/// (in GGUF, in safetensors)
pub fn names(role: Role) -> (String, String) {
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

/// What a header says of a tensor.
pub struct About {
    pub name: String,
    pub format: Format,
    pub shape: Vec<usize>,
}

impl About {
    pub fn of_shape(self, expected: &[usize]) -> Result<Self, PredictError> {
        if self.shape == expected {
            return Ok(self);
        }
        let Self { name, shape, .. } = self;
        Err(PredictError::Operator(format!("tensor {name} is {shape:?}; the config needs {expected:?}")))
    }
}

impl Files {
    /// For messages: the folder that the files beside the tensors lie in, or would.
    pub fn place(&self) -> String {
        match self {
            Self::Gguf(_) => String::new(),
            Self::Folder { path, .. } => path.display().to_string(),
            Self::Synth(synth) => synth.title(),
        }
    }

    /// A file beside the tensors, which GGUF has none of.
    pub fn beside(&self, name: &str) -> io::Result<Vec<u8>> {
        let found = match self {
            Self::Gguf(_) => None,
            Self::Folder { path, .. } => return std::fs::read(path.join(name)),
            Self::Synth(synth) => synth.file(name).map(<[u8]>::to_vec),
        };
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// From the header alone.
    pub fn about(&self, role: Role) -> Result<About, PredictError> {
        let (gguf, folder) = names(role);
        match self {
            Self::Gguf(file) => {
                refuse_bias(file.has(&gguf.replace(".weight", ".bias")), &gguf)?;
                let tensor = file.tensor(&gguf)?;
                let format = format_of(tensor.kind).ok_or_else(|| {
                    PredictError::Operator(format!("tensor {gguf} is {}; that format is not run", tensor.kind))
                })?;
                let shape = tensor.shape.to_vec();
                Ok(About { name: gguf, format, shape })
            }
            Self::Folder { tensors, .. } => {
                refuse_bias(tensors.has(&folder.replace(".weight", ".bias")), &folder)?;
                let tensor = tensors.tensor(&folder)?;
                let (format, shape) = (plain(tensor.dtype, &folder)?, tensor.shape.to_vec());
                Ok(About { name: folder, format, shape })
            }
            Self::Synth(synth) => {
                let (format, shape) = (plain(synth.dtype(), &folder)?, synth.shape(&folder)?.to_vec());
                Ok(About { name: folder, format, shape })
            }
        }
    }

    /// As they lie there.
    pub fn bytes(&self, role: Role) -> Result<Cow<'_, [u8]>, PredictError> {
        let (gguf, folder) = names(role);
        Ok(match self {
            Self::Gguf(file) => Cow::Borrowed(file.tensor(&gguf)?.bytes),
            Self::Folder { tensors, .. } => Cow::Borrowed(tensors.tensor(&folder)?.bytes),
            Self::Synth(synth) => Cow::Owned(synth.bytes(&folder)?),
        })
    }

    /// Which bytes they are.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Gguf(file) => file.origin(),
            Self::Folder { tensors, .. } => tensors.origin(),
            Self::Synth(synth) => synth.origin(),
        }
    }

    /// Every weight is wanted soon.
    pub fn read_ahead(&self) {
        match self {
            Self::Gguf(file) => file.read_ahead(),
            Self::Folder { tensors, .. } => tensors.read_ahead(),
            Self::Synth(_) => {}
        }
    }

    /// The weight is in memory in its own layout: its pages of the file need not be.
    pub fn done(&self, role: Role) {
        let (gguf, folder) = names(role);
        match self {
            Self::Gguf(file) => file.advise_drop(&gguf),
            Self::Folder { tensors, .. } => tensors.advise_drop(&folder),
            Self::Synth(_) => {}
        }
    }
}

fn refuse_bias(there: bool, name: &str) -> Result<(), PredictError> {
    if there {
        return Err(PredictError::Operator(format!("tensor {name} comes with a bias; Llamas with biases are not run")));
    }
    Ok(())
}

/// The GGUF file of a folder without config.json; several would leave a choice.
pub fn only_gguf(folder: &Path) -> Result<Option<PathBuf>, PredictError> {
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

pub fn at(path: &Path, why: &dyn std::fmt::Display) -> PredictError {
    PredictError::Operator(format!("{}: {why}", path.display()))
}

fn plain(dtype: DType, name: &str) -> Result<Format, PredictError> {
    match dtype {
        DType::F32 => Ok(Format::F32),
        DType::F16 => Ok(Format::F16),
        DType::BF16 => Ok(Format::BF16),
        other => Err(PredictError::Operator(format!("tensor {name} is {}; f32, f16 and bf16 are run", other.as_str()))),
    }
}

pub fn format_of(kind: runner::GgmlType) -> Option<Format> {
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
