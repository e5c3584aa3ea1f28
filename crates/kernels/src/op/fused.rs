//! The ops on a GPU with our own kernels: candle's tensors, launches on candle's stream. None comes back where there is no kernel for
//! a shape or a type, and `composed` stands in. Refuses to know layers.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Shape, Storage, Tensor};

use super::place::launches;
use crate::cuda::attend::{self, DIM, Rows};
use crate::cuda::call::{Call, Element, Real};
use crate::cuda::image::{self, Activation, Groups, Walk};
use crate::cuda::params::Ptr;

pub(super) use crate::cuda::attend::Batch;

/// Kernels read 16 bytes at once.
const ALIGNED: u64 = 16;

/// The type of a tensor that our kernels take where it is.
fn real(x: &Tensor) -> Option<Real> {
    let real = match x.dtype() {
        DType::F16 => Real::Half(Element::F16),
        DType::BF16 => Real::Half(Element::Bf16),
        DType::F32 => Real::F32,
        _ => return None,
    };
    launches(x.device()).then_some(real)
}

/// Where a tensor's first value is. It must outlive the launch that reads it; on candle's stream that is said, not done.
pub(super) fn address(x: &Tensor) -> Result<Ptr> {
    let (storage, layout) = x.storage_and_layout();
    let start = match &*storage {
        Storage::Cpu(storage) => cpu_address(storage)?,
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => cuda::address(storage)?,
        _ => candle_core::bail!("no kernel runs on {:?}", x.device()),
    };
    Ok(start.at(layout.start_offset() * x.dtype().size_in_bytes()))
}

fn cpu_address(storage: &CpuStorage) -> Result<Ptr> {
    let at = match storage {
        CpuStorage::F16(values) => values.as_ptr() as u64,
        CpuStorage::BF16(values) => values.as_ptr() as u64,
        CpuStorage::F32(values) => values.as_ptr() as u64,
        _ => candle_core::bail!("no kernel takes such values"),
    };
    Ok(Ptr(at))
}

fn cpu_address_mut(storage: &mut CpuStorage) -> Result<Ptr> {
    let at = match storage {
        CpuStorage::F16(values) => values.as_mut_ptr() as u64,
        CpuStorage::BF16(values) => values.as_mut_ptr() as u64,
        CpuStorage::F32(values) => values.as_mut_ptr() as u64,
        _ => candle_core::bail!("no kernel gives such values"),
    };
    Ok(Ptr(at))
}

/// Where a tensor's first value is, for who writes all of them before anybody reads.
pub(super) fn address_mut(x: &Tensor) -> Result<Ptr> {
    let here = Here(Cell::new(Ptr::NONE));
    x.inplace_op1(&here)?;
    Ok(here.0.get().at(x.layout().start_offset() * x.dtype().size_in_bytes()))
}

/// Where a storage begins.
struct Here(Cell<Ptr>);

impl InplaceOp1 for Here {
    fn name(&self) -> &'static str {
        "address"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        self.0.set(cpu_address_mut(storage)?);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, _: &Layout) -> Result<()> {
        self.0.set(cuda::address(storage)?);
        Ok(())
    }
}

/// Rows of `[rows, width]` with gaps between them, if our kernels can read them.
fn rows(x: &Tensor) -> Result<Option<Rows>> {
    let (rows, width) = x.dims2()?;
    let (at, size) = (address(x)?, x.dtype().size_in_bytes() as u64);
    let stride = if rows > 1 { x.stride()[0] } else { width };
    let whole = x.stride()[1] == 1 && stride >= width && (stride as u64 * size).is_multiple_of(ALIGNED);
    Ok((whole && at.0.is_multiple_of(ALIGNED)).then_some(Rows { at, stride }))
}

/// A contiguous tensor's address, if our kernels can read it.
fn whole(x: &Tensor) -> Result<Option<Ptr>> {
    let at = address(x)?;
    Ok((x.is_contiguous() && at.0.is_multiple_of(ALIGNED)).then_some(at))
}

fn empty(shape: impl Into<Shape>, like: &Tensor, dtype: DType) -> Result<Tensor> {
    // SAFETY: the kernels write all of it before anybody reads.
    unsafe { Tensor::empty(shape, dtype, like.device()) }
}

/// Launches what writes to the start of a tensor that nobody else reads meanwhile. The calls name memory of tensors that the
/// caller holds; as frees are in the stream's order too, they live until the launches have passed.
fn write(to: &Tensor, calls: impl Fn(Ptr) -> Vec<Call>) -> Result<()> {
    to.inplace_op1(&Launch { calls, bytes: to.dtype().size_in_bytes() })
}

struct Launch<F> {
    calls: F,
    /// Of one value.
    bytes: usize,
}

impl<F: Fn(Ptr) -> Vec<Call>> InplaceOp1 for Launch<F> {
    fn name(&self) -> &'static str {
        "launch"
    }

    #[cfg(any(test, feature = "emulator"))]
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some(emulator) = crate::cuda::emulator::emulator() else { candle_core::bail!("no emulator") };
        let at = cpu_address_mut(storage)?;
        for (order, call) in (self.calls)(at.at(layout.start_offset() * self.bytes)).iter().enumerate() {
            emulator.try_run(call, at.0 ^ order as u64).map_err(candle_core::Error::msg)?;
        }
        Ok(())
    }

    #[cfg(not(any(test, feature = "emulator")))]
    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        let kernels: Vec<String> = (self.calls)(Ptr::NONE).into_iter().map(|call| call.kernel).collect();
        candle_core::bail!("{kernels:?} run on a GPU alone, not on {} bytes a value on the CPU", self.bytes)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let at = cuda::address(storage)?.at(layout.start_offset() * self.bytes);
        let kernels = crate::cuda::device::Kernels::of(&storage.device)?;
        // SAFETY: `write`'s callers name memory of tensors of this device, as large as the calls' documentation says.
        (self.calls)(at).iter().try_for_each(|call| unsafe { kernels.launch(call) })
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda_backend::CudaStorageSlice;
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;
    use candle_core::{CudaStorage, Result};

    use super::Ptr;

    /// Where a storage begins.
    pub fn address(storage: &CudaStorage) -> Result<Ptr> {
        let stream = storage.device.cuda_stream();
        // Everything is on this one stream: there is no event to wait for.
        let (at, _) = match &storage.slice {
            CudaStorageSlice::F16(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::F32(slice) => slice.device_ptr(&stream),
            _ => candle_core::bail!("no kernel takes such values"),
        };
        Ok(Ptr(at))
    }
}

/// `softmax(scale q K^T) V` of every head of 64, for parts of a batch one behind the other: rows of `[parts * rows, heads * 64]` and
/// `[parts * seen, heads * 64]`, with gaps between them or without.
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, batch: &Batch) -> Result<Option<Tensor>> {
    let (Some(Real::Half(element)), width) = (real(q), batch.heads * DIM) else { return Ok(None) };
    if q.dim(1)? != width || [k.dtype(), v.dtype()] != [q.dtype(); 2] {
        return Ok(None);
    }
    let (Some(queries), Some(keys), Some(values)) = (rows(q)?, rows(k)?, rows(v)?) else { return Ok(None) };
    let y = empty((batch.parts * batch.rows, width), q, q.dtype())?;
    write(&y, |out| vec![attend::attend(element, batch, queries, keys, values, out)])?;
    Ok(Some(y))
}

/// Of `[images, height, width, channels]`.
pub(super) fn group_norm(
    x: &Tensor,
    groups: usize,
    (weight, bias): (&Tensor, &Tensor),
    eps: f64,
    silu: bool,
) -> Result<Option<Tensor>> {
    let (images, height, width, channels) = x.dims4()?;
    let over = Groups { images, pixels: height * width, channels, groups, eps: eps as f32, silu };
    let Some(real) = real(x).filter(|_| over.fit()) else { return Ok(None) };
    let x = x.contiguous()?;
    let (Some(from), Some(learned)) = (whole(&x)?, learned(weight, bias)?) else { return Ok(None) };
    let partial = empty(over.partial_bytes() / 4, &x, DType::F32)?;
    let (y, scratch) = (empty(x.shape(), &x, x.dtype())?, address(&partial)?);
    write(&y, |to| image::group_norm(real, &over, from, learned, scratch, to).to_vec())?;
    Ok(Some(y))
}

/// Gain and offset, f32.
fn learned(weight: &Tensor, bias: &Tensor) -> Result<Option<(Ptr, Ptr)>> {
    if [weight.dtype(), bias.dtype()] != [DType::F32; 2] {
        return Ok(None);
    }
    Ok(whole(weight)?.zip(whole(bias)?))
}

/// Of `[rows, width]`.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Option<Tensor>> {
    let (count, width) = x.dims2()?;
    let fits = count > 0 && width.is_multiple_of(image::UNIT) && width <= image::MOST_WIDTH;
    let Some(real) = real(x).filter(|_| fits) else { return Ok(None) };
    let (Some(from), Some(learned)) = (rows(x)?, learned(weight, bias)?) else { return Ok(None) };
    let y = empty((count, width), x, x.dtype())?;
    write(&y, |to| vec![image::layer_norm(real, (from.at, from.stride), (count, width), learned, eps, to)])?;
    Ok(Some(y))
}

/// What follows a product. `bias` is `[width of the product]`, `shift` `[images, width]`, both f32; `residual` is as the result.
#[derive(Clone, Copy, Default)]
pub(super) struct Added<'a> {
    pub bias: Option<&'a Tensor>,
    pub shift: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
}

/// `activation(x + bias + shift) + residual`, where `x`, whose last dimension is the width, is a product's and nobody else's: it is
/// written over where that can be.
pub(super) fn finish(x: &Tensor, activation: Activation, added: &Added) -> Result<Option<Tensor>> {
    let Added { bias, shift, residual } = *added;
    if activation == Activation::None && bias.is_none() && shift.is_none() && residual.is_none() {
        return Ok(Some(x.clone()));
    }
    let mut dims = x.dims().to_vec();
    let Some(last) = dims.last_mut() else { return Ok(None) };
    let wide = *last;
    let halved = activation == Activation::Geglu;
    *last = if halved { wide / 2 } else { wide };
    let (width, count) = (*last, x.elem_count() / wide.max(1));
    let Some(real) = real(x).filter(|_| count > 0 && width.is_multiple_of(image::UNIT)) else { return Ok(None) };
    let f32_ = |tensor: &Tensor| tensor.dtype() == DType::F32;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let fits = bias.is_none_or(f32_) && shift.is_none_or(f32_);
    if !fits || residual.as_ref().is_some_and(|residual| residual.dtype() != x.dtype()) {
        return Ok(None);
    }
    let Some(from) = whole(x)? else { return Ok(None) };
    let mut also = image::Added::default();
    for (tensor, at) in [(bias, &mut also.bias), (residual.as_ref(), &mut also.residual)] {
        if let Some(tensor) = tensor {
            *at = whole(tensor)?;
            if at.is_none() {
                return Ok(None);
            }
        }
    }
    if let Some(shift) = shift {
        let Some(Rows { at, stride }) = rows(shift)? else { return Ok(None) };
        also.shift = Some((at, stride, count / shift.dim(0)?));
    }
    let y = if halved { empty(dims, x, x.dtype())? } else { x.clone() };
    write(&y, |to| vec![image::finish(real, activation, from, (count, width), &also, to)])?;
    Ok(Some(y))
}

/// The windows of `count` of the result's pixels from `first` on: `[count, kernel * kernel * channels]`, of the images' type. `walk`
/// says how large the images are.
pub(super) fn columns(x: &Tensor, walk: &Walk, (first, count): (usize, usize)) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (from, size) = (address(&x)?, x.dtype().size_in_bytes());
    let y = empty((count, walk.window_bytes() / size), &x, x.dtype())?;
    write(&y, |to| vec![image::columns(walk, from, (first, count), to)])?;
    Ok(y)
}
