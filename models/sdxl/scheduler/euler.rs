//! K_EULER, diffusers' EulerDiscreteScheduler: algorithm 2 of Karras et al. 2022 without churn, so it draws no noise.

use candle_core::{Result, Tensor};

use super::{Config, DEFAULT_BETAS, Knows, Levels, Predicts, Scheduler, derivative_at, mix};

const KNOWS: Knows = Knows { default_betas: DEFAULT_BETAS, zero_snr: true, karras: true, final_sigma: true };

pub struct Euler {
    levels: Levels,
    predicts: Predicts,
}

impl Euler {
    pub fn new(config: &Config, steps: usize) -> Self {
        Self { levels: Levels::new(config, steps, KNOWS), predicts: config.predicts() }
    }
}

impl Scheduler for Euler {
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

    fn noise_levels(&self, index: usize) -> (f64, f64) {
        (1.0, self.levels.sigma(index))
    }

    fn step(&mut self, index: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let sigma = self.levels.sigma(index);
        let dt = self.levels.sigma(index + 1) - sigma;
        let (of_sample, of_output) = derivative_at(self.predicts, sigma);
        mix(&[(1.0 + of_sample * dt, sample), (of_output * dt, output)])
    }
}
