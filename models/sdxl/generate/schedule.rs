//! Which calls of a scheduler a run makes: all, those from a strength on (image-to-image), or those before or behind a
//! fraction of the way (base and refiner as an ensemble of experts). The arithmetic is diffusers'. Refuses to know tensors.

use std::ops::Range;

use prediction::PredictError;

use crate::sdxl::scheduler::{self, Config, Scheduler};

/// What a run begins with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    Noise,
    /// An image with noise for this share of the steps.
    Strength(f64),
    /// What was left at this share of the way.
    Fraction(f64),
}

#[derive(Debug, Clone)]
pub struct Schedule {
    pub name: String,
    pub config: Config,
    pub steps: usize,
    pub start: Start,
    /// The share of the way after which it ends; all of it with none.
    pub end: Option<f64>,
}

impl Schedule {
    /// A scheduler that has made no step, and the indices of its timesteps that are called.
    pub fn build(&self) -> Result<(Box<dyn Scheduler>, Range<usize>), PredictError> {
        let scheduler = scheduler::new(&self.name, &self.config, self.steps)?;
        let timesteps = scheduler.timesteps();
        let train = self.config.train_steps() as f64;
        // The timestep of the training that lies at a share of the way.
        let cutoff = |share: f64| (train - share * train).round_ties_even() as f32;
        let order = scheduler.order();
        let first = match self.start {
            Start::Noise => 0,
            Start::Strength(strength) => {
                let kept = ((self.steps as f64 * strength) as usize).min(self.steps);
                ((self.steps - kept) * order).min(timesteps.len())
            }
            Start::Fraction(share) => {
                let left = timesteps.iter().filter(|&&t| t < cutoff(share)).count();
                // A step of two calls is not begun with its second.
                let torn = order == 2 && left.is_multiple_of(2);
                timesteps.len().saturating_sub(left + usize::from(torn))
            }
        };
        let last = match self.end {
            Some(share) if share > 0.0 && share < 1.0 => {
                first + timesteps[first..].iter().filter(|&&t| t >= cutoff(share)).count()
            }
            _ => timesteps.len(),
        };
        if first >= last {
            return Err(self.empty());
        }
        Ok((scheduler, first..last))
    }

    fn empty(&self) -> PredictError {
        let steps = self.steps;
        PredictError::FixInput(match (self.start, self.end) {
            (Start::Strength(strength), None) => {
                format!("prompt_strength is {strength}: of {steps} steps it leaves none")
            }
            (Start::Fraction(share), _) => {
                format!("high_noise_frac is {share}: of {steps} steps it leaves the refiner none")
            }
            (_, Some(share)) => format!("high_noise_frac is {share}: of {steps} steps it leaves the base none"),
            (Start::Noise, None) => format!("num_inference_steps is {steps}, and there is no step"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(name: &str, steps: usize, start: Start, end: Option<f64>) -> Result<(usize, Range<usize>), PredictError> {
        let config = r#"{"timestep_spacing": "leading", "steps_offset": 1, "skip_prk_steps": true}"#;
        let config = Config::parse(config).unwrap();
        let (scheduler, calls) = Schedule { name: name.into(), config, steps, start, end }.build()?;
        Ok((scheduler.timesteps().len(), calls))
    }

    #[test]
    fn base_and_refiner_share_the_steps_between_them() {
        for (name, split) in [("K_EULER", 16), ("DDIM", 16), ("PNDM", 17), ("HeunDiscrete", 31)] {
            let (all, base) = calls(name, 20, Start::Noise, Some(0.8)).unwrap();
            let (_, refiner) = calls(name, 20, Start::Fraction(0.8), None).unwrap();
            assert_eq!(base, 0..split, "{name}");
            // Heun's first half of a step at the border is made again by the refiner.
            assert_eq!(refiner, split - usize::from(name == "HeunDiscrete")..all, "{name}");
        }
    }

    #[test]
    fn strength_keeps_a_share_of_the_steps() {
        assert_eq!(calls("K_EULER", 20, Start::Strength(0.6), None).unwrap(), (20, 8..20));
        assert_eq!(calls("HeunDiscrete", 20, Start::Strength(0.6), None).unwrap(), (39, 16..39));
        assert_eq!(calls("K_EULER", 20, Start::Strength(1.0), None).unwrap(), (20, 0..20));
        assert_eq!(calls("K_EULER", 20, Start::Strength(0.6), Some(0.8)).unwrap(), (20, 8..16));
    }

    #[test]
    fn a_run_without_a_step_is_refused_with_the_reason() {
        let why = |start, end| calls("K_EULER", 20, start, end).unwrap_err().text().to_owned();
        assert_eq!(why(Start::Strength(0.04), None), "prompt_strength is 0.04: of 20 steps it leaves none");
        assert!(why(Start::Noise, Some(0.01)).contains("leaves the base none"));
        assert!(why(Start::Fraction(1.0), None).contains("leaves the refiner none"));
    }
}
