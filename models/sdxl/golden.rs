//! Our SDXL against the reference's numbers: whatever of a run is in a golden file, beside the same run here, drawing the
//! file's own noise. golden/pipelines.py makes such files, and says what each tensor is. The measure is max|a-b| / max|b|;
//! of ids, how many differ.
//!
//! Images, masks and latents are `[batch, channels, height, width]` in the file. The metadata says what was run: prompt,
//! negative, steps, guidance, scheduler, strength, refine, high_noise_frac, refine_steps, lora (a file beside the golden or in
//! the folder, as `replicate_weights` may be) and lora_scale.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::Pool;
use prediction::PredictError;
use safetensors::SafeTensors;

use super::generate::{Generator, Nets, Plan, Prepared, Refine, device_error};
use super::noise::{Noise, Use};
use super::trained::Trained;
use super::weights::{Load, Opened};
use crate::shared::shelf::Shelf;

/// Of what is computed in f32: sums differ by their order alone.
pub const TOLERANCE: f32 = 1e-3;
/// Where a pipeline folder holds its refiner.
const REFINER: &str = "refiner";
/// The timestep of the one forward that is compared by itself.
const FORWARD: f32 = 801.0;
/// As the hosted model has them, where the file says nothing.
const STEPS: usize = 50;
const GUIDANCE: f64 = 7.5;
const STRENGTH: f64 = 0.8;
const HIGH_NOISE: f64 = 0.8;

pub struct Golden {
    file: PathBuf,
    tensors: Arc<HashMap<String, Tensor>>,
    about: HashMap<String, String>,
}

/// How far one tensor of a golden is from ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    pub name: String,
    pub error: f32,
    /// For ids 0.
    pub allowed: f32,
}

impl Golden {
    pub fn read(path: &Path) -> Result<Self, PredictError> {
        let wrong = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| wrong(&error))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(&error))?;
        let about = header.metadata().clone().unwrap_or_default();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|error| wrong(&error))?;
        Ok(Self { file: path.to_owned(), tensors: Arc::new(tensors), about })
    }

    fn wrong(&self, why: &dyn std::fmt::Display) -> PredictError {
        PredictError::Operator(format!("{}: {why}", self.file.display()))
    }

    fn about<T: std::str::FromStr>(&self, key: &str, default: T) -> Result<T, PredictError> {
        match self.about.get(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| self.wrong(&format_args!("{key} is {text:?}"))),
        }
    }

    /// `[1, height, width, channels]`, f32; pixels of bytes, `[height, width, channels]`, from -1 to 1.
    fn image(&self, name: &str) -> Result<Option<Tensor>, PredictError> {
        let Some(image) = self.tensors.get(name) else { return Ok(None) };
        let turned = || match (image.rank(), image.dtype()) {
            (4, _) => image.permute((0, 2, 3, 1))?.contiguous()?.to_dtype(DType::F32),
            (2, _) => image.unsqueeze(0)?.unsqueeze(3)?.to_dtype(DType::F32),
            _ => image.unsqueeze(0)?.to_dtype(DType::F32),
        };
        let turned = turned().map_err(|error| self.wrong(&format_args!("{name}: {error}")))?;
        let range = if image.dtype() == DType::U8 { 255.0 } else { 1.0 };
        turned.affine(1.0 / range, 0.0).map(Some).map_err(device_error)
    }

    fn plan(&self, factor: usize, device: &Device) -> Result<Plan, PredictError> {
        let steps = self.about("steps", STEPS)?;
        let share = self.about("high_noise_frac", HIGH_NOISE)?;
        let refine = match self.about.get("refine").map_or("no_refiner", String::as_str) {
            "no_refiner" => Refine::No,
            "expert_ensemble_refiner" => Refine::Ensemble(share),
            "base_image_refiner" => Refine::Image(self.about("refine_steps", steps)?),
            other => return Err(self.wrong(&format_args!("refine is {other:?}"))),
        };
        let start = self.image("latents_init_unit")?.ok_or_else(|| self.wrong(&"latents_init_unit is missing"))?;
        let (_, height, width, _) = start.dims4().map_err(device_error)?;
        let place =
            |tensor: Option<Tensor>| tensor.map(|tensor| tensor.to_device(device)).transpose().map_err(device_error);
        // As diffusers takes pixels: what is nowhere below 0 has been scaled to 0 to 1.
        let signed = |image: Tensor| -> candle_core::Result<Tensor> {
            let least = image.flatten_all()?.min(0)?.to_scalar::<f32>()?;
            if least < 0.0 { Ok(image) } else { image.affine(2.0, -1.0) }
        };
        let image = self.image("init_image")?.map(signed).transpose().map_err(device_error)?;
        Ok(Plan {
            prompt: self.about("prompt", String::new())?,
            negative: self.about.get("negative").cloned(),
            height: height * factor,
            width: width * factor,
            steps,
            guidance: self.about("guidance", GUIDANCE)?,
            scheduler: self.about("scheduler", "K_EULER".to_owned())?,
            image: place(image)?,
            mask: place(self.image("mask")?)?,
            strength: self.about("strength", STRENGTH)?,
            refine,
        })
    }

    /// The file beside the golden, or in the pipeline's folder.
    fn lora(&self, folder: &Path) -> Option<PathBuf> {
        let name = self.about.get("lora").filter(|name| !name.is_empty())?;
        let beside = self.file.parent().unwrap_or(Path::new("")).join(name);
        Some(if beside.exists() { beside } else { folder.join(name) })
    }
}

/// The noise that the reference drew. What an image is encoded to is its distribution's middle where the file has no
/// `image_noise_unit`, and a refiner begins with the base's noise where it has no `refine_noise_unit`.
struct Replay(Arc<HashMap<String, Tensor>>);

impl Noise for Replay {
    fn draw(&mut self, what: Use, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        let start = "latents_init_unit";
        let (name, otherwise) = match what {
            Use::Start => (start.to_owned(), None),
            Use::Encoded => ("image_noise_unit".to_owned(), None),
            Use::EncodedMasked => ("masked_noise_unit".to_owned(), None),
            Use::Refined => ("refine_noise_unit".to_owned(), Some(start)),
            Use::Step(number) => (format!("noise_step_{number}"), None),
        };
        let found = self.0.get(&name).or_else(|| otherwise.and_then(|name| self.0.get(name)));
        let Some(noise) = found else {
            if matches!(what, Use::Encoded | Use::EncodedMasked) {
                return Tensor::zeros(shape, DType::F32, device);
            }
            candle_core::bail!("the golden has no {name}");
        };
        let noise = noise.permute((0, 2, 3, 1))?.contiguous()?.to_dtype(DType::F32)?.to_device(device)?;
        if noise.dims() != shape {
            candle_core::bail!("{name} is {:?}; {shape:?} is drawn", noise.dims());
        }
        Ok(noise)
    }
}

/// Prints one line per tensor; true where all of them are equal within the tolerance. Arithmetic in f32. `inputs` may name the
/// refiner's folder.
pub fn compare(
    folder: &Path,
    inputs: &[PathBuf],
    golden: &Path,
    device: &Device,
    out: &mut dyn Write,
) -> Result<bool, PredictError> {
    if inputs.len() > 1 {
        return Err(PredictError::Operator(format!(
            "at most a refiner's folder stands before the golden; {} do",
            inputs.len()
        )));
    }
    let golden = Golden::read(golden)?;
    let errors = errors(folder, inputs.first().map(PathBuf::as_path), &golden, device)?;
    let failed = |error: std::io::Error| PredictError::Operator(format!("the result cannot be written: {error}"));
    for Error { name, error, allowed } in &errors {
        writeln!(out, "{name:<24} {error:.3e}  (allowed {allowed:e})").map_err(failed)?;
    }
    let worst = errors.iter().map(|error| error.error).fold(0.0, f32::max);
    writeln!(out, "{:<24} {worst:.3e}  of {} tensors", "largest", errors.len()).map_err(failed)?;
    Ok(errors.iter().all(|error| error.error <= error.allowed))
}

/// In the order of a run.
pub fn errors(
    folder: &Path,
    refiner: Option<&Path>,
    golden: &Golden,
    device: &Device,
) -> Result<Vec<Error>, PredictError> {
    let pool = Arc::new(Pool::new(runner::device::cpu().cores));
    let opened = Opened::open(folder)?;
    let trained = golden.lora(folder).map(|path| Trained::open(&path)).transpose()?.unwrap_or_default();
    let plain =
        Load { device, pool: &pool, precision: Some(DType::F32), adapter: None, shelf: &Shelf::forgetful(device) };
    let base = trained.nets(&opened, plain, golden.about("lora_scale", 1.0)?)?;
    let own = folder.join(REFINER);
    let refiner = match golden.about.get("refine").is_none_or(|refine| refine == "no_refiner") {
        true => None,
        false => Some(Nets::open(&Opened::open(refiner.unwrap_or(&own))?, plain, None)?),
    };
    let generator = Generator { base, refiner, vae: opened.vae(plain)?, device: device.clone() };
    let mut plan = golden.plan(generator.vae.config().factor(), device)?;
    plan.prompt = trained.words.replaced(&plan.prompt)?;
    let prepared = generator.prepare(&plan)?;
    let mut comparing = Comparing { golden, errors: Vec::new() };
    comparing.told(&generator, &plan, &prepared)?;
    let scheduler = prepared.scheduler()?;
    comparing.row("timesteps", scheduler.timesteps())?;
    comparing.row("sigmas", scheduler.sigmas().unwrap_or_default())?;
    let mut drawing = generator.begin(&prepared, Box::new(Replay(golden.tensors.clone())))?;
    while generator.step(&prepared, &mut drawing)? {
        comparing.image(&format!("latents_after_step_{}", drawing.calls() - 1), drawing.latents())?;
    }
    if golden.tensors.contains_key("image_raw") {
        comparing.image("image_raw", &generator.decode(drawing.latents())?)?;
    }
    Ok(comparing.errors)
}

struct Comparing<'a> {
    golden: &'a Golden,
    errors: Vec<Error>,
}

impl Comparing<'_> {
    fn told(&mut self, generator: &Generator, plan: &Plan, prepared: &Prepared) -> Result<(), PredictError> {
        let prompt = &prepared.prompt;
        // A golden may have the negative text of a run without guidance.
        let negative = generator.base.texts.read_negative(plan.negative.as_deref(), prompt)?;
        for (number, ids) in prompt.ids.iter().enumerate() {
            self.ids(&format!("ids{}", number + 1), ids)?;
        }
        self.tensor("prompt_embeds", &prompt.embeds)?;
        self.tensor("negative_prompt_embeds", &negative.embeds)?;
        self.tensor("pooled", &prompt.pooled)?;
        self.tensor("negative_pooled", &negative.pooled)?;
        self.tensor("time_ids", &prepared.time_ids)?;
        let Some(start) = self.golden.image("latents_init_unit")?.filter(|_| self.has("unet_t801")) else {
            return Ok(());
        };
        let forward = || {
            let unet = &generator.base.unet;
            let times = unet.times(&[FORWARD], &prompt.pooled, &prepared.time_ids)?;
            unet.forward(&start.to_device(&generator.device)?, &times[0], &unet.context(&prompt.embeds)?)
        };
        self.image("unet_t801", &forward().map_err(device_error)?)
    }

    fn has(&self, name: &str) -> bool {
        self.golden.tensors.contains_key(name)
    }

    fn ids(&mut self, name: &str, ours: &[u32]) -> Result<(), PredictError> {
        let Some(theirs) = self.golden.tensors.get(name) else { return Ok(()) };
        let read = theirs.to_dtype(DType::I64).and_then(|ids| ids.flatten_all()?.to_vec1::<i64>());
        let theirs = read.map_err(device_error)?;
        let differ = ours.iter().zip(&theirs).filter(|&(a, b)| i64::from(*a) != *b).count();
        let differ = differ + ours.len().abs_diff(theirs.len());
        self.errors.push(Error { name: name.to_owned(), error: differ as f32, allowed: 0.0 });
        Ok(())
    }

    fn row(&mut self, name: &str, ours: &[f32]) -> Result<(), PredictError> {
        match ours.is_empty() {
            true => Ok(()),
            false => self.tensor(name, &Tensor::new(ours, &Device::Cpu).map_err(device_error)?),
        }
    }

    fn image(&mut self, name: &str, ours: &Tensor) -> Result<(), PredictError> {
        let turned = ours.permute((0, 3, 1, 2)).and_then(|ours| ours.contiguous());
        self.tensor(name, &turned.map_err(device_error)?)
    }

    /// Nothing where the golden has no such tensor.
    fn tensor(&mut self, name: &str, ours: &Tensor) -> Result<(), PredictError> {
        let Some(theirs) = self.golden.tensors.get(name) else { return Ok(()) };
        let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (ours, theirs) = (values(ours).map_err(device_error)?, values(theirs).map_err(device_error)?);
        let error = if ours.len() == theirs.len() { relative(&ours, &theirs) } else { f32::INFINITY };
        self.errors.push(Error { name: name.to_owned(), error, allowed: TOLERANCE });
        Ok(())
    }
}

fn relative(ours: &[f32], theirs: &[f32]) -> f32 {
    // What is no number is no equality.
    let largest = |most: f32, d: f32| if d.is_nan() { f32::INFINITY } else { most.max(d) };
    let difference = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, largest);
    difference / theirs.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()))
}
