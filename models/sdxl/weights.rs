//! Weights to networks: a diffusers folder, a single checkpoint file, or random weights of a shape. Knows where each
//! network's tensors are and in which precision they are held; refuses to know what the networks do.
//!
//! Tensors are taken one by one from the mapped files, and their pages given back: a network's weights are in memory once.
//! On the CPU those of 16 bits stay 16 bits.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use kernels::Pool;
use prediction::PredictError;
use runner::safetensors::Tensor;
use runner::synth::Synth;
use runner::{Origin, SafeTensors};
use serde_json::Value;

use super::clip::TextEncoder;
use super::config::{TextConfig, UnetConfig, VaeConfig, VisionConfig};
use super::reader::Reader;
use super::safety::Checker;
use super::sizes::{self, Sizes};
use super::unet::Unet;
use super::vae::Vae;
use super::vision_image;
use crate::shared::shelf::Shelf;

/// Parts with weights of their own.
const COMPONENTS: usize = 5;
/// What the UNet's tensors begin with in a single file.
const SINGLE_UNET: &str = "model.diffusion_model.";

/// A part of a pipeline with weights of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Component {
    /// CLIP-L, which a refiner lacks.
    Text1,
    /// OpenCLIP-bigG, with the pooled text.
    Text2,
    Unet,
    Vae,
    /// CLIP's image side with the concepts that are looked for, where there is one.
    Safety,
}

impl Component {
    pub const ALL: [Component; COMPONENTS] =
        [Component::Text1, Component::Text2, Component::Unet, Component::Vae, Component::Safety];

    /// Its folder in a pipeline's.
    pub fn folder(self) -> &'static str {
        match self {
            Component::Text1 => "text_encoder",
            Component::Text2 => "text_encoder_2",
            Component::Unet => "unet",
            Component::Vae => "vae",
            Component::Safety => "safety_checker",
        }
    }

    /// What its weight files' names begin with.
    pub(super) fn stem(self) -> &'static str {
        match self {
            Component::Text1 | Component::Text2 | Component::Safety => "model",
            Component::Unet | Component::Vae => "diffusion_pytorch_model",
        }
    }
}

/// What changes weights while they are read: an adapter's low-rank products, or other weights.
pub trait Adapter {
    fn touches(&self, component: Component, name: &str) -> bool;
    /// Adds to a tensor of this diffusers name and shape, row-major.
    fn add(&self, component: Component, name: &str, shape: &[usize], values: &mut [f32]) -> Result<(), PredictError>;
    /// What stands in a tensor's place, of its shape.
    fn instead(&self, _: Component, _: &str) -> Option<Tensor<'_>> {
        None
    }
    /// It was taken over: what stood in its place need not stay in memory.
    fn done(&self, _: Component, _: &str) {}
}

/// How networks are to be built.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub device: &'a Device,
    pub pool: &'a Arc<Pool>,
    /// What weights are held in; none: as they are stored.
    pub precision: Option<DType>,
    pub adapter: Option<&'a dyn Adapter>,
    /// What is on it is not read; what is read is remembered there.
    pub shelf: &'a Shelf,
}

/// A pipeline's files, opened and understood.
pub struct Opened {
    path: PathBuf,
    texts: [Option<TextConfig>; 2],
    unet: UnetConfig,
    vae: VaeConfig,
    checker: Option<VisionConfig>,
    sources: Sources,
    beside: Beside,
}

/// By component.
type Sources = [Option<Source>; COMPONENTS];

/// Where files that hold no weights come from.
enum Beside {
    Folder,
    /// A single file has none: what its shape usually has.
    Usual(&'static Sizes),
    Synth(Arc<Synth>),
}

/// Where a component's tensors come from, and under which names.
pub(super) enum Source {
    Folder(Arc<SafeTensors>),
    /// Under the first implementation's names, behind a prefix.
    Single(Arc<SafeTensors>, &'static str, Naming),
    Synth(Arc<Synth>),
}

impl Source {
    fn origin(&self) -> Origin {
        match self {
            Self::Folder(tensors) | Self::Single(tensors, ..) => tensors.origin(),
            Self::Synth(synth) => synth.origin(),
        }
    }
}

/// What decides the bytes of the nets that are built of a pipeline's files, beside how they are built.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    path: PathBuf,
    texts: [Option<TextConfig>; 2],
    unet: UnetConfig,
    vae: VaeConfig,
    checker: Option<VisionConfig>,
    /// By component.
    origins: Vec<Option<Origin>>,
}

#[derive(Clone, Copy)]
pub(super) enum Naming {
    Transformers,
    OpenClip,
    Unet,
    Vae,
}

impl Opened {
    /// A diffusers folder with `model_index.json`, or a single `.safetensors` file.
    pub fn open(path: &Path) -> Result<Self, PredictError> {
        if !path.is_dir() {
            return Self::open_single(path);
        }
        let (mut files, mut sources) = (Vec::new(), Sources::default());
        for component in Component::ALL {
            add_folder(path, component, &mut files, &mut sources)?;
        }
        Self::of_parts(path, files, sources, Beside::Folder)
    }

    fn open_single(path: &Path) -> Result<Self, PredictError> {
        let tensors = Arc::new(SafeTensors::open(path)?);
        let sizes = single_sizes(&tensors).map_err(|why| {
            PredictError::Operator(format!("{}: {why}: not a single-file checkpoint of SDXL", path.display()))
        })?;
        let source = |prefix, naming| Some(Source::Single(tensors.clone(), prefix, naming));
        let (first, second) = match sizes.is_base() {
            true => (
                source("conditioner.embedders.0.transformer.", Naming::Transformers),
                source("conditioner.embedders.1.model.", Naming::OpenClip),
            ),
            false => (None, source("conditioner.embedders.0.model.", Naming::OpenClip)),
        };
        let (unet, vae) = (source(SINGLE_UNET, Naming::Unet), source("first_stage_model.", Naming::Vae));
        let mut sources = [first, second, unet, vae, None];
        let mut files: Vec<_> =
            sizes.files("float16").into_iter().map(|(name, json)| (name.to_owned(), json)).collect();
        // There is none inside; beside it there may be one, as in a folder.
        let beside = path.parent().unwrap_or(Path::new(""));
        add_folder(beside, Component::Safety, &mut files, &mut sources)?;
        Self::of_parts(path, files, sources, Beside::Usual(sizes))
    }

    /// Random weights of a shape.
    pub fn synth(shape: &str, dtype: &str, seed: u64) -> Result<Self, PredictError> {
        let synth = Arc::new(Synth::new(crate::shape(shape)?, dtype, seed)?);
        let (mut files, mut sources) = (Vec::new(), Sources::default());
        for component in Component::ALL {
            let name = config_name(component);
            if let Some(text) = synth.file(&name) {
                let json =
                    serde_json::from_slice(text).map_err(|error| PredictError::Operator(format!("{name}: {error}")))?;
                files.push((name, json));
                sources[component as usize] = Some(Source::Synth(synth.clone()));
            }
        }
        Self::of_parts(&PathBuf::from(synth.title()), files, sources, Beside::Synth(synth))
    }

    /// `files` are the parts' configs by their names in a folder.
    fn of_parts(
        path: &Path,
        files: Vec<(String, Value)>,
        sources: Sources,
        beside: Beside,
    ) -> Result<Self, PredictError> {
        let json = |component| {
            let name = config_name(component);
            files.iter().find(|(known, _)| *known == name).map(|(_, json)| (name, json))
        };
        let needed = |component| {
            let why = format!("{}: has no {}: not a diffusers folder", path.display(), config_name(component));
            json(component).ok_or(PredictError::Operator(why))
        };
        let text = |component| json(component).map(|(name, json)| TextConfig::read(&name, json)).transpose();
        let checker = json(Component::Safety).map(|(name, json)| VisionConfig::read(&name, json)).transpose()?;
        let (unet, vae) = (needed(Component::Unet)?, needed(Component::Vae)?);
        Ok(Self {
            path: path.to_owned(),
            texts: [text(Component::Text1)?, text(Component::Text2)?],
            unet: UnetConfig::read(&unet.0, unet.1)?,
            vae: VaeConfig::read(&vae.0, vae.1)?,
            checker,
            sources,
            beside,
        })
    }

    /// Another VAE in place of its own: a folder with `config.json` and weights, or a single file without a prefix.
    pub fn with_vae(mut self, path: &Path) -> Result<Self, PredictError> {
        let source = if path.is_dir() {
            let file = path.join("config.json");
            let json = read_json(&file)?;
            self.vae = VaeConfig::read(&file.display().to_string(), &json)?;
            open_folder(path, Component::Vae)?
        } else {
            Source::Single(Arc::new(SafeTensors::open(path)?), "", Naming::Vae)
        };
        self.sources[Component::Vae as usize] = Some(source);
        Ok(self)
    }

    /// What it says of the nets' bytes.
    pub fn identity(&self) -> Identity {
        Identity {
            path: self.path.clone(),
            texts: self.texts.clone(),
            unet: self.unet.clone(),
            vae: self.vae.clone(),
            checker: self.checker.clone(),
            origins: self.sources.iter().map(|source| source.as_ref().map(Source::origin)).collect(),
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file without weights, by its name in a diffusers folder, e.g. `scheduler/scheduler_config.json`.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, PredictError> {
        let of_folder = |folder: &Path| {
            let place = folder.join(name);
            match std::fs::read(&place) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(PredictError::Operator(format!("{}: {error}", place.display()))),
            }
        };
        match &self.beside {
            Beside::Synth(synth) => Ok(synth.file(name).map(<[u8]>::to_vec)),
            Beside::Usual(sizes) => {
                let files = sizes.files("float16");
                match files.into_iter().find(|(known, _)| *known == name) {
                    Some((_, json)) => Ok(Some(json.to_string().into_bytes())),
                    // What a single file lacks, tokenizers above all, may lie beside it as in a folder.
                    None => of_folder(self.path.parent().unwrap_or(Path::new(""))),
                }
            }
            Beside::Folder => of_folder(&self.path),
        }
    }

    /// None for the CLIP that a refiner lacks.
    pub fn text_config(&self, component: Component) -> Option<&TextConfig> {
        self.texts.get(component as usize)?.as_ref()
    }

    pub fn unet_config(&self) -> &UnetConfig {
        &self.unet
    }

    pub fn vae_config(&self) -> &VaeConfig {
        &self.vae
    }

    /// `Text1` or `Text2`; none where the pipeline has none.
    pub fn text_encoder(&self, component: Component, load: Load) -> Result<Option<TextEncoder>, PredictError> {
        let Some(config) = self.text_config(component) else { return Ok(None) };
        TextEncoder::load(config.clone(), &self.reader(component, load)?).map(Some)
    }

    /// Whether what is drawn can be checked.
    pub fn has_checker(&self) -> bool {
        self.checker.is_some()
    }

    /// None where the pipeline has none.
    pub fn checker(&self, load: Load) -> Result<Option<Checker>, PredictError> {
        const SETTINGS: &str = "feature_extractor/preprocessor_config.json";
        let Some(config) = &self.checker else { return Ok(None) };
        if let Some(text) = self.file(SETTINGS)? {
            let wrong = |error| PredictError::Operator(format!("{}/{SETTINGS}: {error}", self.path.display()));
            vision_image::check(SETTINGS, &serde_json::from_slice(&text).map_err(wrong)?, config.image_size)?;
        }
        Checker::load(config.clone(), &self.reader(Component::Safety, load)?).map(Some)
    }

    pub fn unet(&self, load: Load) -> Result<Unet, PredictError> {
        Unet::load(self.unet.clone(), &self.reader(Component::Unet, load)?)
    }

    /// One that would leave the range of f16 is held in f32 where 16 bits would be computed with.
    pub fn vae(&self, load: Load) -> Result<Vae, PredictError> {
        let precision = self.vae_precision(load);
        Vae::load(self.vae.clone(), &self.reader(Component::Vae, Load { precision, ..load })?)
    }

    fn vae_precision(&self, load: Load) -> Option<DType> {
        // On the CPU weights of 16 bits meet activations of 32.
        let safe = !kernels::op::gpu(load.device) || !self.vae.force_upcast || load.precision == Some(DType::BF16);
        if safe { load.precision } else { Some(DType::F32) }
    }

    /// Bytes of a component's weights as they will be held, from headers alone; 0 where the pipeline lacks it. Biases and
    /// norms are f32.
    pub fn bytes(&self, component: Component, load: Load) -> Result<u64, PredictError> {
        let Some(source) = &self.sources[component as usize] else { return Ok(0) };
        let precision = if component == Component::Vae { self.vae_precision(load) } else { load.precision };
        let size = |dtype: DType, shape: &[usize]| {
            let held = if shape.len() < 2 { DType::F32 } else { precision.unwrap_or(dtype) };
            (shape.iter().product::<usize>() * held.size_in_bytes()) as u64
        };
        match source {
            Source::Folder(tensors) => {
                tensors.names().map(|name| tensors.tensor(name).map(|t| size(t.dtype, t.shape))).sum()
            }
            Source::Single(tensors, prefix, _) => {
                let own = tensors.names().filter(|name| name.starts_with(prefix));
                own.map(|name| tensors.tensor(name).map(|t| size(t.dtype, t.shape))).sum()
            }
            Source::Synth(synth) => {
                let prefix = format!("{}/", component.folder());
                let own = synth.names().filter(|name| name.starts_with(&prefix));
                own.map(|name| Ok(size(synth.dtype(), synth.shape(name)?))).sum()
            }
        }
    }

    /// Diffusers' names and the shapes of a component's tensors: what an adapter has to fit.
    pub fn tensors(&self, component: Component) -> Result<Vec<(String, Vec<usize>)>, PredictError> {
        let own = format!("{}/{}/", component.folder(), component.stem());
        let planned = |plan: Vec<runner::synth::Tensor>| {
            let own = plan.into_iter().filter_map(|t| Some((t.name.strip_prefix(&own)?.to_owned(), t.shape)));
            own.collect::<Vec<_>>()
        };
        Ok(match (&self.sources[component as usize], &self.beside) {
            (None, _) => Vec::new(),
            (Some(Source::Folder(tensors)), _) => {
                let all = tensors.names().map(|name| {
                    let clip = matches!(component, Component::Text1 | Component::Text2);
                    let newer = clip && !name.starts_with("text_");
                    let known = if newer { format!("text_model.{name}") } else { name.to_owned() };
                    Ok((known, tensors.tensor(name)?.shape.to_vec()))
                });
                all.collect::<Result<_, PredictError>>()?
            }
            (Some(Source::Synth(synth)), _) => {
                let all = synth.names().filter_map(|name| Some((name, name.strip_prefix(&own)?)));
                let all = all.map(|(name, known)| Ok((known.to_owned(), synth.shape(name)?.to_vec())));
                all.collect::<Result<_, PredictError>>()?
            }
            (Some(Source::Single(..)), Beside::Usual(sizes)) => planned(super::synth::tensors(sizes)),
            // Another VAE in a single file: no adapter is for one.
            (Some(Source::Single(..)), _) => Vec::new(),
        })
    }

    fn reader<'a>(&'a self, component: Component, load: Load<'a>) -> Result<Reader<'a>, PredictError> {
        let source = self.sources[component as usize]
            .as_ref()
            .ok_or_else(|| PredictError::Operator(format!("{}: has no {}", self.path.display(), component.folder())))?;
        Ok(Reader { opened: self, source, component, load, prefix: String::new() })
    }
}

/// Where a component's config is in a folder.
fn config_name(component: Component) -> String {
    format!("{}/config.json", component.folder())
}

/// A component of a folder, where the folder has it.
fn add_folder(
    folder: &Path,
    component: Component,
    files: &mut Vec<(String, Value)>,
    sources: &mut Sources,
) -> Result<(), PredictError> {
    let name = config_name(component);
    let place = folder.join(&name);
    if place.exists() {
        files.push((name, read_json(&place)?));
        sources[component as usize] = Some(open_folder(&folder.join(component.folder()), component)?);
    }
    Ok(())
}

fn read_json(place: &Path) -> Result<Value, PredictError> {
    let wrong = |why: &dyn Display| PredictError::Operator(format!("{}: {why}", place.display()));
    let text = std::fs::read(place).map_err(|error| wrong(&error))?;
    serde_json::from_slice(&text).map_err(|error| wrong(&error))
}

/// Which of the shapes that are known a single file has, by what its UNet reads; else why it has none.
fn single_sizes(tensors: &SafeTensors) -> Result<&'static Sizes, String> {
    let shape = |name: &str| {
        let name = format!("{SINGLE_UNET}{name}");
        let shape = tensors.tensor(&name).map(|tensor| tensor.shape.to_vec()).unwrap_or_default();
        if shape.len() < 2 { Err(format!("has no {name}")) } else { Ok([shape[0], shape[1]]) }
    };
    let (first, condition) = (shape("input_blocks.0.0.weight")?, shape("label_emb.0.0.weight")?);
    let fits = |sizes: &&&Sizes| first == [sizes.levels[0].0, sizes.inputs] && condition[1] == sizes.condition();
    let found = sizes::KNOWN.iter().find(fits).copied();
    found.ok_or_else(|| format!("no known UNet begins with {first:?} and reads a condition of {}", condition[1]))
}

/// A component's weights: the plain ones, else those of half precision, whole or in shards. Other files are let be.
fn open_folder(folder: &Path, component: Component) -> Result<Source, PredictError> {
    let stem = component.stem();
    let names = [
        format!("{stem}.safetensors"),
        format!("{stem}.safetensors.index.json"),
        format!("{stem}.fp16.safetensors"),
        format!("{stem}.safetensors.index.fp16.json"),
        format!("{stem}.fp16.safetensors.index.json"),
    ];
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
    // With none of them there is one of another name, or a sentence that says what there is.
    let tensors = SafeTensors::open(&found.unwrap_or_else(|| folder.to_owned()))?;
    Ok(Source::Folder(Arc::new(tensors)))
}
