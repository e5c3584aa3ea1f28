//! Convolution of images, NHWC. Refuses to know the network around it.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};

use super::place::{activations, gpu, launches};
use super::{LayerTensors, Part, Rows, composed, fused, output};
use crate::cuda::image::{Activation as Behind, Walk as Windows};
use crate::linear::{Activation, Finish, Residual, Walk, Weight, many};
use crate::{Format, Pool};

/// What a convolution's weight looks like and how it walks over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels of the image.
    pub in_: usize,
    /// Channels of the result.
    pub out: usize,
    /// Height and width of the window, in pixels.
    pub kernel: usize,
    /// Pixels between one window and the next, both ways.
    pub stride: usize,
    /// Zeros that stand around the image: rows above and below it, columns left and right of it.
    pub pad: [usize; 4],
}

impl ConvShape {
    /// Height and width of the result, or why an image of this size has none.
    pub fn result(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let [top, bottom, left, right] = self.pad;
        let side = |pixels: usize, pad: usize| {
            (pixels + pad).checked_sub(self.kernel).map(|room| room / self.stride + 1).filter(|_| pixels > 0)
        };
        match (side(height, top + bottom), side(width, left + right)) {
            (Some(height), Some(width)) => Ok((height, width)),
            _ => candle_core::bail!("an image of {height} x {width} pixels is too small for {self:?}"),
        }
    }

    /// Inputs that one result sums over.
    fn inputs(&self) -> usize {
        self.kernel * self.kernel * self.in_
    }

    fn check(&self, weight: &Part, bias: &Option<Vec<f32>>) -> Result<()> {
        if self.in_ == 0 || self.out == 0 || self.kernel == 0 || self.stride == 0 {
            candle_core::bail!("no convolution has a zero in {self:?}");
        }
        dtype(weight.format)?;
        let size = weight.format.size(self.out, self.inputs()).map_err(Error::msg)?;
        if weight.out != self.out || weight.bytes.len() != size {
            let (name, out, got) = (weight.format.name(), weight.out, weight.bytes.len());
            candle_core::bail!("a {name} weight of {out} outputs and {got} bytes for {self:?}, which takes {size}");
        }
        match bias {
            Some(bias) if bias.len() != self.out => candle_core::bail!("{} biases for {self:?}", bias.len()),
            _ => Ok(()),
        }
    }
}

/// A convolution with an optional bias. Images are `[batch, height, width, channels]`, f32 on the CPU.
pub struct Conv2d {
    shape: ConvShape,
    inner: Inner,
    /// `[out]`, f32.
    bias: Option<Tensor>,
}

enum Inner {
    /// `[out, kernel * kernel * in]`, the places of the window one after the other.
    Cpu { weight: Weight, pool: Arc<Pool> },
    /// `[out, kernel * kernel * in]` likewise, for a GPU's library: windows are put side by side for it.
    Windows(Tensor),
    /// `[out, in, kernel, kernel]`.
    Composed(Tensor),
}

/// The most that the windows of a convolution take on a GPU: those of larger images are put side by side band by band. At 1024 x
/// 1024 no convolution of SDXL's UNet is cut in two images' f16, and the VAE's largest is in thirteen in f32.
pub const WINDOW_BYTES: usize = 768 << 20;

/// What is added to a result.
#[derive(Clone, Copy)]
enum Plus<'a> {
    Nothing,
    /// `[batch, height, width, out]`.
    Image(&'a Tensor),
    /// `[batch, out]`: the same for every pixel of an image.
    Pixel(&'a Tensor),
}

impl Conv2d {
    /// `weight` is `[out, in, kernel, kernel]` in f32, f16 or bf16, as checkpoints have it; its `out` is the shape's.
    pub fn new(
        weight: Part,
        shape: ConvShape,
        bias: Option<Vec<f32>>,
        device: &Device,
        pool: &Arc<Pool>,
    ) -> Result<Conv2d> {
        if gpu(device) && !launches(device) {
            return Conv2d::composed(weight, shape, bias, device);
        }
        shape.check(&weight, &bias)?;
        let bytes = places_first(&weight, shape, pool)?;
        let packed = Part { bytes: &bytes, ..weight };
        let inner = if gpu(device) {
            let dims = [shape.out, shape.inputs()];
            Inner::Windows(Tensor::from_raw_buffer(&bytes, dtype(weight.format)?, &dims, device)?)
        } else {
            let weight = Weight::stack(&[packed], shape.inputs(), pool).map_err(Error::msg)?;
            Inner::Cpu { weight, pool: pool.clone() }
        };
        Ok(Conv2d { shape, inner, bias: bias.map(|bias| Tensor::from_vec(bias, shape.out, device)).transpose()? })
    }

    /// Of what another one's `tensors` gave, or a copy of that.
    pub fn of_tensors(tensors: LayerTensors, shape: ConvShape) -> Result<Conv2d> {
        let [weight] = tensors.weights.as_slice() else {
            candle_core::bail!("{} weights of one convolution", tensors.weights.len());
        };
        let ConvShape { in_, out, kernel, .. } = shape;
        let inner = match *weight.dims() {
            [rows, width] if (rows, width) == (out, shape.inputs()) => Inner::Windows(weight.clone()),
            [rows, channels, high, wide] if (rows, channels, high, wide) == (out, in_, kernel, kernel) => {
                Inner::Composed(weight.clone())
            }
            _ => candle_core::bail!("a weight of {:?} for {shape:?}", weight.dims()),
        };
        Ok(Conv2d { shape, inner, bias: tensors.checked_bias(out)? })
    }

    /// What it holds on a GPU; none on the CPU.
    pub fn tensors(&self) -> Option<LayerTensors> {
        match &self.inner {
            Inner::Cpu { .. } => None,
            Inner::Windows(weight) | Inner::Composed(weight) => {
                Some(LayerTensors { weights: vec![weight.clone()], bias: self.bias.clone() })
            }
        }
    }

    /// The same in candle's own form, on any device.
    pub(super) fn composed(weight: Part, shape: ConvShape, bias: Option<Vec<f32>>, device: &Device) -> Result<Conv2d> {
        shape.check(&weight, &bias)?;
        let dims = [shape.out, shape.in_, shape.kernel, shape.kernel];
        let weight = Tensor::from_raw_buffer(weight.bytes, dtype(weight.format)?, &dims, device)?;
        // The reference of the tests is as exact as can be.
        let inner = Inner::Composed(if device.is_cpu() { weight.to_dtype(DType::F32)? } else { weight });
        Ok(Conv2d { shape, inner, bias: bias.map(|bias| Tensor::from_vec(bias, shape.out, device)).transpose()? })
    }

    /// `[batch, height, width, in]` to `[batch, height', width', out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, Plus::Nothing)
    }

    /// `residual + forward(x)`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.product(x, Plus::Image(residual))
    }

    /// `forward(x)` with row `i` of `shift` (`[batch, out]`) added to every pixel of image `i`: a time embedding.
    pub fn forward_shifted(&self, x: &Tensor, shift: &Tensor) -> Result<Tensor> {
        self.product(x, Plus::Pixel(shift))
    }

    fn product(&self, x: &Tensor, plus: Plus) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let out = self.shape.out;
        if channels != self.shape.in_ {
            candle_core::bail!("images of {channels} channels for {:?}", self.shape);
        }
        let (rows, columns) = self.shape.result(height, width)?;
        match plus {
            Plus::Image(residual) if residual.dims4()? != (batch, rows, columns, out) => {
                candle_core::bail!("a residual of {:?} beside [{batch}, {rows}, {columns}, {out}]", residual.dims())
            }
            Plus::Pixel(shift) if shift.dims2()? != (batch, out) => {
                candle_core::bail!("shifts of {:?} for {batch} images of {out} channels", shift.dims())
            }
            _ => {}
        }
        let (weight, pool) = match &self.inner {
            Inner::Cpu { weight, pool } => (weight, pool),
            Inner::Windows(weight) => return self.over_windows(x, weight, plus, (rows, columns)),
            Inner::Composed(weight) => return self.in_candles_words(x, weight, plus),
        };
        let x = x.contiguous()?;
        let bias = self.bias.as_ref().map(|bias| bias.to_vec1::<f32>()).transpose()?;
        let shift = match plus {
            Plus::Pixel(shift) => Some(shift.flatten_all()?.to_vec1::<f32>()?),
            _ => None,
        };
        let mut y = output(batch * rows * columns * out);
        let ConvShape { kernel, stride, pad: [top, _, left, _], .. } = self.shape;
        let mut run = |residual: Residual| {
            let (bias, shift) = (bias.as_deref(), shift.as_deref());
            let finish = Finish { bias, shift, residual, activation: Activation::None };
            Rows::of(&x)?.with(|x, _| {
                let pixel = channels;
                let walk = Walk { x, pixel, channels, batch, height, width, kernel, stride, top, left, rows, columns };
                many(&walk, weight, &mut y, &finish, pool);
            })
        };
        match plus {
            Plus::Image(residual) => {
                let residual = residual.contiguous()?;
                Rows::of(&residual)?.with(|values, _| run(Residual::Rows(values, out)))??;
            }
            _ => run(Residual::None)?,
        }
        Tensor::from_vec(y, (batch, rows, columns, out), &Device::Cpu)
    }

    /// Every window beside its neighbours, times the weight; then what is added, in one pass. Nothing moves for a window of one
    /// pixel.
    fn over_windows(&self, x: &Tensor, weight: &Tensor, plus: Plus, (rows, columns): (usize, usize)) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let ConvShape { kernel, stride, pad: [top, _, left, _], out, .. } = self.shape;
        let (given, x) = (x.dtype(), x.to_dtype(weight.dtype())?);
        let pixels = batch * rows * columns;
        let y = if (kernel, stride, self.shape.pad) == (1, 1, [0; 4]) {
            x.contiguous()?.reshape((pixels, channels))?.matmul(&weight.t()?)?
        } else {
            let pixel_bytes = channels * x.dtype().size_in_bytes();
            let walk = Windows { height, width, pixel_bytes, kernel, stride, top, left, rows, columns, doubled: false };
            in_bands(&x, &walk, weight, pixels, WINDOW_BYTES)?
        };
        let y = y.to_dtype(given)?.reshape((batch, rows, columns, out))?;
        let mut added = fused::Added { bias: self.bias.as_ref(), ..Default::default() };
        match plus {
            Plus::Nothing => {}
            Plus::Image(residual) => added.residual = Some(residual),
            Plus::Pixel(shift) => added.shift = Some(shift),
        }
        fused::finish(&y, Behind::None, &added)?.map_or_else(|| self.with_the_rest(y, plus), Ok)
    }

    fn in_candles_words(&self, x: &Tensor, weight: &Tensor, plus: Plus) -> Result<Tensor> {
        self.with_the_rest(composed::conv(x, weight, self.shape)?, plus)
    }

    fn with_the_rest(&self, mut y: Tensor, plus: Plus) -> Result<Tensor> {
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
        }
        match plus {
            Plus::Nothing => Ok(y),
            Plus::Image(residual) => y + residual,
            Plus::Pixel(shift) => {
                let shift = shift.to_dtype(y.dtype())?;
                y.broadcast_add(&shift.reshape((shift.dim(0)?, 1, 1, self.shape.out))?)
            }
        }
    }

    /// What images are held in between layers like this one.
    pub fn activations(&self) -> DType {
        match &self.inner {
            Inner::Windows(weight) => activations(weight.device(), weight.dtype()),
            Inner::Cpu { .. } | Inner::Composed(_) => DType::F32,
        }
    }

    pub fn shape(&self) -> ConvShape {
        self.shape
    }

    /// What `bytes` will be, before there is a weight.
    pub fn bytes_for(format: Format, shape: ConvShape, bias: bool, device: &Device) -> Result<u64> {
        let weight = match gpu(device) {
            false => Weight::bytes_for(&[(format, shape.out)], shape.inputs()),
            true => format.size(shape.out, shape.inputs()).map(|bytes| bytes as u64),
        };
        Ok(weight.map_err(Error::msg)? + if bias { 4 * shape.out as u64 } else { 0 })
    }

    /// The memory it holds.
    pub fn bytes(&self) -> u64 {
        let of = |tensor: &Tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        let weight = match &self.inner {
            Inner::Cpu { weight, .. } => weight.bytes() as u64,
            Inner::Windows(weight) | Inner::Composed(weight) => of(weight),
        };
        weight + self.bias.as_ref().map_or(0, of)
    }
}

/// The windows of all `pixels` of a result times a weight, `[pixels, out]`; their copies take at most `most` bytes at a time.
pub(super) fn in_bands(x: &Tensor, walk: &Windows, weight: &Tensor, pixels: usize, most: usize) -> Result<Tensor> {
    let band = (most / walk.window_bytes()).max(1);
    let turned = weight.t()?;
    let of = |first| fused::columns(x, walk, (first, band.min(pixels - first)))?.matmul(&turned);
    Tensor::cat(&(0..pixels).step_by(band).map(of).collect::<Result<Vec<_>>>()?, 0)
}

/// A checkpoint's `[out, in, places]` as `[out, places, in]`.
fn places_first<'a>(weight: &Part<'a>, shape: ConvShape, pool: &Pool) -> Result<Cow<'a, [u8]>> {
    let (size, places) = (dtype(weight.format)?.size_in_bytes(), shape.kernel * shape.kernel);
    if places == 1 {
        return Ok(Cow::Borrowed(weight.bytes));
    }
    let mut bytes = vec![0u8; weight.bytes.len()];
    let row = shape.inputs() * size;
    pool.chunks(&mut bytes, row, |out, to| {
        let from = &weight.bytes[out * row..][..row];
        for (at, to) in to.chunks_exact_mut(size).enumerate() {
            let (place, channel) = (at / shape.in_, at % shape.in_);
            to.copy_from_slice(&from[(channel * places + place) * size..][..size]);
        }
    });
    Ok(Cow::Owned(bytes))
}

fn dtype(format: Format) -> Result<DType> {
    match format {
        Format::F32 => Ok(DType::F32),
        Format::F16 => Ok(DType::F16),
        Format::BF16 => Ok(DType::BF16),
        other => candle_core::bail!("a convolution's weight is F32, F16 or BF16, not {}", other.name()),
    }
}
