//! A weight matrix and its product with rows of activations. Refuses to know what the matrix is for.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Error, Module, Result, Tensor};

use super::place::gpu;
use super::{Rows, output};
use crate::linear::{Activation, MANY_ROWS, Part, Weight, fits, matmul};
use crate::{Format, Pool};

/// `[out, in]`, packed for the kernels on the CPU, in candle's own form elsewhere.
pub struct Linear {
    out: usize,
    in_: usize,
    inner: Inner,
}

enum Inner {
    Cpu { weight: Weight, pool: Arc<Pool> },
    Composed { parts: Vec<Composed>, bytes: u64 },
}

/// A part of a stack on another device.
struct Composed {
    out: usize,
    weight: Held,
}

enum Held {
    /// `[out, in]`, in its own precision: activations are rounded to it for the product.
    Plain(Tensor),
    /// GGUF blocks. Activations stay f32.
    Blocks(QMatMul),
}

/// Up to so many rows meet blocks one by one: cheaper than unpacking the whole weight, and a row's result does not depend
/// on the others.
const ROWS_ONE_BY_ONE: usize = 16;

const KERNEL_VALUES: usize = 64;

impl Linear {
    /// A weight from GGUF blocks or plain row-major values.
    pub fn from_bytes(
        format: Format,
        out: usize,
        in_: usize,
        bytes: &[u8],
        device: &Device,
        pool: &Arc<Pool>,
    ) -> Result<Linear> {
        Linear::stack(&[Part { format, out, bytes }], in_, device, pool)
    }

    /// Weights that read the same input, one below the other (q, k and v; gate and up): one product instead of several.
    /// The formats may differ.
    pub fn stack(parts: &[Part], in_: usize, device: &Device, pool: &Arc<Pool>) -> Result<Linear> {
        if gpu(device) {
            return Linear::composed(parts, in_, device);
        }
        let weight = Weight::stack(parts, in_, pool).map_err(Error::msg)?;
        Ok(Linear { out: weight.out_features(), in_, inner: Inner::Cpu { weight, pool: pool.clone() } })
    }

    /// The same weight in candle's own form, on any device.
    pub(super) fn composed(parts: &[Part], in_: usize, device: &Device) -> Result<Linear> {
        let mut bytes = 0;
        for part in parts {
            let size = part.format.size(part.out, in_).map_err(Error::msg)?;
            if size != part.bytes.len() {
                let (name, got) = (part.format.name(), part.bytes.len());
                candle_core::bail!("a {name} weight of [{}, {in_}] is {size} bytes, not {got}", part.out);
            }
            bytes += size as u64;
        }
        let out = parts.iter().map(|p| p.out).sum();
        // Plain values of one format are one weight: one product, whose results need not be put side by side.
        let alike =
            parts.len() > 1 && parts.iter().all(|part| part.format == parts[0].format && part.format.block_len() == 1);
        let all = alike.then(|| parts.iter().map(|part| part.bytes).collect::<Vec<_>>().concat());
        let one = all.as_ref().map(|bytes| [Part { format: parts[0].format, out, bytes }]);
        let held = |part: &Part| Ok(Composed { out: part.out, weight: Held::new(part, in_, device)? });
        let parts = one.as_ref().map_or(parts, |one| one).iter().map(held).collect::<Result<_>>()?;
        Ok(Linear { out, in_, inner: Inner::Composed { parts, bytes } })
    }

    /// Parts that lie on a device already, one below the other: `[out, in]` each, plain values.
    pub(super) fn of_tensors(parts: &[Tensor]) -> Result<Linear> {
        let Some(first) = parts.first() else { candle_core::bail!("a weight of no parts") };
        let (in_, mut out, mut bytes) = (first.dim(1)?, 0, 0);
        let mut composed = Vec::with_capacity(parts.len());
        for part in parts {
            let (own, inputs) = part.dims2()?;
            if inputs != in_ {
                candle_core::bail!("parts of {in_} and {inputs} features of one weight");
            }
            out += own;
            bytes += (part.elem_count() * part.dtype().size_in_bytes()) as u64;
            composed.push(Composed { out: own, weight: Held::Plain(part.clone()) });
        }
        Ok(Linear { out, in_, inner: Inner::Composed { parts: composed, bytes } })
    }

    /// What `of_tensors` takes; none on the CPU, and where a part is in blocks.
    pub(super) fn tensors(&self) -> Option<Vec<Tensor>> {
        let Inner::Composed { parts, .. } = &self.inner else { return None };
        let plain = |part: &Composed| match &part.weight {
            Held::Plain(weight) => Some(weight.clone()),
            Held::Blocks(_) => None,
        };
        parts.iter().map(plain).collect()
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, None)
    }

    /// `residual + forward(x)`, in one pass over the result.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.product(x, Some(residual))
    }

    fn product(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (rows, in_) = x.dims2()?;
        if in_ != self.in_ {
            candle_core::bail!("{in_} features meet a weight of [{}, {}]", self.out, self.in_);
        }
        if let Some(residual) = residual
            && residual.dims2()? != (rows, self.out)
        {
            candle_core::bail!("a residual of {:?} beside a result of [{rows}, {}]", residual.dims(), self.out);
        }
        match &self.inner {
            Inner::Cpu { weight, pool } => {
                let mut y = match residual {
                    Some(residual) => Rows::of(residual)?.to_vec()?,
                    None => output(rows * self.out),
                };
                Rows::of(x)?.with(|x, stride| matmul(x, stride, rows, weight, &mut y, residual.is_some(), pool))?;
                Tensor::from_vec(y, (rows, self.out), x.device())
            }
            Inner::Composed { parts, .. } => {
                let y = parts.iter().map(|part| part.weight.product(x)).collect::<Result<Vec<_>>>()?;
                let y = Tensor::cat(&y, 1)?;
                residual.map_or(Ok(y.clone()), |residual| y + residual)
            }
        }
    }

    /// `y + forward(x)`, on the CPU, where `y` holds a bias or a residual.
    pub(super) fn onto(&self, x: &Tensor, mut y: Vec<f32>) -> Result<Vec<f32>> {
        let (rows, in_) = x.dims2()?;
        let Inner::Cpu { weight, pool } = &self.inner else {
            candle_core::bail!("a weight that is not on the CPU");
        };
        if in_ != self.in_ || y.len() != rows * self.out {
            candle_core::bail!("{in_} features and {} results meet a weight of [{}, {}]", y.len(), self.out, self.in_);
        }
        Rows::of(x)?.with(|x, stride| matmul(x, stride, rows, weight, &mut y, true, pool))?;
        Ok(y)
    }

    /// The packed weight, if a product of so many rows can be finished in one pass over the result.
    pub(super) fn takes_many(&self, rows: usize, activation: Activation) -> Option<&Weight> {
        match &self.inner {
            Inner::Cpu { weight, .. } if rows >= MANY_ROWS && fits(weight, activation) => Some(weight),
            _ => None,
        }
    }

    /// The weight's own rows, as f32: an embedding lookup. `[ids, in]`.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.out) {
            candle_core::bail!("row {id} of a weight of [{}, {}]", self.out, self.in_);
        }
        match &self.inner {
            Inner::Cpu { weight, .. } => {
                let mut rows = output(ids.len() * self.in_);
                for (id, row) in ids.iter().zip(rows.chunks_exact_mut(self.in_)) {
                    weight.row(*id as usize, row);
                }
                Tensor::from_vec(rows, (ids.len(), self.in_), &Device::Cpu)
            }
            Inner::Composed { parts, .. } => {
                let rows = ids.iter().map(|id| Composed::row(parts, *id)).collect::<Result<Vec<_>>>()?;
                Tensor::cat(&rows, 0)
            }
        }
    }

    pub fn out_features(&self) -> usize {
        self.out
    }

    pub fn in_features(&self) -> usize {
        self.in_
    }

    /// What `bytes` of a stack of (format, outputs) will be, before there is one.
    pub fn bytes_for(parts: &[(Format, usize)], in_: usize, device: &Device) -> Result<u64> {
        if !gpu(device) {
            return Weight::bytes_for(parts, in_).map_err(Error::msg);
        }
        let size = |&(format, out): &(Format, usize)| format.size(out, in_).map(|bytes| bytes as u64);
        parts.iter().map(size).sum::<std::result::Result<_, _>>().map_err(Error::msg)
    }

    /// The memory it holds.
    pub fn bytes(&self) -> u64 {
        match &self.inner {
            Inner::Cpu { weight, .. } => weight.bytes() as u64,
            Inner::Composed { bytes, .. } => *bytes,
        }
    }
}

impl Composed {
    fn row(parts: &[Composed], mut index: u32) -> Result<Tensor> {
        for part in parts {
            if (index as usize) < part.out {
                return part.weight.row(index);
            }
            index -= part.out as u32;
        }
        candle_core::bail!("row {index} behind the last")
    }
}

impl Held {
    fn new(part: &Part, in_: usize, device: &Device) -> Result<Held> {
        let dtype = match part.format {
            Format::F32 => DType::F32,
            Format::F16 => DType::F16,
            Format::BF16 => DType::BF16,
            blocks => {
                let storage = QStorage::from_data(Cow::Borrowed(part.bytes), device, blocks.ggml())?;
                let weight = QTensor::new(storage, (part.out, in_))?;
                // candle's kernel for one row reads that many values at once, past the end of a shorter rest.
                return match in_ % KERNEL_VALUES {
                    0 => QMatMul::from_qtensor(weight).map(Held::Blocks),
                    _ => weight.dequantize(device).map(Held::Plain),
                };
            }
        };
        let weight = Tensor::from_raw_buffer(part.bytes, dtype, &[part.out, in_], device)?;
        // The reference of the tests is as exact as can be.
        Ok(Held::Plain(if gpu(device) { weight } else { weight.to_dtype(DType::F32)? }))
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Held::Plain(weight) => x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(x.dtype()),
            Held::Blocks(product) if x.dim(0)? <= ROWS_ONE_BY_ONE => {
                let rows = (0..x.dim(0)?).map(|row| product.forward(&x.narrow(0, row, 1)?));
                Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
            }
            Held::Blocks(product) => product.forward(x),
        }
    }

    fn row(&self, index: u32) -> Result<Tensor> {
        match self {
            Held::Plain(weight) => weight.narrow(0, index as usize, 1)?.to_dtype(DType::F32),
            Held::Blocks(blocks) => blocks.embedding(&Tensor::new(&[index], &Device::Cpu)?),
        }
    }
}
