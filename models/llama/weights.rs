//! Weight files to a `Net`: layouts and precisions brought to one, every shape checked against the config. Memory at the
//! peak: the repacked weights and the one matrix in hand, since pages of the file are given back as soon as they were
//! repacked. Refuses to know the network and what runs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use kernels::op::{Linear, Part};
use kernels::{Format, Pool, convert};
use prediction::{Kept, PredictError, Weights};
use runner::synth::Synth;
use runner::weights::{Lock, Options};
use runner::{Gguf, Origin, SafeTensors};
use serde_json::Value;

use super::config::Config;
use super::engine::{Direct, Engine};
use super::files::{About, Files, Role, at, format_of, only_gguf};
use super::needs::Load;
use super::net::{Layer, Net};
use super::precision::{self, Rounded};
use super::tokenizer::{Tokenizer, Words};

/// Between two lines of progress.
pub const PROGRESS: Duration = Duration::from_secs(1);

/// Weights that were opened and whose shape is known; nothing is in memory yet.
pub struct Opened {
    pub config: Config,
    files: Files,
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

/// Tensors that read the same features, one below the other: (which, outputs).
pub struct Stack {
    pub parts: Vec<(Role, usize)>,
    pub inputs: usize,
}

impl Opened {
    /// Wherever they come from; what is not here yet is fetched.
    pub fn of(weights: &Weights, report: &mut dyn FnMut(&str)) -> Result<Self, PredictError> {
        match weights {
            Weights::Path(path) => Self::open(path),
            Weights::Locked { name, offline } => Self::open(&fetched(name, *offline, report)?),
            Weights::Synth { shape, dtype, seed } => Self::synth(shape, dtype, *seed),
        }
    }

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

    /// Random weights: nothing is made before it is asked for.
    pub fn synth(shape: &str, dtype: &str, seed: u64) -> Result<Self, PredictError> {
        let shape = super::ENTRY.shape(shape)?;
        Self::with_config(Files::Synth(Synth::new(shape, dtype, seed)?))
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
        let tensors = SafeTensors::open(path)?;
        Self::with_config(Files::Folder { path: path.to_owned(), tensors })
    }

    fn with_config(files: Files) -> Result<Self, PredictError> {
        let place = files.place();
        let read = |name: &str| -> Result<Option<Value>, PredictError> {
            let wrong = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{place}/{name}: {why}"));
            match files.beside(name) {
                Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| wrong(&error)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(wrong(&error)),
            }
        };
        let config = read("config.json")?;
        let config = config.ok_or_else(|| PredictError::Operator(format!("{place}: config.json is missing")))?;
        let config = Config::from_json(&config, read("generation_config.json")?.as_ref())?;
        Ok(Self { config, files })
    }

    pub fn tokenizer(&self) -> Result<(Tokenizer, Words), PredictError> {
        match &self.files {
            Files::Gguf(file) => Tokenizer::from_gguf(file),
            files => Tokenizer::from_files(&files.place(), |name| files.beside(name)),
        }
    }

    /// What every figure from these weights has to say: that they are random. None where they are somebody's.
    pub fn title(&self) -> Option<String> {
        match &self.files {
            Files::Synth(synth) => Some(synth.title()),
            _ => None,
        }
    }

    /// Weights and caches of quantised files are f16 where nothing else is asked; plain ones are what they are.
    pub fn cache_dtype(&self, precision: Option<&str>) -> Result<DType, PredictError> {
        let stored = match self.files.about(Role::O(0))?.format {
            Format::F32 if self.storage() == Storage::Plain && Rounded::of(precision).is_none() => DType::F32,
            _ => DType::F16,
        };
        let chosen = runner::device::precision(precision::plain(precision), stored, None)?;
        Ok(precision::cached(chosen))
    }

    /// Which bytes they are.
    pub fn origin(&self) -> Origin {
        self.files.origin()
    }

    /// Every weight is wanted soon.
    pub fn read_ahead(&self) {
        self.files.read_ahead();
    }

    /// Loaded into what runs these weights best on the device: from the files, or from what such an engine kept.
    pub fn engine(
        &self,
        load: &Load,
        pool: &Arc<Pool>,
        kept: Option<Box<dyn Kept>>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Engine>, PredictError> {
        #[cfg(feature = "cuda")]
        match super::cuda::fit(self, load) {
            Some(Ok(fit)) => return super::cuda::engine(self, fit, load, pool, kept, report),
            Some(Err(why)) => report(&format!("{why}: candle's own kernels run it, slower")),
            None => (),
        }
        // Our kernels took these weights once; what is asked of them has changed since.
        if kept.is_some() {
            report("what host memory holds is for our CUDA kernels: the files are read");
        }
        drop(kept);
        self.read_ahead();
        let &Load { device, precision, blocks, context, .. } = load;
        let net = self.load(device, pool, precision, report)?;
        let direct = Direct::new(net, blocks, context, self.cache_dtype(precision)?);
        Ok(Box::new(direct.map_err(|error| runner::device::fault(&error))?))
    }

    /// `load` for those to whom nobody listens.
    pub fn net(&self, device: &Device, pool: &Arc<Pool>, precision: Option<&str>) -> Result<Net, PredictError> {
        self.load(device, pool, precision, &mut |_| ())
    }

    /// Repacks every weight for the device. `precision` turns plain weights into that type; quantised blocks stay. Where it
    /// takes long, `report` is told how far it is.
    pub fn load(
        &self,
        device: &Device,
        pool: &Arc<Pool>,
        precision: Option<&str>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Net, PredictError> {
        let Config { hidden, layers, .. } = self.config;
        let loader = Loader { from: self, device, pool, precision };
        let mut told = Instant::now();
        let layer = |i: usize| -> Result<Layer, PredictError> {
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                report(&format!("{i} of {layers} layers are ready"));
            }
            Ok(Layer {
                attn_norm: loader.vector(Role::AttnNorm(i), hidden)?,
                qkv: loader.linear(&self.qkv(i))?,
                o: loader.linear(&self.o(i))?,
                ffn_norm: loader.vector(Role::FfnNorm(i), hidden)?,
                gate_up: loader.linear(&self.gate_up(i))?,
                down: loader.linear(&self.down(i))?,
            })
        };
        Ok(Net {
            embed: loader.linear(&self.embed()?)?,
            layers: (0..layers).map(layer).collect::<Result<_, _>>()?,
            norm: loader.vector(Role::Norm, hidden)?,
            head: self.head()?.map(|head| loader.linear(&head)).transpose()?,
            config: self.config.clone(),
            device: device.clone(),
            pool: pool.clone(),
        })
    }

    /// What `net` will hold, to the byte, from the headers alone.
    pub fn net_bytes(&self, device: &Device, precision: Option<&str>) -> Result<u64, PredictError> {
        let gains = 4 * self.config.hidden * (2 * self.config.layers + 1);
        let layers = (0..self.config.layers).flat_map(|i| [self.qkv(i), self.o(i), self.gate_up(i), self.down(i)]);
        let stacks = std::iter::once(self.embed()?).chain(layers).chain(self.head()?);
        let bytes = |Stack { parts, inputs }: Stack| {
            let part = |&(role, outputs): &(Role, usize)| {
                let format = self.format(role, &[outputs, inputs])?;
                Ok((kept(format, role, self.config.tied, (precision, device))?, outputs))
            };
            let parts = parts.iter().map(part).collect::<Result<Vec<_>, PredictError>>()?;
            Linear::bytes_for(&parts, inputs, device).map_err(|why| PredictError::Operator(why.to_string()))
        };
        stacks.map(bytes).sum::<Result<u64, _>>().map(|bytes| bytes + gains as u64)
    }

    /// The coarsest that any weight of the files is.
    pub fn storage(&self) -> Storage {
        let Files::Gguf(file) = &self.files else { return Storage::Plain };
        let formats = file.tensors().filter_map(|tensor| format_of(tensor.kind));
        formats.map(Storage::of).max().unwrap_or(Storage::Plain)
    }

    /// The rows of the embedding.
    pub fn vocabulary(&self) -> Result<usize, PredictError> {
        Ok(self.files.about(Role::Embed)?.shape.first().copied().unwrap_or(0))
    }

    pub fn embed(&self) -> Result<Stack, PredictError> {
        Ok(Stack { parts: vec![(Role::Embed, self.vocabulary()?)], inputs: self.config.hidden })
    }

    pub fn head(&self) -> Result<Option<Stack>, PredictError> {
        let head = |outputs| Stack { parts: vec![(Role::Head, outputs)], inputs: self.config.hidden };
        if self.config.tied { Ok(None) } else { self.vocabulary().map(head).map(Some) }
    }

    pub fn qkv(&self, i: usize) -> Stack {
        let Config { hidden, heads, kv_heads, head_dim, .. } = self.config;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        Stack { parts: vec![(Role::Q(i), queries), (Role::K(i), keys), (Role::V(i), keys)], inputs: hidden }
    }

    pub fn o(&self, i: usize) -> Stack {
        let Config { hidden, heads, head_dim, .. } = self.config;
        Stack { parts: vec![(Role::O(i), hidden)], inputs: heads * head_dim }
    }

    pub fn gate_up(&self, i: usize) -> Stack {
        let Config { hidden, inner, .. } = self.config;
        Stack { parts: vec![(Role::Gate(i), inner), (Role::Up(i), inner)], inputs: hidden }
    }

    pub fn down(&self, i: usize) -> Stack {
        let Config { hidden, inner, .. } = self.config;
        Stack { parts: vec![(Role::Down(i), hidden)], inputs: inner }
    }

    /// A gain per feature.
    pub fn gains(&self, role: Role, size: usize) -> Result<Vec<f32>, PredictError> {
        let raw = self.raw(role, &[size])?;
        raw.to_f32().ok_or_else(|| {
            PredictError::Operator(format!("tensor {} is {}; gains are f32, f16 or bf16", raw.name, raw.format.name()))
        })
    }

    /// The format of a tensor whose shape is as the config says.
    pub fn format(&self, role: Role, shape: &[usize]) -> Result<Format, PredictError> {
        Ok(self.files.about(role)?.of_shape(shape)?.format)
    }

    /// The tensor is where it is to be: its pages of the file need not be in memory.
    pub fn done(&self, role: Role) {
        self.files.done(role);
    }

    /// A tensor as it lies in the files, queries and keys in the order of halves.
    pub fn raw(&self, role: Role, shape: &[usize]) -> Result<Raw<'_>, PredictError> {
        let About { name, format, .. } = self.files.about(role)?.of_shape(shape)?;
        let raw = Raw { name, format, bytes: self.files.bytes(role)? };
        Ok(match (&self.files, role) {
            (Files::Gguf(_), Role::Q(_)) => raw.unpermuted(shape[0], self.config.heads),
            (Files::Gguf(_), Role::K(_)) => raw.unpermuted(shape[0], self.config.kv_heads),
            _ => raw,
        })
    }
}

/// Where an entry of the lock lies, fetched first if need be.
fn fetched(name: &str, offline: bool, report: &mut dyn FnMut(&str)) -> Result<PathBuf, PredictError> {
    let lock = Lock::parse(super::ENTRY.lock)?;
    let mirrors = runner::weights::mirrors(super::ENTRY.manifest, name)?;
    let mut options = Options::from_env();
    options.offline |= offline;
    runner::weights::ensure(lock.entry(name)?, &mirrors, &options, &mut runner::weights::lines(report))
}

/// The format that a weight is kept in: a plain one in the precision asked for, or in one that the device has.
fn kept(format: Format, role: Role, tied: bool, wish: (Option<&str>, &Device)) -> Result<Format, PredictError> {
    let (precision, device) = wish;
    let stored = match format {
        Format::F32 => DType::F32,
        Format::F16 => DType::F16,
        Format::BF16 => DType::BF16,
        quantised => return Ok(quantised),
    };
    if let Some(rounded) = Rounded::of(precision)
        && let Some(blocks) = rounded.format(role, tied)?
    {
        return Ok(blocks);
    }
    let on = runner::device::capability(device);
    Ok(match runner::device::precision(precision::plain(precision), stored, on)? {
        DType::F16 => Format::F16,
        DType::BF16 => Format::BF16,
        _ => Format::F32,
    })
}

struct Loader<'a> {
    from: &'a Opened,
    device: &'a Device,
    pool: &'a Arc<Pool>,
    precision: Option<&'a str>,
}

impl Loader<'_> {
    fn linear(&self, stack: &Stack) -> Result<Linear, PredictError> {
        let raw = |&(role, outputs): &(Role, usize)| {
            let raw = self.from.raw(role, &[outputs, stack.inputs])?;
            let format = kept(raw.format, role, self.from.config.tied, (self.precision, self.device))?;
            Ok(raw.converted(format))
        };
        let raws = stack.parts.iter().map(raw).collect::<Result<Vec<_>, PredictError>>()?;
        let parts = raws.iter().zip(&stack.parts);
        let parts: Vec<_> = parts.map(|(raw, &(_, out))| Part { format: raw.format, out, bytes: &raw.bytes }).collect();
        let linear = Linear::stack(&parts, stack.inputs, self.device, self.pool)
            .map_err(|error| runner::device::fault(&error.context(format!("tensor {}", raws[0].name))))?;
        stack.parts.iter().for_each(|&(role, _)| self.from.done(role));
        Ok(linear)
    }

    /// A gain per feature, as f32.
    fn vector(&self, role: Role, size: usize) -> Result<Tensor, PredictError> {
        let values = self.from.gains(role, size)?;
        Tensor::from_vec(values, size, self.device).map_err(|error| runner::device::fault(&error))
    }
}

/// One tensor in hand.
pub struct Raw<'a> {
    pub name: String,
    pub format: Format,
    pub bytes: Cow<'a, [u8]>,
}

impl Raw<'_> {
    /// GGUF keeps the rows of q and k in interleaved rotary pairs; the two halves of each head are wanted. Rows are whole
    /// blocks, so that this moves bytes.
    fn unpermuted(self, rows: usize, heads: usize) -> Self {
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
        let plain = matches!(self.format, Format::F32 | Format::F16 | Format::BF16);
        plain.then(|| convert::values(self.format, &self.bytes).ok()).flatten()
    }

    fn converted(self, format: Format) -> Self {
        if format == self.format {
            return self;
        }
        let Some(values) = self.to_f32() else { return self };
        let bytes: Vec<u8> = match format {
            Format::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            Format::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            Format::Q8_0 => convert::q8_0(&values),
            Format::Q4_0 => convert::q4_0(&values),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        Self { format, bytes: Cow::Owned(bytes), ..self }
    }
}
