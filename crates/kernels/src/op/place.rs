//! Which way a device's ops go: our kernels for the CPU, or a GPU's tensors with our launches between candle's products. Refuses
//! to know ops.

use candle_core::{DType, Device, Result};

use crate::cuda::attend::DIM;

/// Whether the tensors of a device are a GPU's.
pub fn gpu(device: &Device) -> bool {
    !device.is_cpu() || emulating()
}

/// Whether our CUDA kernels run on them, and what they hold can be copied to page-locked memory.
pub fn launches(device: &Device) -> bool {
    emulating() || (cfg!(feature = "cuda") && device.is_cuda())
}

/// What layers whose weights are of this type hold between them: the weights' type where our kernels take it, else f32.
pub fn activations(device: &Device, weights: DType) -> DType {
    if launches(device) && matches!(weights, DType::F16 | DType::BF16) { weights } else { DType::F32 }
}

/// Whether attention on this device, over heads of `dim` in `dtype`, is our kernel's; else it is composed of candle's ops and
/// writes its scores to memory.
pub fn attends_in_one_kernel(device: &Device, dtype: DType, dim: usize) -> bool {
    launches(device) && matches!(dtype, DType::F16 | DType::BF16) && dim == DIM
}

/// Loads what ops launch on this device, which is best done before there are tensors on it.
pub fn prepare(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        crate::cuda::device::Kernels::of(device)?;
    }
    let _ = device;
    Ok(())
}

#[cfg(any(test, feature = "emulator"))]
use emulation::emulating;
#[cfg(any(test, feature = "emulator"))]
pub use emulation::{Emulating, emulate};

#[cfg(not(any(test, feature = "emulator")))]
fn emulating() -> bool {
    false
}

#[cfg(any(test, feature = "emulator"))]
mod emulation {
    use std::cell::Cell;

    use crate::cuda::emulator::emulator;

    thread_local! {
        static EMULATING: Cell<bool> = const { Cell::new(false) };
    }

    /// While it lives, this thread's tensors on the CPU stand for a GPU's: layers are made and ops run as on one, the kernels on the
    /// emulator.
    pub struct Emulating(());

    /// None where there is no C++ compiler to build the emulator with.
    pub fn emulate() -> Option<Emulating> {
        emulator()?;
        EMULATING.set(true);
        Some(Emulating(()))
    }

    impl Drop for Emulating {
        fn drop(&mut self) {
            EMULATING.set(false);
        }
    }

    pub(in crate::op) fn emulating() -> bool {
        EMULATING.get()
    }
}
