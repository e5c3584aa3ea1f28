//! The seven schedulers that the hosted schema names, each equal to diffusers' of the same configuration. A scheduler says at
//! which timesteps the net is asked and how its answer changes the sample. Refuses to know the net, guidance and where noise
//! comes from.
//!
//! Host tables are f32 as the reference's, coefficients f64, tensors f32 of any shape: every step is elementwise.

mod config;
mod ddim;
mod dpm_multistep;
mod euler;
mod euler_ancestral;
mod heun;
mod pndm;
mod tables;

use candle_core::{Result, Tensor};
use prediction::PredictError;

pub use config::{Config, Predicts};

/// Betas at the first and last timestep of the training that diffusers' classes take where the file names none.
const DEFAULT_BETAS: (f64, f64) = (0.0001, 0.02);

type Build = fn(&Config, usize) -> std::result::Result<Box<dyn Scheduler>, PredictError>;

/// In the order of the hosted schema. KarrasDPM is what cog-sdxl calls DPMSolverMultistep with `use_karras_sigmas`.
const ALL: [(&str, Build); 7] = [
    ("DDIM", |config, steps| Ok(Box::new(ddim::Ddim::new(config, steps)?))),
    ("DPMSolverMultistep", |config, steps| {
        let karras = config.use_karras_sigmas == Some(true);
        Ok(Box::new(dpm_multistep::DpmMultistep::new(config, karras, steps)))
    }),
    ("HeunDiscrete", |config, steps| Ok(Box::new(heun::Heun::new(config, steps)))),
    ("KarrasDPM", |config, steps| Ok(Box::new(dpm_multistep::DpmMultistep::new(config, true, steps)))),
    ("K_EULER_ANCESTRAL", |config, steps| Ok(Box::new(euler_ancestral::EulerAncestral::new(config, steps)))),
    ("K_EULER", |config, steps| Ok(Box::new(euler::Euler::new(config, steps)))),
    ("PNDM", |config, steps| Ok(Box::new(pndm::Pndm::new(config, steps)?))),
];

/// The names that `new` takes.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name)
}

/// The scheduler of this name for a run of so many steps.
pub fn new(name: &str, config: &Config, steps: usize) -> std::result::Result<Box<dyn Scheduler>, PredictError> {
    let Some((_, build)) = ALL.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = names().collect();
        return Err(PredictError::FixInput(format!("scheduler is {name:?}; one of {} is known", known.join(", "))));
    };
    if steps == 0 || steps > config.train_steps() {
        return Err(too_many(steps, config.train_steps()));
    }
    build(config, steps)
}

/// Steps of a run that the training's timesteps do not give.
fn too_many(steps: usize, most: usize) -> PredictError {
    PredictError::FixInput(format!("num_inference_steps is {steps}; 1 to {most} are possible with this scheduler"))
}

pub trait Scheduler: Send {
    /// Where the net is asked, in this order; one call of `step` each. An index below is one into this list.
    fn timesteps(&self) -> &[f32];

    /// The noise level at each timestep and behind the last, where the scheduler thinks in levels (the original's is 1).
    fn sigmas(&self) -> Option<&[f32]> {
        None
    }

    /// Calls per step that was asked for; the timesteps of one step must not be torn apart.
    fn order(&self) -> usize {
        1
    }

    /// What unit noise is multiplied with to begin from nothing but noise.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// What the sample is multiplied with on its way into the net.
    fn input_scale(&self, _index: usize) -> f64 {
        1.0
    }

    /// Whether `step` wants unit normal noise.
    fn draws_noise(&self) -> bool {
        false
    }

    /// How much of the original and of unit noise a sample has that is about to be stepped at this index.
    fn noise_levels(&self, index: usize) -> (f64, f64);

    /// From the net's answer at this timestep to the next sample.
    fn step(&mut self, index: usize, output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<Tensor>;

    /// The original as a run would have it that is about to step at this index.
    fn add_noise(&self, original: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        let (original_level, noise_level) = self.noise_levels(index);
        mix(&[(original_level, original), (noise_level, noise)])
    }
}

/// The sum of tensors of one shape, each times its coefficient.
pub fn mix(parts: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (coefficient, tensor) in parts.iter().filter(|(coefficient, _)| *coefficient != 0.0) {
        let part = if *coefficient == 1.0 { (*tensor).clone() } else { tensor.affine(*coefficient, 0.0)? };
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    match (sum, parts.first()) {
        (Some(sum), _) => Ok(sum),
        (None, Some((_, tensor))) => tensor.zeros_like(),
        (None, None) => candle_core::bail!("a sum of no tensors"),
    }
}

/// The predicted original as `sample_part * sample + output_part * output`, of a sample that is `alpha` times the original and
/// `sigma` times noise with `alpha^2 + sigma^2 = 1`.
fn original_of(predicts: Predicts, alpha: f64, sigma: f64) -> (f64, f64) {
    match predicts {
        Predicts::Epsilon => (1.0 / alpha, -sigma / alpha),
        Predicts::VPrediction => (alpha, -sigma),
    }
}

/// The same where the sample is the original and `sigma` times noise, and the net was shown it divided by
/// `sqrt(sigma^2 + 1)`.
fn original_at(predicts: Predicts, sigma: f64) -> (f64, f64) {
    let variance = sigma * sigma + 1.0;
    match predicts {
        Predicts::Epsilon => (1.0, -sigma),
        Predicts::VPrediction => (1.0 / variance, -sigma / variance.sqrt()),
    }
}

/// The Euler derivative `(sample - original) / sigma` as coefficients of the sample and of the output.
fn derivative_at(predicts: Predicts, sigma: f64) -> (f64, f64) {
    let (sample, output) = original_at(predicts, sigma);
    ((1.0 - sample) / sigma, -output / sigma)
}

/// The samplers of k-diffusion: where the steps lie and the noise level at each, then the last one's.
struct Levels {
    timesteps: Vec<f32>,
    /// One more than there are timesteps.
    sigmas: Vec<f32>,
    spacing: config::Spacing,
}

/// Which keys of the configuration a sampler's class knows, and its own betas.
struct Knows {
    default_betas: (f64, f64),
    zero_snr: bool,
    karras: bool,
    final_sigma: bool,
}

impl Levels {
    fn new(config: &Config, steps: usize, knows: Knows) -> Self {
        let spacing = config.timestep_spacing.unwrap_or(config::Spacing::Linspace);
        let alphas =
            tables::alphas_cumprod(config, knows.default_betas, knows.zero_snr.then_some(tables::LEAST_PRODUCT));
        let table = tables::sigmas(&alphas);
        let mut timesteps: Vec<f32> =
            tables::timesteps(config, spacing, steps, false).iter().map(|&t| t as f32).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| tables::interpolate(&table, f64::from(t))).collect();
        if knows.karras && config.use_karras_sigmas == Some(true) {
            sigmas = tables::karras(config, sigmas[sigmas.len() - 1], sigmas[0], steps);
            timesteps = sigmas.iter().map(|&sigma| tables::timestep_of(sigma, &table) as f32).collect();
        }
        let behind = if knows.final_sigma { tables::last_sigma(config, &alphas) } else { 0.0 };
        let sigmas = sigmas.iter().map(|&sigma| sigma as f32).chain([behind]).collect();
        Self { timesteps, sigmas, spacing }
    }

    fn sigma(&self, index: usize) -> f64 {
        f64::from(self.sigmas[index])
    }

    fn init_noise_sigma(&self) -> f64 {
        let most = self.sigmas.iter().copied().fold(0f32, f32::max);
        f64::from(match self.spacing {
            config::Spacing::Leading => (most * most + 1.0).sqrt(),
            config::Spacing::Linspace | config::Spacing::Trailing => most,
        })
    }

    fn input_scale(&self, index: usize) -> f64 {
        1.0 / (self.sigma(index).powi(2) + 1.0).sqrt()
    }
}
