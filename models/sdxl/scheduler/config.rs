//! `scheduler/scheduler_config.json` as diffusers' `from_config` reads it: whichever scheduler wrote the file, each takes the
//! keys it knows, and a key that is absent is what *that* scheduler takes by default. Knows no arithmetic of a step.

use std::path::Path;

use prediction::PredictError;
use serde::Deserialize;

/// Keys of the seven schedulers. `None` is "the scheduler's own default".
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    pub num_train_timesteps: Option<usize>,
    pub beta_start: Option<f64>,
    pub beta_end: Option<f64>,
    pub beta_schedule: Option<BetaSchedule>,
    pub trained_betas: Option<Vec<f32>>,
    pub rescale_betas_zero_snr: Option<bool>,
    pub prediction_type: Option<Predicts>,
    pub timestep_spacing: Option<Spacing>,
    pub steps_offset: Option<i64>,
    pub use_karras_sigmas: Option<bool>,
    pub final_sigmas_type: Option<FinalSigma>,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    pub clip_sample: Option<bool>,
    pub clip_sample_range: Option<f64>,
    pub set_alpha_to_one: Option<bool>,
    pub skip_prk_steps: Option<bool>,
    pub solver_order: Option<usize>,
    pub lower_order_final: Option<bool>,
    pub euler_at_final: Option<bool>,
    // Read to be refused where they ask for what is not built.
    interpolation_type: Option<String>,
    timestep_type: Option<String>,
    algorithm_type: Option<String>,
    solver_type: Option<String>,
    variance_type: Option<String>,
    thresholding: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    use_lu_lambdas: Option<bool>,
    use_flow_sigmas: Option<bool>,
    lambda_min_clipped: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    Linear,
    ScaledLinear,
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// What the net's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Predicts {
    /// The noise in the sample.
    Epsilon,
    /// `alpha * noise - sigma * original` (Salimans and Ho 2022, section 2.4 of Imagen Video).
    VPrediction,
}

/// Table 2 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al. 2023).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    Zero,
    SigmaMin,
}

impl Config {
    pub fn read(file: &Path) -> Result<Self, PredictError> {
        let wrong = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
        Self::parse(&text).map_err(|why| wrong(&why))
    }

    /// The error says which key holds what.
    pub fn parse(text: &str) -> Result<Self, String> {
        // Python writes a number that JSON has not: `lambda_min_clipped` of DPMSolverMultistepScheduler, its default.
        let this: Self = serde_json::from_str(&text.replace("-Infinity", "null")).map_err(|error| error.to_string())?;
        let text = |key: &str, value: &Option<String>, read: &[&str]| match value.as_deref() {
            Some(value) if !read.contains(&value) => {
                Err(format!("{key} is {value:?}; {} is what is read", read.join(" or ")))
            }
            _ => Ok(()),
        };
        text("interpolation_type", &this.interpolation_type, &["linear"])?;
        text("timestep_type", &this.timestep_type, &["discrete"])?;
        // "deis" is what diffusers turns into "dpmsolver++".
        text("algorithm_type", &this.algorithm_type, &["dpmsolver++", "deis"])?;
        text("solver_type", &this.solver_type, &["midpoint", "logrho", "bh1", "bh2"])?;
        text("variance_type", &this.variance_type, &["fixed_small", "fixed_large"])?;
        let flags = [
            ("thresholding", this.thresholding),
            ("use_exponential_sigmas", this.use_exponential_sigmas),
            ("use_beta_sigmas", this.use_beta_sigmas),
            ("use_lu_lambdas", this.use_lu_lambdas),
            ("use_flow_sigmas", this.use_flow_sigmas),
        ];
        if let Some((key, _)) = flags.iter().find(|(_, value)| *value == Some(true)) {
            return Err(format!("{key} is true, which no scheduler here does"));
        }
        if let Some(value) = this.lambda_min_clipped.filter(|value| value.is_finite()) {
            return Err(format!("lambda_min_clipped is {value}, which no scheduler here does"));
        }
        if let Some(order) = this.solver_order.filter(|order| ![1, 2].contains(order)) {
            return Err(format!("solver_order is {order}; 1 or 2 is what is read"));
        }
        if let Some(betas) = this.trained_betas.as_ref().filter(|betas| betas.len() != this.train_steps()) {
            let (count, steps) = (betas.len(), this.train_steps());
            return Err(format!("trained_betas are {count}; as many as num_train_timesteps, {steps}, are needed"));
        }
        match this.train_steps() {
            2..=MAX_TRAIN_STEPS => Ok(this),
            steps => Err(format!("num_train_timesteps is {steps}; 2 to {MAX_TRAIN_STEPS} are read")),
        }
    }

    pub fn train_steps(&self) -> usize {
        self.num_train_timesteps.unwrap_or(1000)
    }

    pub fn predicts(&self) -> Predicts {
        self.prediction_type.unwrap_or(Predicts::Epsilon)
    }
}

/// Timesteps of the training; a table of 4 bytes each is made per prediction.
const MAX_TRAIN_STEPS: usize = 100_000;
