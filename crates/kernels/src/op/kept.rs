//! Tensors of a GPU, copied to page-locked memory of the host and back on candle's stream, by the addresses they have. Refuses to
//! know which layers they are of.

use candle_core::{DType, Device, Result, Shape, Tensor};

use super::fused::{address, address_mut};
use crate::cuda::kept::{Span, bytes_for};

/// What a layer holds on a GPU.
#[derive(Clone, Debug)]
pub struct LayerTensors {
    /// Of parts that read the same, one below the other; one of most layers.
    pub weights: Vec<Tensor>,
    /// `[out]`, f32.
    pub bias: Option<Tensor>,
}

impl LayerTensors {
    /// One tensor that is no layer's.
    pub fn single(tensor: Tensor) -> Self {
        Self { weights: vec![tensor], bias: None }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.weights.iter().chain(&self.bias)
    }

    pub(super) fn checked_bias(self, out: usize) -> Result<Option<Tensor>> {
        match &self.bias {
            Some(bias) if bias.dims() != [out] => candle_core::bail!("biases {:?} for {out} outputs", bias.dims()),
            _ => Ok(self.bias),
        }
    }
}

/// Page-locked memory that a copy of tensors takes.
pub fn kept_bytes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> u64 {
    bytes_for(tensors.map(|tensor| bytes(tensor.shape(), tensor.dtype()) as u64).sum())
}

fn bytes(shape: &Shape, dtype: DType) -> usize {
    shape.elem_count() * dtype.size_in_bytes()
}

/// A copy of tensors.
pub struct HostTensors {
    about: Vec<(Shape, DType)>,
    device: Device,
    copy: Box<dyn Copied>,
}

impl HostTensors {
    /// Of tensors on this device, each whole and in one piece; an error where our kernels do not run (`launches`).
    pub fn of(device: &Device, tensors: &[&Tensor]) -> Result<Self> {
        let span = |tensor: &&Tensor| {
            if !tensor.device().same_device(device) {
                candle_core::bail!("a copy of a tensor of {:?} from {device:?}", tensor.device());
            }
            if !tensor.is_contiguous() {
                candle_core::bail!("a copy of a tensor with gaps: {:?}", tensor.layout());
            }
            Ok(Span { at: address(tensor)?, bytes: bytes(tensor.shape(), tensor.dtype()) })
        };
        let spans: Vec<Span> = tensors.iter().map(span).collect::<Result<_>>()?;
        let about = tensors.iter().map(|tensor| (tensor.shape().clone(), tensor.dtype())).collect();
        // SAFETY: tensors that the caller holds, of this device, as was looked.
        Ok(Self { about, device: device.clone(), copy: unsafe { copied(device, &spans) }? })
    }

    /// New tensors on the device with what was copied, in the same order.
    pub fn restore(mut self) -> Result<Vec<Tensor>> {
        // SAFETY: all of it is written below.
        let empty = |(shape, dtype): &(Shape, DType)| unsafe { Tensor::empty(shape, *dtype, &self.device) };
        let tensors: Vec<Tensor> = self.about.iter().map(empty).collect::<Result<_>>()?;
        let span =
            |tensor: &Tensor| Ok(Span { at: address_mut(tensor)?, bytes: bytes(tensor.shape(), tensor.dtype()) });
        let spans: Vec<Span> = tensors.iter().map(span).collect::<Result<_>>()?;
        // SAFETY: they are of this device, and nobody else has them yet.
        unsafe { self.copy.put_back(&spans) }?;
        Ok(tensors)
    }

    /// Page-locked memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.copy.bytes()
    }
}

/// A copy and the stream that it came by and goes back on.
trait Copied {
    fn bytes(&self) -> u64;

    /// # Safety
    /// As of `HostCopy::put_back`.
    unsafe fn put_back(&mut self, spans: &[Span]) -> Result<()>;
}

/// In builds that have such a stream.
#[cfg(any(feature = "cuda", test, feature = "emulator"))]
mod on {
    use std::ops::Deref;

    use candle_core::Result;

    use super::Copied;
    use crate::cuda::kept::{HostCopy, Span};
    use crate::cuda::stream::Stream;

    pub struct On<P: Deref<Target: Stream + Sized>> {
        stream: P,
        copy: HostCopy<P::Target>,
    }

    impl<P: Deref<Target: Stream + Sized>> On<P> {
        /// # Safety
        /// As of `HostCopy::of`.
        pub unsafe fn new(stream: P, spans: &[Span]) -> Result<Self> {
            // SAFETY: the caller's promise.
            let copy = unsafe { HostCopy::of(&*stream, &stream.spare(), spans) }?;
            Ok(Self { stream, copy })
        }
    }

    impl<P: Deref<Target: Stream + Sized>> Copied for On<P> {
        fn bytes(&self) -> u64 {
            self.copy.bytes()
        }

        unsafe fn put_back(&mut self, spans: &[Span]) -> Result<()> {
            // SAFETY: the caller's promise.
            unsafe { self.copy.put_back(&*self.stream, spans) }
        }
    }
}
#[cfg(any(feature = "cuda", test, feature = "emulator"))]
use on::On;

/// # Safety
/// The spans are memory of this device.
unsafe fn copied(device: &Device, spans: &[Span]) -> Result<Box<dyn Copied>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        // SAFETY: the caller's promise.
        return Ok(Box::new(unsafe { On::new(crate::cuda::device::Kernels::of(device)?, spans) }?));
    }
    #[cfg(any(test, feature = "emulator"))]
    if let Some(emulator) = crate::cuda::emulator::emulator().filter(|_| super::launches(device)) {
        let stream = Box::new(crate::cuda::emulated::Emulated::new(emulator));
        // SAFETY: the caller's promise.
        return Ok(Box::new(unsafe { On::new(stream, spans) }?));
    }
    candle_core::bail!(
        "{} spans of {:?}, of which there is no copy in page-locked memory",
        spans.len(),
        device.location()
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use half::f16;

    use super::super::{Conv2d, ConvShape, Dense, Part, emulate};
    use super::*;
    use crate::testing::{Random, same_bits};
    use crate::{Format, Pool};

    fn values(x: &Tensor) -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn layers_of_tensors_that_came_back_compute_the_same() {
        let Some(_gpu) = emulate() else { return };
        let (mut random, pool) = (Random::fresh(), Arc::new(Pool::new(2)));
        let half = |values: Vec<f32>| values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
        let whole = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (upper, lower) = (half(random.normal(8 * 16)), whole(random.normal(24 * 16)));
        let parts =
            [Part { format: Format::F16, out: 8, bytes: &upper }, Part { format: Format::F32, out: 24, bytes: &lower }];
        let dense = Dense::new(&parts, 16, Some(random.normal(32)), &Device::Cpu, &pool).unwrap();
        let shape = ConvShape { in_: 8, out: 16, kernel: 3, stride: 1, pad: [1; 4] };
        let weight = half(random.normal(16 * 8 * 9));
        let weight = Part { format: Format::F16, out: 16, bytes: &weight };
        let conv = Conv2d::new(weight, shape, Some(random.normal(16)), &Device::Cpu, &pool).unwrap();

        let (of_dense, of_conv) = (dense.tensors().unwrap(), conv.tensors().unwrap());
        let all: Vec<&Tensor> = of_dense.iter().chain(of_conv.iter()).collect();
        let copy = HostTensors::of(&Device::Cpu, &all).unwrap();
        assert_eq!(copy.bytes(), kept_bytes(all.into_iter()));
        let back = copy.restore().unwrap();
        let [upper, lower, bias, weight, conv_bias] = <[Tensor; 5]>::try_from(back).unwrap();
        let layer = |weights: &[&Tensor], bias: &Tensor| LayerTensors {
            weights: weights.iter().map(|&weight| weight.clone()).collect(),
            bias: Some(bias.clone()),
        };
        let dense_again = Dense::of_tensors(layer(&[&upper, &lower], &bias), &pool).unwrap();
        let conv_again = Conv2d::of_tensors(layer(&[&weight], &conv_bias), shape).unwrap();
        assert_eq!((dense_again.bytes(), conv_again.bytes()), (dense.bytes(), conv.bytes()));

        let x = Tensor::from_vec(random.normal(5 * 16), (5, 16), &Device::Cpu).unwrap();
        let case = || format!("seed {}", random.seed);
        same_bits(&values(&dense_again.forward(&x).unwrap()), &values(&dense.forward(&x).unwrap()), case);
        let x = Tensor::arange(0f32, 4.0 * 4.0 * 8.0, &Device::Cpu).unwrap().reshape((1, 4, 4, 8)).unwrap();
        same_bits(&values(&conv_again.forward(&x).unwrap()), &values(&conv.forward(&x).unwrap()), case);

        assert!(Dense::of_tensors(layer(&[&upper, &lower], &conv_bias), &pool).is_err(), "16 biases for 32");
        assert!(Conv2d::of_tensors(layer(&[&upper], &conv_bias), shape).is_err(), "another weight");
    }

    #[test]
    fn on_the_cpu_nothing_is_copied_and_a_view_nowhere() {
        let x = Tensor::zeros((4, 6), DType::F32, &Device::Cpu).unwrap();
        let why = HostTensors::of(&Device::Cpu, &[&x]).err().unwrap().to_string();
        assert!(why.contains("no copy in page-locked memory"), "{why}");
        let Some(_gpu) = emulate() else { return };
        let view = x.narrow(1, 0, 3).unwrap();
        let why = HostTensors::of(&Device::Cpu, &[&view]).err().unwrap().to_string();
        assert!(why.contains("with gaps"), "{why}");
    }
}
