//! HeunDiscrete, diffusers' HeunDiscreteScheduler: algorithm 2 of Karras et al. 2022 with its correction, so that every step
//! but the last asks the net twice.

use candle_core::{Result, Tensor};

use super::{Config, Knows, Levels, Predicts, Scheduler, derivative_at, mix, original_at};

/// This class has betas of its own where the file names none.
const DEFAULT_BETAS: (f64, f64) = (0.00085, 0.012);

const KNOWS: Knows = Knows { default_betas: DEFAULT_BETAS, zero_snr: false, karras: true, final_sigma: false };

pub struct Heun {
    levels: Levels,
    predicts: Predicts,
    /// The predicted original is held within plus and minus this.
    clip: Option<f64>,
    /// Between the two halves of a step.
    first: Option<First>,
}

struct First {
    sample: Tensor,
    derivative: Tensor,
    dt: f64,
}

impl Heun {
    pub fn new(config: &Config, steps: usize) -> Self {
        let Levels { timesteps, sigmas, spacing } = Levels::new(config, steps, KNOWS);
        // Every level but the first and the last is visited twice.
        let twice = |all: &[f32]| all.iter().flat_map(|&value| [value, value]).collect::<Vec<_>>();
        let timesteps = [&timesteps[..1], &twice(&timesteps[1..])].concat();
        let inner = sigmas.len() - 1;
        let sigmas = [&sigmas[..1], &twice(&sigmas[1..inner]), &sigmas[inner..]].concat();
        let clip = (config.clip_sample == Some(true)).then(|| config.clip_sample_range.unwrap_or(1.0));
        Self { levels: Levels { timesteps, sigmas, spacing }, predicts: config.predicts(), clip, first: None }
    }

    /// `(sample - original) / sigma`
    fn derivative(&self, sigma: f64, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let Some(range) = self.clip else {
            let (of_sample, of_output) = derivative_at(self.predicts, sigma);
            return mix(&[(of_sample, sample), (of_output, output)]);
        };
        let (of_sample, of_output) = original_at(self.predicts, sigma);
        let original = mix(&[(of_sample, sample), (of_output, output)])?.clamp(-range, range)?;
        mix(&[(1.0 / sigma, sample), (-1.0 / sigma, &original)])
    }
}

impl Scheduler for Heun {
    fn timesteps(&self) -> &[f32] {
        &self.levels.timesteps
    }

    fn sigmas(&self) -> Option<&[f32]> {
        Some(&self.levels.sigmas)
    }

    fn order(&self) -> usize {
        2
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
        // In both halves the net was asked at the level of this index.
        let sigma = self.levels.sigma(index);
        let derivative = self.derivative(sigma, output, sample)?;
        match self.first.take() {
            None => {
                let dt = self.levels.sigma(index + 1) - sigma;
                let next = mix(&[(1.0, sample), (dt, &derivative)])?;
                self.first = Some(First { sample: sample.clone(), derivative, dt });
                Ok(next)
            }
            Some(First { sample, derivative: first, dt }) => {
                mix(&[(1.0, &sample), (dt / 2.0, &first), (dt / 2.0, &derivative)])
            }
        }
    }
}
