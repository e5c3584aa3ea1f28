//! Which of a device's errors mean what for whoever holds it: no memory left, lost to this process, or a defect. Told by the
//! names in the driver's and the libraries' errors, which are the same in every version and whoever wraps them.

use candle_core::Error;
use prediction::PredictError;

/// No room on the device. What was running is as good as before.
const NO_MEMORY: &[&str] =
    &["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "CURAND_STATUS_ALLOCATION_FAILED"];

/// After these every further call of the process fails the same way; only another process may use the device again
/// (CUDA driver API, `CUresult`: "leaves the process in an inconsistent state"), or the device itself is gone.
const LOST: &[&str] = &[
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_NO_DEVICE",
    "CUDA_ERROR_UNKNOWN",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_MAPPING_ERROR",
    "CURAND_STATUS_LAUNCH_FAILURE",
];

/// Sorts what a device said.
pub fn fault(error: &Error) -> PredictError {
    // Contexts are lines; behind them comes the backtrace, where one was asked for.
    let text = error.to_string();
    let said: Vec<&str> = text.lines().take_while(|line| !line.trim_start().starts_with("0: ")).collect();
    let text = said.join(": ");
    let says = |names: &[&str]| names.iter().any(|name| text.contains(name));
    if says(LOST) {
        PredictError::DeviceLost(format!("The device is lost: {text}"))
    } else if says(NO_MEMORY) {
        PredictError::OutOfMemory(format!("The device has no memory left: {text}"))
    } else {
        PredictError::Operator(format!("The device failed: {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cudarc's errors print, inside candle's.
    fn cuda(name: &str) -> Error {
        Error::Cuda(format!("DriverError({name}, \"what it means\")").into()).bt()
    }

    #[test]
    fn a_full_device_is_not_a_lost_one() {
        assert!(matches!(fault(&cuda("CUDA_ERROR_OUT_OF_MEMORY")), PredictError::OutOfMemory(_)));
        assert!(matches!(fault(&cuda("CUBLAS_STATUS_ALLOC_FAILED")), PredictError::OutOfMemory(_)));
    }

    #[test]
    fn what_only_another_process_heals_is_a_lost_device() {
        for name in LOST {
            assert!(matches!(fault(&cuda(name)), PredictError::DeviceLost(_)), "{name}");
        }
    }

    #[test]
    fn anything_else_is_a_defect_of_the_model() {
        let shape = candle_core::Tensor::zeros((2, 3), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let error = shape.matmul(&shape).unwrap_err();
        assert!(matches!(fault(&error), PredictError::Operator(_)), "{error}");
        assert!(matches!(fault(&cuda("CUDA_ERROR_INVALID_VALUE")), PredictError::Operator(_)));
    }
}
