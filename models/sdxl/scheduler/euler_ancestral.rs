//! K_EULER_ANCESTRAL, diffusers' EulerAncestralDiscreteScheduler: each step goes below the next noise level and comes back
//! to it with fresh noise.

use candle_core::{Result, Tensor};

use super::{Config, DEFAULT_BETAS, Knows, Levels, Predicts, Scheduler, derivative_at, mix};

const KNOWS: Knows = Knows { default_betas: DEFAULT_BETAS, zero_snr: true, karras: false, final_sigma: false };

pub struct EulerAncestral {
    levels: Levels,
    predicts: Predicts,
}

impl EulerAncestral {
    pub fn new(config: &Config, steps: usize) -> Self {
        Self { levels: Levels::new(config, steps, KNOWS), predicts: config.predicts() }
    }
}

impl Scheduler for EulerAncestral {
    fn timesteps(&self) -> &[f32] {
        &self.levels.timesteps
    }

    fn sigmas(&self) -> Option<&[f32]> {
        Some(&self.levels.sigmas)
    }

    fn init_noise_sigma(&self) -> f64 {
        self.levels.init_noise_sigma()
    }

    fn input_scale(&self, index: usize) -> f64 {
        self.levels.input_scale(index)
    }

    fn draws_noise(&self) -> bool {
        true
    }

    fn noise_levels(&self, index: usize) -> (f64, f64) {
        (1.0, self.levels.sigma(index))
    }

    fn step(&mut self, index: usize, output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (from, to) = (self.levels.sigma(index), self.levels.sigma(index + 1));
        let up = (to.powi(2) * (from.powi(2) - to.powi(2)) / from.powi(2)).sqrt();
        let down = (to.powi(2) - up.powi(2)).sqrt();
        let (of_sample, of_output) = derivative_at(self.predicts, from);
        let dt = down - from;
        let Some(noise) = noise else { candle_core::bail!("an ancestral step without noise") };
        mix(&[(1.0 + of_sample * dt, sample), (of_output * dt, output), (up, noise)])
    }
}
