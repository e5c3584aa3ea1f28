//! DDIM, diffusers' DDIMScheduler with eta 0: equation 12 of "Denoising Diffusion Implicit Models" (Song et al. 2020).

use candle_core::{Result, Tensor};
use prediction::PredictError;

use super::config::Spacing;
use super::{Config, DEFAULT_BETAS, Predicts, Scheduler, mix, original_of, tables, too_many};

pub struct Ddim {
    timesteps: Vec<f32>,
    products: Products,
    /// Timesteps of the training from one step to the next.
    stride: usize,
    predicts: Predicts,
    /// The predicted original is held within plus and minus this.
    clip: Option<f64>,
}

/// Products of alphas by timestep of the training; f32 as the reference has them, read as f64.
pub struct Products {
    products: Vec<f32>,
    /// Before the first timestep of the training.
    before: f32,
}

impl Products {
    /// `final_is_one`: the class's own `set_alpha_to_one`; `rescales`: it knows `rescale_betas_zero_snr`.
    pub fn new(config: &Config, final_is_one: bool, rescales: bool) -> Self {
        let products = tables::alphas_cumprod(config, DEFAULT_BETAS, rescales.then_some(0.0));
        let before = if config.set_alpha_to_one.unwrap_or(final_is_one) { 1.0 } else { products[0] };
        Self { products, before }
    }

    pub fn at(&self, timestep: i64) -> f64 {
        usize::try_from(timestep).map_or(f64::from(self.before), |timestep| f64::from(self.products[timestep]))
    }

    /// Levels of the original and of noise.
    pub fn levels(&self, timestep: f32) -> (f64, f64) {
        let product = self.at(timestep as i64);
        (product.sqrt(), (1.0 - product).sqrt())
    }
}

/// The timesteps of these schedulers are indices of the training's, descending.
pub fn whole_timesteps(config: &Config, steps: usize) -> std::result::Result<Vec<f32>, PredictError> {
    let spacing = config.timestep_spacing.unwrap_or(Spacing::Leading);
    let all: Vec<f32> = tables::timesteps(config, spacing, steps, true).iter().map(|&t| t as f32).collect();
    match all.first() {
        // `steps_offset` pushed the first one out.
        Some(&first) if first >= config.train_steps() as f32 => Err(too_many(steps, config.train_steps() - 1)),
        _ => Ok(all),
    }
}

impl Ddim {
    pub fn new(config: &Config, steps: usize) -> std::result::Result<Self, PredictError> {
        Ok(Self {
            timesteps: whole_timesteps(config, steps)?,
            products: Products::new(config, true, true),
            stride: config.train_steps() / steps,
            predicts: config.predicts(),
            clip: config.clip_sample.unwrap_or(true).then(|| config.clip_sample_range.unwrap_or(1.0)),
        })
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn noise_levels(&self, index: usize) -> (f64, f64) {
        self.products.levels(self.timesteps[index])
    }

    fn step(&mut self, index: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let timestep = self.timesteps[index] as i64;
        let (alpha, sigma) = self.products.levels(self.timesteps[index]);
        let previous = self.products.at(timestep - self.stride as i64);
        let (of_sample, of_output) = original_of(self.predicts, alpha, sigma);
        let mut original = mix(&[(of_sample, sample), (of_output, output)])?;
        if let Some(range) = self.clip {
            original = original.clamp(-range, range)?;
        }
        // The noise in the sample.
        let (of_sample, of_output) = match self.predicts {
            Predicts::Epsilon => (0.0, 1.0),
            Predicts::VPrediction => (sigma, alpha),
        };
        let towards = (1.0 - previous).sqrt();
        mix(&[(previous.sqrt(), &original), (towards * of_sample, sample), (towards * of_output, output)])
    }
}
