//! Which device a model runs on and in which precision, what this machine offers, and which of a device's errors mean
//! what. Refuses to know who asks. What a GPU's driver says is in `probe`, which runs in a process of its own.

mod build;
#[cfg(feature = "cuda")]
mod cuda;
mod fault;
mod machine;
pub mod probe;

use candle_core::{DType, Device};
use prediction::PredictError;
use prediction::frame::DeviceMemory;

pub use build::{About, Built, Capability, CudaVersion, FAMILIES, Family, about};
pub use fault::fault;
pub use machine::{Cpu, Memory, cpu, memory};

/// `cpu` or `cuda:N`. What a name means does not depend on what else is there: nothing falls back silently.
pub fn pick(device: &str) -> Result<Device, PredictError> {
    let refuse = |why: &dyn std::fmt::Display| PredictError::Operator(format!("device {device}: {why}"));
    if device == "cpu" {
        return Ok(Device::Cpu);
    }
    let Some(number) = device.strip_prefix("cuda:") else {
        return Err(refuse(&"unknown; cpu and cuda:N are"));
    };
    let Ok(number) = number.parse::<usize>() else {
        return Err(refuse(&"the part after the colon is the device's number, from 0"));
    };
    open(number).map_err(|why| match why {
        PredictError::Operator(why) => refuse(&why),
        other => other,
    })
}

#[cfg(feature = "cuda")]
fn open(number: usize) -> Result<Device, PredictError> {
    cuda::open(number)
}

#[cfg(not(feature = "cuda"))]
fn open(_: usize) -> Result<Device, PredictError> {
    let why = "this executable was built without CUDA; `cargo xtask cuda` builds those that have it, `pinion doctor` says \
               which one serves which GPU";
    Err(PredictError::Operator(why.into()))
}

/// As its maker calls it.
pub fn name(device: &Device) -> String {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::name(device);
    }
    if device.is_cpu() { cpu().model } else { String::new() }
}

/// None for the CPU.
pub fn capability(device: &Device) -> Option<Capability> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::capability(device);
    }
    let _ = device;
    None
}

/// Bytes of the device as they are now: of main memory for the CPU. None where the system does not say.
pub fn memory_of(device: &Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::memory(device);
    }
    match device {
        Device::Cpu => {
            memory().map(|memory| DeviceMemory { total_bytes: memory.total_bytes, free_bytes: memory.available_bytes })
        }
        _ => None,
    }
}

/// The precision for unquantised weights on a device of this capability (none: the CPU): the one asked for, else the one
/// they are stored in. Quantised blocks keep theirs whatever is asked. Below 8.0 there is no bf16: what is stored so
/// becomes f16, and who asks for it is told.
pub fn precision(asked: Option<&str>, stored: DType, on: Option<Capability>) -> Result<DType, PredictError> {
    let bf16 = on.is_none_or(Capability::has_bf16);
    match (asked, stored) {
        (Some("f32"), _) => Ok(DType::F32),
        (Some("f16"), _) => Ok(DType::F16),
        (Some("bf16"), _) if bf16 => Ok(DType::BF16),
        (Some("bf16"), _) => Err(PredictError::Operator(format!(
            "precision bf16: the GPU has compute capability {}, and bf16 begins with {}; ask for f16 or f32",
            on.map(|on| on.to_string()).unwrap_or_default(),
            Capability::FIRST_BF16,
        ))),
        (None, DType::BF16) if !bf16 => Ok(DType::F16),
        (None, DType::F32 | DType::F16 | DType::BF16) => Ok(stored),
        (None, _) => Ok(DType::F32),
        (Some(other), _) => Err(PredictError::Operator(format!("precision {other}: unknown; f32, f16 and bf16 are"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_exactly() {
        assert!(pick("cpu").unwrap().is_cpu());
        for (name, expected) in [("gpu", "device gpu: unknown"), ("cuda:", "the device's number"), ("CPU", "unknown")] {
            assert!(pick(name).unwrap_err().text().contains(expected), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        assert!(pick("cuda:0").unwrap_err().text().contains("device cuda:0: this executable was built without CUDA"));
    }

    #[test]
    fn precision_is_as_asked_else_as_stored() {
        assert_eq!(precision(Some("bf16"), DType::F32, None).unwrap(), DType::BF16);
        assert_eq!(precision(None, DType::F16, None).unwrap(), DType::F16);
        assert_eq!(precision(None, DType::U8, None).unwrap(), DType::F32);
        assert!(precision(Some("fp16"), DType::F32, None).unwrap_err().text().contains("f32, f16 and bf16"));
    }

    #[test]
    fn a_gpu_without_bf16_gets_f16_and_says_so_when_bf16_is_asked_for() {
        let (t4, a100) = (Some(Capability::new(7, 5)), Some(Capability::new(8, 0)));
        assert_eq!(precision(None, DType::BF16, t4).unwrap(), DType::F16);
        assert_eq!(precision(None, DType::F32, t4).unwrap(), DType::F32);
        let refused = precision(Some("bf16"), DType::F16, t4).unwrap_err();
        assert!(refused.text().contains("compute capability 7.5, and bf16 begins with 8.0"), "{refused}");
        assert_eq!(precision(None, DType::BF16, a100).unwrap(), DType::BF16);
        assert_eq!(precision(Some("bf16"), DType::F16, a100).unwrap(), DType::BF16);
    }

    #[test]
    fn the_memory_of_the_cpu_is_the_machines() {
        let (device, machine) = (memory_of(&Device::Cpu), memory());
        assert_eq!(device.map(|memory| memory.total_bytes), machine.map(|memory| memory.total_bytes));
        assert!(device.is_none_or(|memory| memory.free_bytes <= memory.total_bytes));
    }
}
