//! DPMSolverMultistep, diffusers' DPMSolverMultistepScheduler: DPM-Solver++ of first and second order ("DPM-Solver++: Fast
//! Solver for Guided Sampling of Diffusion Probabilistic Models", Lu et al. 2022), midpoint; and KarrasDPM, the same on the
//! noise levels of Karras et al. 2022.

use candle_core::{Result, Tensor};

use super::config::{BetaSchedule, FinalSigma, Spacing};
use super::{Config, DEFAULT_BETAS, Predicts, Scheduler, mix, original_of, tables};

/// Below so many steps the last one is of first order.
const FEW_STEPS: usize = 15;

pub struct DpmMultistep {
    timesteps: Vec<f32>,
    sigmas: Vec<f32>,
    predicts: Predicts,
    order: usize,
    first_order_at_end: bool,
    /// The original as predicted a step ago.
    before: Option<Tensor>,
}

impl DpmMultistep {
    pub fn new(config: &Config, karras: bool, steps: usize) -> Self {
        let train = config.train_steps();
        let alphas = tables::alphas_cumprod(config, DEFAULT_BETAS, Some(tables::LEAST_PRODUCT));
        let table = tables::sigmas(&alphas);
        let (timesteps, sigmas): (Vec<f64>, Vec<f64>) = if karras {
            let sigmas = tables::karras(config, f64::from(table[0]), f64::from(table[table.len() - 1]), steps);
            let round = config.beta_schedule != Some(BetaSchedule::SquaredCosine);
            let place = |&sigma: &f64| {
                let place = tables::timestep_of(sigma, &table);
                if round { place.round_ties_even() } else { place.trunc() }
            };
            (sigmas.iter().map(place).collect(), sigmas)
        } else {
            let timesteps = places(config, train, steps);
            let sigmas = timesteps.iter().map(|&t| tables::interpolate(&table, t)).collect();
            (timesteps, sigmas)
        };
        let behind = tables::last_sigma(config, &alphas);
        let first_order_at_end = config.euler_at_final == Some(true)
            || (config.lower_order_final != Some(false) && timesteps.len() < FEW_STEPS)
            || config.final_sigmas_type != Some(FinalSigma::SigmaMin);
        Self {
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            sigmas: sigmas.iter().map(|&sigma| sigma as f32).chain([behind]).collect(),
            predicts: config.predicts(),
            order: config.solver_order.unwrap_or(2),
            first_order_at_end,
            before: None,
        }
    }

    /// Levels of the original and of noise in a sample, and the logarithm of their ratio.
    fn at(&self, index: usize) -> (f64, f64, f64) {
        let sigma = f64::from(self.sigmas[index]);
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        (alpha, sigma * alpha, -sigma.ln())
    }
}

/// This class counts one step more than was asked for and leaves out the last.
fn places(config: &Config, train: usize, steps: usize) -> Vec<f64> {
    let offset = config.steps_offset.unwrap_or(0) as f64;
    match config.timestep_spacing.unwrap_or(Spacing::Linspace) {
        Spacing::Linspace => {
            let all = tables::linspace_f64((train - 1) as f64, steps + 1);
            all.iter().skip(1).rev().map(|t| t.round_ties_even()).collect()
        }
        Spacing::Leading => {
            let stride = train / (steps + 1);
            (1..=steps).rev().map(|step| (step * stride) as f64 + offset).collect()
        }
        Spacing::Trailing => tables::trailing(train, train, steps),
    }
}

impl Scheduler for DpmMultistep {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn sigmas(&self) -> Option<&[f32]> {
        Some(&self.sigmas)
    }

    fn noise_levels(&self, index: usize) -> (f64, f64) {
        let (alpha, sigma, _) = self.at(index);
        (alpha, sigma)
    }

    fn step(&mut self, index: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let (alpha, sigma, lambda) = self.at(index);
        let (of_sample, of_output) = original_of(self.predicts, alpha, sigma);
        let original = mix(&[(of_sample, sample), (of_output, output)])?;
        let (alpha_next, sigma_next, lambda_next) = self.at(index + 1);
        let h = lambda_next - lambda;
        // alpha * (1 - e^-h); h is infinite where no noise is left.
        let gain = -alpha_next * (-h).exp_m1();
        let last = index + 1 == self.timesteps.len();
        let before = self.before.replace(original.clone());
        match before.filter(|_| self.order > 1 && !(last && self.first_order_at_end)) {
            None => mix(&[(sigma_next / sigma, sample), (gain, &original)]),
            Some(before) => {
                let (.., lambda_before) = self.at(index - 1);
                let half = 0.5 * gain * h / (lambda - lambda_before);
                mix(&[(sigma_next / sigma, sample), (gain + half, &original), (-half, &before)])
            }
        }
    }
}
