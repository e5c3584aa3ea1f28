//! The denoising loop of one image, a call of the net at a time. Refuses to know prompts and where noise comes from.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use prediction::PredictError;

use super::device_error;
use crate::sdxl::noise::{Noise, Use};
use crate::sdxl::scheduler::Scheduler;
use crate::sdxl::unet::{Context, Unet};

/// What the net is told besides the latents, the same for every image of a prediction. With guidance its batch is two: what
/// to lead away from, then what to lead to.
pub struct Told {
    pub context: Context,
    /// One per call.
    pub times: Vec<Tensor>,
    /// How far away; none without guidance.
    pub guidance: Option<f64>,
}

/// What painting over a part of an image needs.
#[derive(Clone)]
pub struct Painted {
    /// `[1, height, width, 1]`, latent pixels: 1 where it is painted over.
    pub mask: Tensor,
    /// The whole image's latents, scaled.
    pub original: Tensor,
    /// What the run's latents began with.
    pub noise: Tensor,
    /// The latents of the image without what is painted over, scaled: what a UNet of 9 channels reads.
    pub masked: Option<Tensor>,
}

pub struct Denoising {
    scheduler: Box<dyn Scheduler>,
    told: Arc<Told>,
    painted: Option<Painted>,
    latents: Tensor,
    first: usize,
    next: usize,
    end: usize,
}

impl Denoising {
    /// `latents` are `[1, height, width, channels]`, f32, as noisy as the call at `calls.start` takes them.
    pub fn new(
        scheduler: Box<dyn Scheduler>,
        calls: std::ops::Range<usize>,
        told: Arc<Told>,
        latents: Tensor,
        painted: Option<Painted>,
    ) -> Self {
        Self { scheduler, told, painted, latents, first: calls.start, next: calls.start, end: calls.end }
    }

    pub fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// One call of the net; false once there was none left. `number` is this call's among all of the image's, from 0: noise
    /// is drawn by it, and errors name it.
    pub fn step(
        &mut self,
        unet: &Unet,
        noise: &mut dyn Noise,
        number: usize,
    ) -> std::result::Result<bool, PredictError> {
        if self.next == self.end {
            return Ok(false);
        }
        let latents = self.call(unet, noise, number).map_err(device_error)?;
        // A number comes back from the device here: a prediction that is lost must not run to its end, and what counts steps
        // waits for them anyway.
        let size = latents.abs().and_then(|all| all.sum_all()?.to_scalar::<f32>()).map_err(device_error)?;
        if !size.is_finite() {
            let timestep = self.scheduler.timesteps()[self.next];
            // This prediction's own: the others of the device go on.
            return Err(PredictError::FixInput(format!(
                "step {} (timestep {timestep}) gave latents that are no numbers",
                number + 1
            )));
        }
        self.latents = latents;
        self.next += 1;
        Ok(true)
    }

    fn call(&mut self, unet: &Unet, noise: &mut dyn Noise, number: usize) -> Result<Tensor> {
        let (index, told) = (self.next, self.told.clone());
        let mut input = self.latents.affine(self.scheduler.input_scale(index), 0.0)?;
        if let Some(Painted { mask, masked: Some(masked), .. }) = &self.painted {
            input = Tensor::cat(&[&input, mask, masked], 3)?;
        }
        if told.guidance.is_some() {
            input = Tensor::cat(&[&input, &input], 0)?;
        }
        let output = unet.forward(&input, &told.times[index - self.first], &told.context)?.to_dtype(DType::F32)?;
        let output = match told.guidance {
            None => output,
            Some(guidance) => {
                let (from, to) = (output.narrow(0, 0, 1)?, output.narrow(0, 1, 1)?);
                (&from + ((to - &from)? * guidance)?)?
            }
        };
        let drawn = match self.scheduler.draws_noise() {
            true => Some(noise.draw(Use::Step(number), self.latents.dims(), self.latents.device())?),
            false => None,
        };
        let latents = self.scheduler.step(index, &output, &self.latents, drawn.as_ref())?;
        match &self.painted {
            Some(Painted { mask, original, noise, masked: None }) => {
                let around = match index + 1 == self.end {
                    true => original.clone(),
                    false => self.scheduler.add_noise(original, noise, index + 1)?,
                };
                latents.broadcast_mul(mask)? + around.broadcast_mul(&(1.0 - mask)?)?
            }
            _ => Ok(latents),
        }
    }
}
