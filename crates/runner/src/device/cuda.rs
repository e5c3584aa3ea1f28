//! A CUDA device of this process: opened, set up, asked. Only in builds with the feature `cuda`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};
use candle_core::{CudaDevice, Device};
use prediction::PredictError;
use prediction::frame::DeviceMemory;

use super::{Capability, fault};

/// A process has each device once: every further opening would take the libraries' workspaces again.
static OPENED: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());

pub fn open(number: usize) -> Result<Device, PredictError> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&number) {
        return Ok(device.clone());
    }
    let device = set_up(number)?;
    opened.insert(number, device.clone());
    Ok(device)
}

fn set_up(number: usize) -> Result<Device, PredictError> {
    // Activations stay f32 where they meet quantised blocks: rounded to 8 bits, small models say something else than on
    // the CPU.
    candle_core::quantized::cuda::set_force_dmmv(true);
    // A stream of its own: the default one belongs to the thread that asks, and cannot be counted on by another.
    let device = Device::new_cuda_with_stream(number).map_err(|error| fault(&error))?;
    if let Device::Cuda(cuda) = &device {
        // Slower then, and no less right: some virtual GPUs have no pools.
        keep_freed_memory(cuda)
            .unwrap_or_else(|error| tracing::warn!(%error, "the device has no memory pool to set up"));
    }
    Ok(device)
}

fn context(device: &CudaDevice) -> Arc<CudaContext> {
    device.cuda_stream().context().clone()
}

/// Without it, every wait for the stream gives the pool's free memory back to the system, and the next step asks for it
/// again.
fn keep_freed_memory(device: &CudaDevice) -> Result<(), DriverError> {
    let context = context(device);
    context.bind_to_thread()?;
    let mut threshold = u64::MAX;
    // SAFETY: the context is current; the value is of the attribute's type and outlives the call.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
    }
}

pub fn name(device: &CudaDevice) -> String {
    context(device).name().unwrap_or_default()
}

pub fn capability(device: &CudaDevice) -> Option<Capability> {
    let (major, minor) = context(device).compute_capability().ok()?;
    Some(Capability::new(u32::try_from(major).ok()?, u32::try_from(minor).ok()?))
}

/// What the pool keeps of freed memory counts as free: the next allocation takes it from there. What is being freed is
/// waited for.
pub fn memory(device: &CudaDevice) -> Option<DeviceMemory> {
    let context = context(device);
    context.bind_to_thread().ok()?;
    device.cuda_stream().synchronize().ok()?;
    let (free, total) = context.mem_get_info().ok()?;
    Some(DeviceMemory { total_bytes: total as u64, free_bytes: free as u64 + kept(&context).unwrap_or(0) })
}

/// Reserved by the pool and not in use.
fn kept(context: &CudaContext) -> Option<u64> {
    let read = |attribute| -> Result<u64, DriverError> {
        let mut bytes = 0u64;
        // SAFETY: the value is of the attribute's type and outlives the call.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device())?;
            result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast())?;
        }
        Ok(bytes)
    };
    let reserved = read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT).ok()?;
    let used = read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT).ok()?;
    Some(reserved.saturating_sub(used))
}
