//! A weight matrix and its product with rows of activations. Refuses to know what the matrix is for.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Error, Module, Result, Tensor};

use super::{Rows, output};
use crate::linear::{Part, Weight, matmul};
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

/// A part of a stack on another device, and its plain values once somebody looks up rows.
struct Composed {
    out: usize,
    weight: Arc<QTensor>,
    product: QMatMul,
    plain: OnceLock<Tensor>,
}

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
        if !device.is_cpu() {
            return Linear::composed(parts, in_, device);
        }
        let weight = Weight::stack(parts, in_, pool).map_err(Error::msg)?;
        Ok(Linear { out: weight.out_features(), in_, inner: Inner::Cpu { weight, pool: pool.clone() } })
    }

    /// The same weight in candle's own form, on any device.
    pub(super) fn composed(parts: &[Part], in_: usize, device: &Device) -> Result<Linear> {
        let (mut composed, mut bytes) = (Vec::new(), 0);
        for part in parts {
            let size = part.format.size(part.out, in_).map_err(Error::msg)?;
            if size != part.bytes.len() {
                let (name, got) = (part.format.name(), part.bytes.len());
                candle_core::bail!("a {name} weight of [{}, {in_}] is {size} bytes, not {got}", part.out);
            }
            let storage = QStorage::from_data(Cow::Borrowed(part.bytes), device, part.format.ggml())?;
            let weight = Arc::new(QTensor::new(storage, (part.out, in_))?);
            let product = QMatMul::from_arc(weight.clone())?;
            composed.push(Composed { out: part.out, weight, product, plain: OnceLock::new() });
            bytes += size as u64;
        }
        let out = parts.iter().map(|p| p.out).sum();
        Ok(Linear { out, in_, inner: Inner::Composed { parts: composed, bytes } })
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
                let y = parts.iter().map(|part| part.product.forward(x)).collect::<Result<Vec<_>>>()?;
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
                let rows = ids.iter().map(|id| Composed::row(parts, *id as usize)).collect::<Result<Vec<_>>>()?;
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

    /// The memory it holds.
    pub fn bytes(&self) -> u64 {
        match &self.inner {
            Inner::Cpu { weight, .. } => weight.bytes() as u64,
            Inner::Composed { bytes, .. } => *bytes,
        }
    }
}

impl Composed {
    fn row(parts: &[Composed], mut index: usize) -> Result<Tensor> {
        let mut parts = parts.iter();
        let part = loop {
            let part = parts.next().expect("the index was checked");
            if index < part.out {
                break part;
            }
            index -= part.out;
        };
        let plain = match part.plain.get() {
            Some(plain) => plain,
            None => {
                let plain = part.weight.dequantize(&part.weight.device())?.to_dtype(DType::F32)?;
                part.plain.get_or_init(|| plain)
            }
        };
        plain.narrow(0, index, 1)
    }
}
