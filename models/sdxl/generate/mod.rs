//! A prediction's images: what was asked becomes stages (the base's, then perhaps a refiner's), prepared once for all images,
//! and each image goes through them call by call. The reference is diffusers' `StableDiffusionXLPipeline`,
//! `…Img2ImgPipeline` and `…InpaintPipeline`, put together as cog-sdxl does. Refuses to know files, seeds and predictions.
//!
//! Images are drawn one after the other: a call with guidance is a batch of two already, and its memory is the peak.

pub mod learned;
mod prompt;
mod schedule;
mod steps;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use prediction::PredictError;

pub use self::prompt::{Read, Texts};
pub use self::schedule::{Schedule, Start};
use self::steps::{Denoising, Painted, Told};
use super::config::{UnetConfig, VaeConfig};
use super::noise::{Noise, Use};
use super::scheduler::{Config, Scheduler, mix};
use super::unet::Unet;
use super::vae::{Latents, Vae};
use super::weights::{Load, Opened};

/// What a refiner is told of an image's beauty, and of what to lead away from.
const AESTHETIC_SCORES: [f32; 2] = [6.0, 2.5];
/// How much of a finished image a refiner draws anew, as diffusers' pipeline has it by default.
const REFINE_STRENGTH: f64 = 0.3;
/// Time ids of a refiner; a base has six.
const REFINER_IDS: usize = 5;

/// A folder's text encoders, UNet and schedule, all but the VAE.
pub struct Nets {
    pub texts: Texts,
    pub unet: Unet,
    pub scheduler: Config,
}

/// What draws images.
pub struct Generator {
    pub base: Nets,
    pub refiner: Option<Nets>,
    pub vae: Vae,
    pub device: Device,
}

/// What is asked for, of one prompt.
pub struct Plan {
    pub prompt: String,
    /// None is zeros where the pipeline's `force_zeros_for_empty_prompt` says so; cog-sdxl always gives a text.
    pub negative: Option<String>,
    /// Pixels, multiples of the VAE's factor.
    pub height: usize,
    pub width: usize,
    pub steps: usize,
    /// Up to 1 there is no guidance, and half the work.
    pub guidance: f64,
    pub scheduler: String,
    /// `[1, height, width, 3]`, -1 to 1.
    pub image: Option<Tensor>,
    /// `[1, height, width, 1]`, 0 to 1; painted over from 0.5 on. Without an image it is left aside.
    pub mask: Option<Tensor>,
    /// How much of an image is drawn anew.
    pub strength: f64,
    pub refine: Refine,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refine {
    No,
    /// The refiner takes over at this share of the way.
    Ensemble(f64),
    /// The refiner draws the finished image anew, in so many steps.
    Image(usize),
}

/// A plan whose texts and image were read: for every image of it.
pub struct Prepared {
    stages: Vec<Stage>,
    source: Option<Source>,
    latents: [usize; 4],
    pub prompt: Read,
    pub negative: Option<Read>,
    /// `[1, ids]` of the base.
    pub time_ids: Tensor,
}

struct Stage {
    schedule: Schedule,
    told: Arc<Told>,
    refiner: bool,
}

/// The image to begin with.
struct Source {
    latents: Latents,
    /// The mask in latent pixels, and the image without what it covers where the UNet reads that.
    mask: Option<(Tensor, Option<Latents>)>,
}

/// One image on its way.
pub struct Drawing {
    denoising: Denoising,
    stage: usize,
    noise: Box<dyn Noise>,
    calls: usize,
}

impl Nets {
    /// `vocabulary` is OpenAI's file, for checkpoints that come without tokenizers.
    pub fn open(opened: &Opened, load: Load, vocabulary: Option<&[u8]>) -> Result<Self, PredictError> {
        const FILE: &str = "scheduler/scheduler_config.json";
        let wrong =
            |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}/{FILE}: {why}", opened.path().display()));
        let text = opened.file(FILE)?.ok_or_else(|| wrong(&"is missing"))?;
        let text = String::from_utf8(text).map_err(|error| wrong(&error))?;
        let scheduler = Config::parse(&text).map_err(|why| wrong(&why))?;
        Ok(Self { texts: Texts::open(opened, load, vocabulary)?, unet: opened.unet(load)?, scheduler })
    }

    /// `[batch, ids]`: the sizes that the image is said to have, its crop, and the size to draw or a refiner's score.
    fn time_ids(&self, plan: &Plan, pooled: usize, batch: usize, device: &Device) -> candle_core::Result<Tensor> {
        let (height, width) = (plan.height as f32, plan.width as f32);
        let row = |score: f32| match self.unet.config().time_ids(pooled) {
            Some(REFINER_IDS) => vec![height, width, 0.0, 0.0, score],
            _ => vec![height, width, 0.0, 0.0, height, width],
        };
        let [good, bad] = AESTHETIC_SCORES;
        let rows = if batch == 2 { [row(bad), row(good)].concat() } else { row(good) };
        Tensor::from_vec(rows.clone(), (batch, rows.len() / batch), device)
    }
}

impl Generator {
    /// Reads texts and image; everything that can be refused is refused here, before the first step.
    pub fn prepare(&self, plan: &Plan) -> Result<Prepared, PredictError> {
        let factor = self.vae.config().factor();
        if !plan.height.is_multiple_of(factor) || !plan.width.is_multiple_of(factor) || plan.height * plan.width == 0 {
            return Err(PredictError::FixInput(format!(
                "width and height are {} and {}; multiples of {factor} can be drawn",
                plan.width, plan.height
            )));
        }
        for (name, picture, channels) in [("image", &plan.image, 3), ("mask", &plan.mask, 1)] {
            let wanted = [1, plan.height, plan.width, channels];
            if let Some(picture) = picture.as_ref().filter(|picture| picture.dims() != wanted) {
                return Err(PredictError::FixInput(format!("{name} is {:?}; {wanted:?} is drawn", picture.dims())));
            }
        }
        let start = match plan.image {
            None => Start::Noise,
            Some(_) => Start::Strength(plan.strength),
        };
        let base = |end| self.schedule(&self.base, plan, plan.steps, start, end);
        let mut schedules = match plan.refine {
            Refine::Ensemble(share) => vec![(base(Some(share)), false)],
            _ => vec![(base(None), false)],
        };
        if let (Some(refiner), true) = (&self.refiner, plan.refine != Refine::No) {
            let (steps, start) = match plan.refine {
                Refine::Image(steps) => (steps, Start::Strength(REFINE_STRENGTH)),
                Refine::Ensemble(share) => (plan.steps, Start::Fraction(share)),
                Refine::No => (plan.steps, Start::Noise),
            };
            schedules.push((self.schedule(refiner, plan, steps, start, None), true));
        } else if plan.refine != Refine::No {
            return Err(PredictError::FixInput("refine: this deployment has no refiner".into()));
        }
        takes(self.base.unet.config(), self.vae.config(), plan.image.is_some() && plan.mask.is_some())?;
        let channels = self.vae.config().latent_channels;
        let mut prepared = Prepared {
            stages: Vec::new(),
            source: None,
            latents: [1, plan.height / factor, plan.width / factor, channels],
            prompt: self.base.texts.read(&plan.prompt)?,
            negative: None,
            time_ids: Tensor::zeros((1, 1), candle_core::DType::F32, &self.device).map_err(device_error)?,
        };
        if plan.guidance > 1.0 {
            prepared.negative = Some(self.base.texts.read_negative(plan.negative.as_deref(), &prepared.prompt)?);
        }
        for (schedule, refiner) in schedules {
            let stage = self.stage(plan, schedule, refiner, &mut prepared)?;
            prepared.stages.push(stage);
        }
        prepared.source = self.source(plan, &prepared).map_err(device_error)?;
        Ok(prepared)
    }

    fn schedule(&self, nets: &Nets, plan: &Plan, steps: usize, start: Start, end: Option<f64>) -> Schedule {
        Schedule { name: plan.scheduler.clone(), config: nets.scheduler.clone(), steps, start, end }
    }

    fn nets(&self, refiner: bool) -> &Nets {
        match (&self.refiner, refiner) {
            (Some(nets), true) => nets,
            _ => &self.base,
        }
    }

    fn stage(
        &self,
        plan: &Plan,
        schedule: Schedule,
        refiner: bool,
        prepared: &mut Prepared,
    ) -> Result<Stage, PredictError> {
        let (scheduler, calls) = schedule.build()?;
        let nets = self.nets(refiner);
        let (mut own_prompt, mut own_negative) = (None, None);
        if refiner {
            let read = nets.texts.read(&plan.prompt)?;
            if plan.guidance > 1.0 {
                own_negative = Some(nets.texts.read_negative(plan.negative.as_deref(), &read)?);
            }
            own_prompt = Some(read);
        }
        let prompt = own_prompt.as_ref().unwrap_or(&prepared.prompt);
        let negative = own_negative.as_ref().or(prepared.negative.as_ref());
        let told = || -> candle_core::Result<(Told, Tensor)> {
            let rows = |of: fn(&Read) -> &Tensor| match negative {
                Some(negative) => Tensor::cat(&[of(negative), of(prompt)], 0),
                None => Ok(of(prompt).clone()),
            };
            let (embeds, pooled) = (rows(|read| &read.embeds)?, rows(|read| &read.pooled)?);
            let (batch, features) = pooled.dims2()?;
            let ids = nets.time_ids(plan, features, batch, &self.device)?;
            let times = nets.unet.times(&scheduler.timesteps()[calls.clone()], &pooled, &ids)?;
            let context = nets.unet.context(&embeds)?;
            let guidance = negative.map(|_| plan.guidance);
            Ok((Told { context, times, guidance }, ids.narrow(0, batch - 1, 1)?))
        };
        let (told, ids) = told().map_err(device_error)?;
        if !refiner {
            prepared.time_ids = ids;
        }
        Ok(Stage { schedule, told: Arc::new(told), refiner })
    }

    fn source(&self, plan: &Plan, prepared: &Prepared) -> candle_core::Result<Option<Source>> {
        let Some(image) = &plan.image else { return Ok(None) };
        let latents = self.vae.encode(image)?;
        let Some(mask) = &plan.mask else { return Ok(Some(Source { latents, mask: None })) };
        // The nearest pixel of each latent one is its first.
        let [_, height, width, channels] = prepared.latents;
        let covered = mask.ge(0.5)?.to_dtype(candle_core::DType::F32)?;
        let factor = self.vae.config().factor();
        let first = |size: usize| -> candle_core::Result<Tensor> {
            Tensor::from_vec((0..size).map(|at| (at * factor) as u32).collect(), size, &self.device)
        };
        let small = covered.index_select(&first(height)?, 1)?.index_select(&first(width)?, 2)?;
        let masked = match self.base.unet.config().in_channels == channels {
            true => None,
            false => Some(self.vae.encode(&image.broadcast_mul(&(1.0 - &covered)?)?)?),
        };
        Ok(Some(Source { latents, mask: Some((small, masked)) }))
    }

    /// An image of a plan, at its start.
    pub fn begin(&self, prepared: &Prepared, mut noise: Box<dyn Noise>) -> Result<Drawing, PredictError> {
        let stage = &prepared.stages[0];
        let (scheduler, calls) = stage.schedule.build()?;
        let (latents, painted) =
            self.start(prepared, stage, &*scheduler, calls.start, &mut *noise).map_err(device_error)?;
        let denoising = Denoising::new(scheduler, calls, stage.told.clone(), latents, painted);
        Ok(Drawing { denoising, stage: 0, noise, calls: 0 })
    }

    fn start(
        &self,
        prepared: &Prepared,
        stage: &Stage,
        scheduler: &dyn Scheduler,
        first: usize,
        noise: &mut dyn Noise,
    ) -> candle_core::Result<(Tensor, Option<Painted>)> {
        let shape = &prepared.latents;
        let unit = noise.draw(Use::Start, shape, &self.device)?;
        let Some(source) = &prepared.source else {
            return Ok((unit.affine(scheduler.init_noise_sigma(), 0.0)?, None));
        };
        let mut sample = |what, latents: &Latents| -> candle_core::Result<Tensor> {
            let drawn = noise.draw(what, shape, &self.device)?;
            (&latents.mean + (&latents.deviation * drawn)?)?.affine(self.vae.config().scaling_factor, 0.0)
        };
        let original = sample(Use::Encoded, &source.latents)?;
        // Painting over all of an image begins as drawing a new one does.
        let whole = source.mask.is_some() && stage.schedule.start == Start::Strength(1.0);
        let latents = match whole {
            true => unit.affine(scheduler.init_noise_sigma(), 0.0)?,
            false => scheduler.add_noise(&original, &unit, first)?,
        };
        let painted = match &source.mask {
            None => None,
            Some((mask, masked)) => {
                let masked = masked.as_ref().map(|masked| sample(Use::EncodedMasked, masked)).transpose()?;
                Some(Painted { mask: mask.clone(), original, noise: unit, masked })
            }
        };
        Ok((latents, painted))
    }

    /// One call of a net; false once the latents are done.
    pub fn step(&self, prepared: &Prepared, drawing: &mut Drawing) -> Result<bool, PredictError> {
        let stage = &prepared.stages[drawing.stage];
        let unet = &self.nets(stage.refiner).unet;
        if drawing.denoising.step(unet, &mut *drawing.noise, drawing.calls)? {
            drawing.calls += 1;
            return Ok(true);
        }
        let Some(next) = prepared.stages.get(drawing.stage + 1) else { return Ok(false) };
        let (scheduler, calls) = next.schedule.build()?;
        let mut latents = drawing.denoising.latents().clone();
        if matches!(next.schedule.start, Start::Strength(_)) {
            let unit = drawing.noise.draw(Use::Refined, &prepared.latents, &self.device).map_err(device_error)?;
            latents = scheduler.add_noise(&latents, &unit, calls.start).map_err(device_error)?;
        }
        drawing.denoising = Denoising::new(scheduler, calls, next.told.clone(), latents, None);
        drawing.stage += 1;
        self.step(prepared, drawing)
    }

    /// Latents to pixels, `[1, height, width, 3]`, which may leave -1 to 1.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor, PredictError> {
        let scaled = mix(&[(1.0 / self.vae.config().scaling_factor, latents)]);
        scaled.and_then(|latents| self.vae.decode(&latents)).map_err(device_error)
    }
}

/// Refuses what a UNet does not draw: one that reads a mask and what it leaves beside the latents does nothing else.
pub fn takes(unet: &UnetConfig, vae: &VaeConfig, painting: bool) -> Result<(), PredictError> {
    let (inputs, channels) = (unet.in_channels, vae.latent_channels);
    match inputs == channels || (painting && inputs == 2 * channels + 1) {
        true => Ok(()),
        false => Err(PredictError::FixInput(format!(
            "this UNet reads {inputs} channels: it paints over an image, so image and mask are needed"
        ))),
    }
}

impl Prepared {
    /// Calls of the nets that an image takes; the base's and then the refiner's.
    pub fn calls(&self) -> usize {
        self.stages.iter().map(|stage| stage.told.times.len()).sum()
    }

    /// The base's scheduler, before its first step.
    pub fn scheduler(&self) -> Result<Box<dyn Scheduler>, PredictError> {
        self.stages[0].schedule.build().map(|(scheduler, _)| scheduler)
    }
}

impl Drawing {
    /// Calls of the nets so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// `[1, height, width, channels]`, as far as they are.
    pub fn latents(&self) -> &Tensor {
        self.denoising.latents()
    }
}

pub(super) fn device_error(error: candle_core::Error) -> PredictError {
    runner::device::fault(&error)
}
