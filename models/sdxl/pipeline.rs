//! A loaded SDXL: one prediction at a time, for an image of the true net fills any device. A step reads the prompt, makes one
//! call of a net, or decodes one image, so that a cancel is heard within one call and other models go on between.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, DeviceLocation};
use kernels::Pool;
use prediction::{Event, Id, Job, Kept, LoadSpec, Loaded, Map, Model, Outcome, PredictError, Weights};
use runner::weights::{self, Lock, Progress};

use super::change::Change;
use super::cost;
use super::generate::{Generator, Nets};
use super::input::{Asked, MAX_SIDE};
use super::running::{Now, Running};
use super::safety::Checker;
use super::scheduler::Config;
use super::unet::Unet;
use super::weights::{self as opened, Component, Load, Opened};
use crate::shared::kept::{Copy, fitting};
use crate::shared::shelf::{Copied, Shelf};

const MAX_THREADS: usize = 1024;
/// Of every prompt.
const TEXT_TOKENS: usize = 77;
/// Where a pipeline's folder may have its refiner.
const REFINERS: [&str; 2] = ["refiner", "sd_xl_refiner_1.0.safetensors"];
/// In a pipeline's folder itself: weights beside their `config.json`, and a single file as it is published.
const OTHER_VAE: &str = "diffusion_pytorch_model.safetensors";
const SINGLE_VAE: &str = "sdxl_vae.safetensors";
/// The share of the processor's multiply-adds that is reckoned with before anything was measured.
const USUAL_SHARE: f64 = 0.45;

/// The folder's entry into `ALL`: loads any SDXL.
pub struct Sdxl;

impl Model for Sdxl {
    fn needs(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        alone(spec)?;
        let files = Files::open(&spec.weights, report)?;
        let (device, pool) = (runner::device::pick(&spec.device)?, Arc::new(Pool::new(1)));
        let setting = Setting { precision: precision(spec, &device)?, device, pool };
        Ok(files.bytes(setting.load(&Shelf::forgetful(&setting.device)))? + files.scratch(&setting.device))
    }

    fn load(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        Ok(Box::new(Pipeline::load(spec, None, report)?))
    }

    fn load_kept(
        &self,
        spec: &LoadSpec,
        kept: Box<dyn Kept>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Loaded>, PredictError> {
        Ok(Box::new(Pipeline::load(spec, Some(kept), report)?))
    }
}

/// The parts of a pipeline as they lie on the disk.
pub struct Files {
    pub base: Opened,
    pub refiner: Option<Opened>,
}

/// What decides the bytes that unchanged nets hold on their device.
#[derive(Debug, Clone, PartialEq)]
struct Identity {
    base: opened::Identity,
    refiner: Option<opened::Identity>,
    precision: Option<DType>,
    device: DeviceLocation,
}

/// What a pipeline is built with, the same for all its life.
pub struct Setting {
    pub device: Device,
    pub pool: Arc<Pool>,
    pub precision: Option<DType>,
}

pub struct Pipeline {
    pub files: Files,
    pub setting: Setting,
    /// None only while it is loaded anew.
    generator: Option<Generator>,
    checker: Option<Checker>,
    /// What the generator and the checker hold on a GPU; both go together with their nets.
    shelf: Shelf,
    checker_shelf: Shelf,
    /// The base's.
    scheduler: Config,
    /// The key of what the base's weights were changed with.
    change: Option<u64>,
    /// Operations per second that calls have come to.
    speed: Option<f64>,
    defaults: Map,
    provenance: Map,
    pub bytes: u64,
    running: Option<Running>,
}

impl Pipeline {
    /// From the files, or from what an earlier one has kept.
    pub fn load(
        spec: &LoadSpec,
        kept: Option<Box<dyn Kept>>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Self, PredictError> {
        alone(spec)?;
        let files = Files::open(&spec.weights, report)?;
        let device = runner::device::pick(&spec.device)?;
        kernels::op::prepare(&device).map_err(|error| runner::device::fault(&error))?;
        let threads = spec.threads.map_or_else(|| runner::device::cpu().cores, |threads| threads as usize);
        if threads == 0 || threads > MAX_THREADS {
            return Err(PredictError::Operator(format!("threads is {threads}; 1 to {MAX_THREADS}")));
        }
        let pool = Arc::new(Pool::new(threads));
        let speed = device.is_cpu().then(|| USUAL_SHARE * kernels::peak::flops(&pool));
        let precision = precision(spec, &device)?;
        let setting = Setting { device, pool, precision };
        let began = Instant::now();
        let [shelf, checker_shelf] = match fitting::<_, [Copied; 2]>(kept, &files.identity(&setting), report) {
            None => [(); 2].map(|()| Shelf::new(&setting.device)),
            Some([nets, checker]) => {
                let returned = |copied| Shelf::returned(copied, &setting.device);
                let fault = |error: candle_core::Error| runner::device::fault(&error);
                [returned(nets).map_err(fault)?, returned(checker).map_err(fault)?]
            }
        };
        let generator = files.generator(&setting, None, &shelf, report)?;
        let checker = files.base.checker(setting.load(&checker_shelf))?;
        if !setting.device.is_cpu() {
            report(&on_gpu(&generator.base.unet));
        }
        let bytes = files.bytes(setting.load(&shelf))?;
        let with = |has: bool| if has { "with" } else { "without" };
        let (refiner, checked) = (with(files.refiner.is_some()), with(checker.is_some()));
        report(&format!(
            "SDXL {refiner} refiner, {checked} safety checker: {} MB of weights ready in {:.2} s; {threads} threads",
            bytes / 1_000_000,
            began.elapsed().as_secs_f64(),
        ));
        let mut provenance = (*spec.provenance).clone();
        provenance.insert("program".into(), concat!("pinion ", env!("CARGO_PKG_VERSION")).into());
        provenance.insert("model".into(), spec.target.clone().into());
        Ok(Self {
            files,
            setting,
            scheduler: generator.base.scheduler.clone(),
            generator: Some(generator),
            checker,
            shelf,
            checker_shelf,
            change: None,
            speed,
            defaults: spec.defaults.clone(),
            provenance,
            bytes,
            running: None,
        })
    }

    /// The generator whose weights are changed as this prediction wants them, or not at all.
    pub fn generator(&mut self) -> Result<&Generator, PredictError> {
        let wanted = self.running.as_ref().and_then(Running::change);
        let same = wanted.map(|change| change.key) == self.change;
        if !same || self.generator.is_none() {
            let wanted = wanted.cloned();
            // Two of them would not fit.
            self.generator = None;
            self.change = None;
            self.shelf = Shelf::forgetful(&self.setting.device);
            let shelf = match wanted {
                None => Shelf::new(&self.setting.device),
                Some(_) => Shelf::forgetful(&self.setting.device),
            };
            // What was read of nets that cannot be read to the end goes at once.
            let generator = self.files.generator(&self.setting, wanted.as_ref(), &shelf, &mut |_| {})?;
            (self.generator, self.shelf) = (Some(generator), shelf);
            self.change = wanted.map(|change| change.key);
        }
        self.generator.as_ref().ok_or_else(|| PredictError::Operator("the weights are gone".into()))
    }
}

impl Setting {
    pub fn load<'a>(&'a self, shelf: &'a Shelf) -> Load<'a> {
        Load { device: &self.device, pool: &self.pool, precision: self.precision, adapter: None, shelf }
    }
}

impl Loaded for Pipeline {
    fn admit(&mut self, job: Job) -> Result<(), PredictError> {
        if self.running.is_some() {
            return Err(PredictError::RetryLater("one image is drawn at a time".into()));
        }
        let asked = Asked::read(job.input, &self.defaults, job.seed)?;
        self.running = Some(Running::new(job.id, asked, &self.files, &self.scheduler, self.provenance.clone())?);
        Ok(())
    }

    fn step(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        if running.start(self.speed, self.generator.as_ref(), &self.files, emit) {
            return Ok(());
        }
        let generator = self.generator();
        let mut result = generator.map(drop);
        let (running, speed) = (&mut self.running, &mut self.speed);
        if let (Ok(()), Some(generator), Some(running)) = (&result, &self.generator, running.as_mut()) {
            match running.step(generator, self.checker.as_ref(), speed, emit) {
                Ok(Now::GoesOn) => return Ok(()),
                Ok(Now::Ended) => {}
                Err(error) => result = Err(error),
            }
        }
        let ended = running.take();
        match (result, ended) {
            // The prediction's own fault ends the prediction and nothing else.
            (Err(PredictError::FixInput(error)), Some(running)) => {
                emit(&running.id, Event::Ended(Outcome::Failed { error }));
                Ok(())
            }
            (result, _) => result,
        }
    }

    fn cancel(&mut self, id: &Id) {
        self.running.take_if(|running| running.id == *id);
    }

    fn active(&self) -> usize {
        usize::from(self.running.is_some())
    }

    fn capacity(&self) -> usize {
        1
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn kept_bytes(&self) -> u64 {
        // Changed weights are no file's.
        match self.generator.is_some() && self.change.is_none() {
            true => self.shelf.kept_bytes() + self.checker_shelf.kept_bytes(),
            false => 0,
        }
    }

    fn keep(&self) -> Result<Option<Box<dyn Kept>>, PredictError> {
        let copied = |shelf: &Shelf| shelf.copied().map_err(|error| runner::device::fault(&error));
        let copy = [copied(&self.shelf)?, copied(&self.checker_shelf)?];
        let (identity, bytes) = (self.files.identity(&self.setting), copy.iter().map(Copied::bytes).sum());
        Ok(Some(Box::new(Copy { identity, copy, bytes })))
    }
}

impl Files {
    /// Fetched first if need be.
    pub fn open(weights: &Weights, report: &mut dyn FnMut(&str)) -> Result<Self, PredictError> {
        match weights {
            Weights::Path(path) => Self::find(path),
            Weights::Locked { name, offline } => Self::find(&locate(name, *offline, report)?),
            Weights::Synth { shape, dtype, seed } => {
                Ok(Self { base: Opened::synth(shape, dtype, *seed)?, refiner: None })
            }
        }
    }

    /// A pipeline's folder or file. A folder may hold a refiner, as a folder `refiner` or as the file that is published, and
    /// beside `model_index.json` another VAE in place of its own: `config.json` with its weights, or a single file.
    fn find(path: &Path) -> Result<Self, PredictError> {
        let mut base = Opened::open(path)?;
        if path.is_dir() && path.join(OTHER_VAE).exists() {
            base = base.with_vae(path)?;
        } else if path.is_dir() && path.join(SINGLE_VAE).exists() {
            base = base.with_vae(&path.join(SINGLE_VAE))?;
        }
        let refiner = REFINERS.iter().map(|name| path.join(name)).find(|path| path.exists());
        Ok(Self { base, refiner: refiner.map(|path| Opened::open(&path)).transpose()? })
    }

    fn identity(&self, setting: &Setting) -> Identity {
        Identity {
            base: self.base.identity(),
            refiner: self.refiner.as_ref().map(Opened::identity),
            precision: setting.precision,
            device: setting.device.location(),
        }
    }

    fn generator(
        &self,
        setting: &Setting,
        change: Option<&Change>,
        shelf: &Shelf,
        report: &mut dyn FnMut(&str),
    ) -> Result<Generator, PredictError> {
        report("SDXL: reading the base");
        let base = match change {
            Some(change) => change.nets(&self.base, setting.load(shelf))?,
            None => Nets::open(&self.base, setting.load(shelf), None)?,
        };
        let refiner = match &self.refiner {
            None => None,
            Some(refiner) => {
                report("SDXL: reading the refiner");
                Some(Nets::open(refiner, setting.load(shelf), None)?)
            }
        };
        let vae = self.base.vae(setting.load(shelf))?;
        Ok(Generator { base, refiner, vae, device: setting.device.clone() })
    }

    /// Of the weights as they are held, from headers alone.
    fn bytes(&self, load: Load) -> Result<u64, PredictError> {
        let base = Component::ALL.iter().map(|component| self.base.bytes(*component, load));
        // The base's serve both.
        let shared = [Component::Vae, Component::Safety];
        let own = Component::ALL.iter().filter(|component| !shared.contains(component));
        let refiner = self.refiner.iter().flat_map(|refiner| own.clone().map(|part| refiner.bytes(*part, load)));
        base.chain(refiner).sum()
    }

    /// The most that a step takes beside the weights, of the largest image that can be asked for.
    fn scratch(&self, device: &Device) -> u64 {
        let side = MAX_SIDE / self.base.vae_config().factor();
        let nets = [Some(&self.base), self.refiner.as_ref()].into_iter().flatten();
        let calls = nets.map(|opened| cost::call_bytes(opened.unet_config(), 2, side, side));
        let most = calls.chain([cost::decode_bytes(self.base.vae_config(), side, side)]).max().unwrap_or_default();
        // A GPU puts a convolution's windows side by side.
        most + if device.is_cpu() { 0 } else { kernels::op::WINDOW_BYTES as u64 }
    }

    /// Of decoding an image of so many pixels.
    pub fn decode_operations(&self, width: usize, height: usize) -> f64 {
        let config = self.base.vae_config();
        cost::decode_operations(config, height / config.factor(), width / config.factor())
    }
}

/// Of one call of the base for so many images of so many pixels.
pub fn call_operations(generator: &Generator, images: usize, width: usize, height: usize) -> f64 {
    let factor = generator.vae.config().factor();
    images as f64 * generator.base.unet.operations(height / factor, width / factor, TEXT_TOKENS) as f64
}

/// More at once would only take turns, and each would take the memory of an image.
fn alone(spec: &LoadSpec) -> Result<(), PredictError> {
    match spec.concurrency {
        None | Some(1) => Ok(()),
        Some(n) => {
            Err(PredictError::Operator(format!("concurrency is {n}; an SDXL draws for one prediction at a time")))
        }
    }
}

/// How a net is computed on a GPU, for the log: what our kernels do not take is said, since it is slow.
pub fn on_gpu(unet: &Unet) -> String {
    let dtype = unet.activations().as_str();
    match unet.composed_heads().as_slice() {
        [] => format!("our CUDA kernels run it in {dtype}"),
        dims => format!(
            "our CUDA kernels run it in {dtype}, but attention over heads of {dims:?} is composed of candle's ops: the kernel takes \
             heads of 64 in f16 and bf16"
        ),
    }
}

/// What the weights are kept in: what the operator says; else on a GPU f16, as the hosted model has them, and on the CPU what the files
/// have them in, none.
fn precision(spec: &LoadSpec, device: &Device) -> Result<Option<DType>, PredictError> {
    let asked = spec.precision.as_deref();
    if asked.is_none() && device.is_cpu() {
        return Ok(None);
    }
    runner::device::precision(asked, DType::F16, runner::device::capability(device)).map(Some)
}

/// Where pinned weights lie, fetched first if need be.
fn locate(name: &str, offline: bool, report: &mut dyn FnMut(&str)) -> Result<PathBuf, PredictError> {
    let lock = Lock::parse(super::ENTRY.lock)?;
    if lock.weights.iter().all(|entry| entry.name != name) {
        return Err(weights::unpinned(name));
    }
    let mirrors = weights::mirrors(super::ENTRY.manifest, name)?;
    let mut options = weights::Options::from_env();
    options.offline |= offline;
    weights::ensure(lock.entry(name)?, &mirrors, &options, &mut |progress| match progress {
        Progress::Waiting { file } => report(&format!("{file}: another process is fetching it")),
        Progress::Trying { file, source } => report(&format!("{file}: asking {source}")),
        Progress::Failed { file, source, why } => report(&format!("{file}: {source}: {why}")),
        Progress::Bytes { .. } => {}
    })
}
