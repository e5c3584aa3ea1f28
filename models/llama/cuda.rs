//! Which Llamas run with our kernels on a CUDA device, and the engine for them there. Only in builds with the feature `cuda`.

use candle_core::Device;
use kernels::Pool;
use kernels::cuda::device::Kernels;
use prediction::{Kept, PredictError};
use runner::device::Capability;

use super::engine::Engine;
use super::gpu::kept::Identity;
use super::gpu::{Fit, Gpu};
use super::needs::Load;
use super::weights::Opened;
use crate::shared::kept::fitting;

/// None where the device is another one; else how it is computed there, or why not.
pub fn fit(opened: &Opened, load: &Load) -> Option<Result<Fit, String>> {
    let capability = runner::device::capability(load.device)?;
    Some(Fit::of(opened, load.precision, Capability::has_bf16(capability)))
}

pub fn engine(
    opened: &Opened,
    fit: Fit,
    load: &Load,
    pool: &Pool,
    kept: Option<Box<dyn Kept>>,
    report: &mut dyn FnMut(&str),
) -> Result<Box<dyn Engine>, PredictError> {
    let fault = |error: candle_core::Error| runner::device::fault(&error);
    let Device::Cuda(device) = load.device else {
        return Err(PredictError::Operator("our CUDA kernels need a CUDA device".into()));
    };
    let copy = fitting(kept, &Identity::of(opened, fit, load), report);
    if copy.is_none() {
        opened.read_ahead();
    }
    let kernels = Kernels::load(device).map_err(fault)?;
    report(&format!("our CUDA kernels run it in {}", fit.element.name()));
    let mut told = std::time::Instant::now();
    let mut layers = |i: usize, of: usize| {
        if told.elapsed() >= super::weights::PROGRESS {
            told = std::time::Instant::now();
            report(&format!("{i} of {of} layers are ready"));
        }
    };
    let mut gpu = Gpu::load(kernels, opened, fit, load, pool, copy, &mut layers)?;
    gpu.warm().map_err(fault)?;
    Ok(Box::new(gpu))
}
