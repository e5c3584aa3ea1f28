//! What the schedulers have in common: betas and their products per timestep of the training, where the steps of a run lie,
//! and the noise level at each. Pure host tables. The precision of every value is the reference's (diffusers on NumPy and
//! PyTorch: f32 for tables of the training, f64 for what is interpolated), so that the results are equal in f32.

use super::config::{BetaSchedule, Config, FinalSigma, Spacing};

/// "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022), equation 5.
const KARRAS_RHO: f64 = 7.0;

/// The last product where it would be 0, so that the first sigma is finite: the smallest subnormal of f16.
pub const LEAST_PRODUCT: f32 = 1.0 / (1 << 24) as f32;

/// Products of `1 - beta` from the first timestep of the training to each. `last` is what a class that knows
/// `rescale_betas_zero_snr` then takes for the last of them; the others leave that key aside.
pub fn alphas_cumprod(config: &Config, default_betas: (f64, f64), last: Option<f32>) -> Vec<f32> {
    let betas = betas(config, default_betas);
    match last.filter(|_| config.rescale_betas_zero_snr == Some(true)) {
        None => cumprod(&betas),
        Some(last) => {
            let mut products = cumprod(&rescale_zero_terminal_snr(&betas));
            products.pop();
            products.push(last);
            products
        }
    }
}

fn betas(config: &Config, (start, end): (f64, f64)) -> Vec<f32> {
    let steps = config.train_steps();
    let (start, end) = (config.beta_start.unwrap_or(start), config.beta_end.unwrap_or(end));
    if let Some(trained) = &config.trained_betas {
        return trained.clone();
    }
    match config.beta_schedule.unwrap_or(BetaSchedule::Linear) {
        BetaSchedule::Linear => linspace(start as f32, end as f32, steps),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, steps).iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredCosine => {
            let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let at = |step: usize| alpha_bar(step as f64 / steps as f64);
            (0..steps).map(|step| (1.0 - at(step + 1) / at(step)).min(0.999) as f32).collect()
        }
    }
}

/// `torch.linspace` in f32: from the start in the first half, from the end in the second, each value rounded once.
fn linspace(start: f32, end: f32, steps: usize) -> Vec<f32> {
    let step = (end - start) / (steps - 1) as f32;
    let value = |index: usize| match index < steps / 2 {
        true => step.mul_add(index as f32, start),
        false => (-step).mul_add((steps - index - 1) as f32, end),
    };
    (0..steps).map(value).collect()
}

/// PyTorch adds up in f64 and keeps f32.
fn cumprod(betas: &[f32]) -> Vec<f32> {
    let mut product = 1f64;
    let next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

/// Algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al. 2023).
fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = cumprod(betas).iter().map(|product| product.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    roots.iter_mut().for_each(|root| *root = (*root - last) * scale);
    let bars: Vec<f32> = roots.iter().map(|root| root * root).collect();
    let ratios = bars.windows(2).map(|pair| 1.0 - pair[1] / pair[0]);
    std::iter::once(1.0 - bars[0]).chain(ratios).collect()
}

/// `sqrt((1 - alpha) / alpha)`: the noise level at each timestep of the training, where the original has level 1.
pub fn sigmas(alphas_cumprod: &[f32]) -> Vec<f32> {
    alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
}

/// Where the steps of a run lie, descending, as most schedulers place them; `round` where timesteps are whole numbers.
/// Fractions happen with `linspace` alone.
pub fn timesteps(config: &Config, spacing: Spacing, steps: usize, round: bool) -> Vec<f64> {
    let train = config.train_steps();
    let offset = config.steps_offset.unwrap_or(0) as f64;
    match spacing {
        Spacing::Linspace => {
            let mut all = linspace_f64((train - 1) as f64, steps);
            if round {
                all.iter_mut().for_each(|t| *t = t.round_ties_even());
            }
            all.reverse();
            all
        }
        Spacing::Leading => (0..steps).rev().map(|step| (step * (train / steps)) as f64 + offset).collect(),
        Spacing::Trailing => trailing(train, train, steps),
    }
}

/// From `last` downwards in steps of `train / steps`, less one.
pub fn trailing(last: usize, train: usize, steps: usize) -> Vec<f64> {
    let (last, ratio) = (last as f64, train as f64 / steps as f64);
    // NumPy's arange: the second value less the first is the step.
    let (count, step) = ((last / ratio).ceil() as usize, (last - ratio) - last);
    (0..count).map(|at| (last + at as f64 * step).round_ties_even() - 1.0).collect()
}

/// NumPy's `linspace(0, end, count)`.
pub fn linspace_f64(end: f64, count: usize) -> Vec<f64> {
    let step = end / count.saturating_sub(1).max(1) as f64;
    let mut all: Vec<f64> = (0..count).map(|at| at as f64 * step).collect();
    if let (Some(last), true) = (all.last_mut(), count > 1) {
        *last = end;
    }
    all
}

/// NumPy's `interp` of a table at a place between its indices; clamped at both ends.
pub fn interpolate(table: &[f32], at: f64) -> f64 {
    let last = table.len() - 1;
    let low = (at.max(0.0).floor() as usize).min(last);
    if low == last || at <= 0.0 {
        return f64::from(table[low]);
    }
    let (from, to) = (f64::from(table[low]), f64::from(table[low + 1]));
    (to - from) * (at - low as f64) + from
}

/// Equation 5 of Karras et al. 2022, between the limits given in the file or else these.
pub fn karras(config: &Config, lowest: f64, highest: f64, steps: usize) -> Vec<f64> {
    let (low, high) = (config.sigma_min.unwrap_or(lowest), config.sigma_max.unwrap_or(highest));
    let (low, high) = (low.powf(1.0 / KARRAS_RHO), high.powf(1.0 / KARRAS_RHO));
    linspace_f64(1.0, steps).iter().map(|ramp| (high + ramp * (low - high)).powf(KARRAS_RHO)).collect()
}

/// The place between the timesteps of the training where the noise has this level; linear in its logarithm.
pub fn timestep_of(sigma: f64, sigmas: &[f32]) -> f64 {
    let log = sigma.max(1e-10).ln();
    let logs = |index: usize| f64::from(sigmas[index].ln());
    // The table ascends: the last index that is not above.
    let below = sigmas.iter().filter(|&&other| f64::from(other.ln()) <= log).count();
    let low = below.saturating_sub(1).min(sigmas.len() - 2);
    let part = ((logs(low) - log) / (logs(low) - logs(low + 1))).clamp(0.0, 1.0);
    (1.0 - part) * low as f64 + part * (low + 1) as f64
}

/// What stands behind the last step's sigma.
pub fn last_sigma(config: &Config, alphas_cumprod: &[f32]) -> f32 {
    match config.final_sigmas_type.unwrap_or(FinalSigma::Zero) {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => ((1.0 - alphas_cumprod[0]) / alphas_cumprod[0]).sqrt(),
    }
}
