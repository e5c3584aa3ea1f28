//! PNDM, diffusers' PNDMScheduler ("Pseudo Numerical Methods for Diffusion Models on Manifolds", Liu et al. 2022): linear
//! multistep, after a start of Runge-Kutta steps unless `skip_prk_steps`, which SDXL's configuration says.
//!
//! The method counts its own calls from the first one, wherever in the timesteps that is: so does the reference.

use candle_core::{Result, Tensor};
use prediction::PredictError;

use super::ddim::{Products, whole_timesteps};
use super::{Config, Predicts, Scheduler, mix};

/// Earlier outputs that a step looks at, its own included; steps that Runge-Kutta takes.
const ORDER: usize = 4;

pub struct Pndm {
    timesteps: Vec<f32>,
    /// How many of them, from the first, are Runge-Kutta's: four a step.
    runge_kutta: usize,
    products: Products,
    /// Timesteps of the training from one step to the next.
    stride: i64,
    predicts: Predicts,
    calls: usize,
    /// Outputs of the net, the latest last.
    outputs: Vec<Tensor>,
    /// The sample that a step of several calls began with.
    start: Option<Tensor>,
    /// What the calls of a Runge-Kutta step add up to.
    sum: Option<Tensor>,
}

impl Pndm {
    pub fn new(config: &Config, steps: usize) -> std::result::Result<Self, PredictError> {
        let all = whole_timesteps(config, steps)?;
        let stride = config.train_steps() / steps;
        let (runge_kutta, timesteps) = match config.skip_prk_steps {
            Some(true) => {
                // The second is asked at twice; the only one once.
                let second = all.get(1).copied();
                (0, all[..all.len().min(2)].iter().copied().chain(second).chain(all.iter().skip(2).copied()).collect())
            }
            _ => {
                if steps < ORDER {
                    return Err(PredictError::FixInput(format!(
                        "num_inference_steps is {steps}; PNDM with Runge-Kutta steps takes at least {ORDER}"
                    )));
                }
                let half = (stride / 2) as f32;
                // Ascending: each of the four highest and what lies half a step above it.
                let pairs: Vec<f32> = all[..ORDER].iter().rev().flat_map(|&t| [t, t + half]).collect();
                let twice: Vec<f32> = pairs[..pairs.len() - 1].iter().flat_map(|&t| [t, t]).collect();
                let mut first = twice[1..twice.len() - 1].to_vec();
                first.reverse();
                (first.len(), [first, all[ORDER - 1..].to_vec()].concat())
            }
        };
        Ok(Self {
            timesteps,
            runge_kutta,
            products: Products::new(config, false, false),
            stride: stride as i64,
            predicts: config.predicts(),
            calls: 0,
            outputs: Vec::new(),
            start: None,
            sum: None,
        })
    }

    fn runge_kutta(&mut self, timestep: i64, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let towards = timestep - if self.calls % 2 == 1 { 0 } else { self.stride / 2 };
        let from = self.timesteps[self.calls / 4 * 4] as i64;
        let call = self.calls % 4;
        if call == 0 {
            self.outputs.push(output.clone());
            self.start = Some(sample.clone());
        }
        let weight = if [0, 3].contains(&call) { 1.0 / 6.0 } else { 1.0 / 3.0 };
        let sum = match self.sum.take() {
            None => mix(&[(weight, output)])?,
            Some(sum) => mix(&[(1.0, &sum), (weight, output)])?,
        };
        let start = self.start.clone().unwrap_or_else(|| sample.clone());
        if call == 3 {
            return self.transfer(from, towards, &sum, &start);
        }
        self.sum = Some(sum);
        self.transfer(from, towards, output, &start)
    }

    fn multistep(&mut self, timestep: i64, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let (mut from, mut towards) = (timestep, timestep - self.stride);
        if self.calls == 1 {
            // The first step again, now that its end is known.
            (from, towards) = (timestep + self.stride, timestep);
            if let (Some(start), [first]) = (self.start.take(), self.outputs.as_slice()) {
                return self.transfer(from, towards, &mix(&[(0.5, output), (0.5, first)])?, &start);
            }
        }
        let older = self.outputs.len().saturating_sub(ORDER - 1);
        self.outputs.drain(..older);
        self.outputs.push(output.clone());
        let all = &self.outputs;
        let effective = match all.len() {
            1 => {
                self.start = Some(sample.clone());
                output.clone()
            }
            2 => mix(&[(3.0 / 2.0, &all[1]), (-1.0 / 2.0, &all[0])])?,
            3 => mix(&[(23.0 / 12.0, &all[2]), (-16.0 / 12.0, &all[1]), (5.0 / 12.0, &all[0])])?,
            _ => {
                let weights = [-9.0 / 24.0, 37.0 / 24.0, -59.0 / 24.0, 55.0 / 24.0];
                mix(&weights.into_iter().zip(all).collect::<Vec<_>>())?
            }
        };
        self.transfer(from, towards, &effective, sample)
    }

    /// Equation 9 of the paper, from a timestep of the training towards an earlier one.
    fn transfer(&self, from: i64, towards: i64, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let (now, next) = (self.products.at(from), self.products.at(towards));
        let (of_sample, of_output) = match self.predicts {
            Predicts::Epsilon => (0.0, 1.0),
            Predicts::VPrediction => ((1.0 - now).sqrt(), now.sqrt()),
        };
        let denominator = now * (1.0 - next).sqrt() + (now * (1.0 - now) * next).sqrt();
        let gain = -(next - now) / denominator;
        mix(&[((next / now).sqrt() + gain * of_sample, sample), (gain * of_output, output)])
    }
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn noise_levels(&self, index: usize) -> (f64, f64) {
        self.products.levels(self.timesteps[index])
    }

    fn step(&mut self, index: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let timestep = self.timesteps[index] as i64;
        let next = match self.calls < self.runge_kutta {
            true => self.runge_kutta(timestep, output, sample),
            false => self.multistep(timestep, output, sample),
        };
        self.calls += 1;
        next
    }
}
