//! A Llama's weights as they lay on a GPU, in the host's memory: which copy is of which weights. Refuses to know how they are copied.

use candle_core::DeviceLocation;
use kernels::cuda::kept::HostCopy;
use runner::Origin;

use super::super::config::Config;
use super::super::needs::Load;
use super::super::weights::Opened;
use super::Fit;
use crate::shared::kept::Copy;

/// Every plane and every norm's gains, in the order in which they are read.
pub type Planes<S> = Copy<Identity, HostCopy<S>>;

/// What decides the bytes of the planes.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    origin: Origin,
    config: Config,
    fit: Fit,
    device: DeviceLocation,
}

impl Identity {
    pub fn of(opened: &Opened, fit: Fit, load: &Load) -> Self {
        Self { origin: opened.origin(), config: opened.config.clone(), fit, device: load.device.location() }
    }
}
