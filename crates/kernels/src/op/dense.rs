//! What encoders and decoders with biases are written in, on candle tensors: dense layers and layer norm. As everywhere in
//! `op`: a fused kernel on the CPU, candle's own words elsewhere.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};

use super::place::gpu;
use super::{LayerTensors, Linear, Part, Rows, composed, fused, geglu, output};
use crate::cuda::image::Activation as Behind;
use crate::gelu::gelu;
use crate::linear::{Activation, Finish, Residual, Walk, many};
use crate::pool::Pool;

/// A linear layer with an optional bias.
pub struct Dense {
    linear: Linear,
    /// `[out]`, f32; none where there is none.
    bias: Option<Tensor>,
    pool: Arc<Pool>,
}

impl Dense {
    /// Weights that read the same input, one below the other, and all their biases.
    pub fn new(parts: &[Part], in_: usize, bias: Option<Vec<f32>>, device: &Device, pool: &Arc<Pool>) -> Result<Dense> {
        let linear = Linear::stack(parts, in_, device, pool)?;
        let out = linear.out_features();
        if let Some(bias) = &bias
            && bias.len() != out
        {
            candle_core::bail!("{} biases for {out} outputs", bias.len());
        }
        let bias = bias.map(|bias| Tensor::from_vec(bias, out, device)).transpose()?;
        Ok(Dense { linear, bias, pool: pool.clone() })
    }

    /// Of what another one's `tensors` gave, or a copy of that.
    pub fn of_tensors(tensors: LayerTensors, pool: &Arc<Pool>) -> Result<Dense> {
        let linear = Linear::of_tensors(&tensors.weights)?;
        let bias = tensors.checked_bias(linear.out_features())?;
        Ok(Dense { linear, bias, pool: pool.clone() })
    }

    /// What it holds on a GPU; none on the CPU.
    pub fn tensors(&self) -> Option<LayerTensors> {
        Some(LayerTensors { weights: self.linear.tensors()?, bias: self.bias.clone() })
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, None, Activation::None)
    }

    /// `gelu(forward(x))`.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, None, Activation::Gelu)
    }

    /// `geglu(forward(x))`: `[rows, in]` to `[rows, out / 2]`.
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        if !self.linear.out_features().is_multiple_of(2) {
            candle_core::bail!("{} features are not two halves of one width", self.linear.out_features());
        }
        self.product(x, None, Activation::Geglu)
    }

    /// `residual + forward(x)`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.product(x, Some(residual), Activation::None)
    }

    fn product(&self, x: &Tensor, residual: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
        let ((rows, in_), out) = (x.dims2()?, self.linear.out_features());
        if in_ != self.linear.in_features() {
            candle_core::bail!("{in_} features meet a weight of [{out}, {}]", self.linear.in_features());
        }
        if let Some(residual) = residual
            && residual.dims2()? != (rows, out)
        {
            candle_core::bail!("a residual of {:?} beside a result of [{rows}, {out}]", residual.dims());
        }
        if gpu(x.device()) {
            let mut y = self.linear.forward(x)?;
            let behind = match activation {
                Activation::None => Behind::None,
                Activation::Gelu => Behind::Gelu,
                Activation::Geglu => Behind::Geglu,
            };
            let added = fused::Added { bias: self.bias.as_ref(), residual, ..Default::default() };
            if let Some(y) = fused::finish(&y, behind, &added)? {
                return Ok(y);
            }
            if let Some(bias) = &self.bias {
                y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
            }
            return match (activation, residual) {
                (Activation::Gelu, _) => y.gelu_erf(),
                (Activation::Geglu, _) => composed::geglu(&y),
                (Activation::None, Some(residual)) => y + residual,
                (Activation::None, None) => Ok(y),
            };
        }
        let bias = self.bias.as_ref().map(|bias| bias.to_vec1::<f32>()).transpose()?;
        if let Some(weight) = self.linear.takes_many(rows, activation) {
            let wide = if activation == Activation::Geglu { out / 2 } else { out };
            let mut y = output(rows * wide);
            let mut run = |residual: Residual| {
                let finish = Finish { bias: bias.as_deref(), shift: None, residual, activation };
                Rows::of(x)?
                    .with(|x, stride| many(&Walk::rows(x, stride, rows, in_), weight, &mut y, &finish, &self.pool))
            };
            match residual {
                None => run(Residual::None)?,
                Some(residual) => Rows::of(residual)?.with(|values, stride| run(Residual::Rows(values, stride)))??,
            }
            return Tensor::from_vec(y, (rows, wide), &Device::Cpu);
        }
        let y = match (residual, bias) {
            (None, None) => output(rows * out),
            (None, Some(bias)) => bias.repeat(rows),
            (Some(residual), None) => Rows::of(residual)?.to_vec()?,
            (Some(residual), Some(bias)) => {
                let mut y = Rows::of(residual)?.to_vec()?;
                y.chunks_exact_mut(out).for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, bias)| *y += bias));
                y
            }
        };
        let mut y = self.linear.onto(x, y)?;
        match activation {
            Activation::None => {}
            Activation::Gelu => gelu(&mut y, &self.pool),
            Activation::Geglu => return geglu(&Tensor::from_vec(y, (rows, out), &Device::Cpu)?, &self.pool),
        }
        Tensor::from_vec(y, (rows, out), &Device::Cpu)
    }

    /// The layer without its bias: an embedding's rows.
    pub fn linear(&self) -> &Linear {
        &self.linear
    }

    pub fn bytes(&self) -> u64 {
        self.linear.bytes() + self.bias.as_ref().map_or(0, |bias| 4 * bias.elem_count() as u64)
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias`, over each row of `[rows, features]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32, pool: &Pool) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if weight.dims1()? != width || bias.dims1()? != width || width == 0 {
        candle_core::bail!("a norm of {:?} with {:?} and {:?}", x.dims(), weight.dims(), bias.dims());
    }
    if gpu(x.device()) {
        if let Some(y) = fused::layer_norm(x, weight, bias, eps)? {
            return Ok(y);
        }
        // In f32, whatever `x` is in.
        let full = x.to_dtype(DType::F32)?;
        let centred = full.broadcast_sub(&full.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normal = centred.broadcast_div(&(variance + eps as f64)?.sqrt()?)?;
        return normal.broadcast_mul(weight)?.broadcast_add(bias)?.to_dtype(x.dtype());
    }
    let mut y = output(rows * width);
    let (weight, bias) = (weight.unsqueeze(0)?, bias.unsqueeze(0)?);
    Rows::of(&weight)?.with(|weight, _| {
        Rows::of(&bias)?.with(|bias, _| {
            Rows::of(x)?.with(|x, stride| {
                crate::layer_norm::layer_norm(x, stride, &weight[..width], &bias[..width], eps, &mut y, pool)
            })
        })?
    })??;
    Tensor::from_vec(y, (rows, width), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;
    use crate::testing::{Random, same_bits};

    fn close(a: &Tensor, b: &Tensor) {
        let largest = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest < 2e-4, "they differ by {largest}");
    }

    #[test]
    fn a_dense_layer_adds_its_bias_and_what_it_is_given() {
        let mut random = Random::fresh();
        let pool = Arc::new(Pool::new(2));
        let (rows, in_, out) = (150, 48, 33);
        let (w, b) = (random.normal(out * in_), random.normal(out));
        let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
        let part = Part { format: Format::F32, out, bytes: &bytes };
        let dense = Dense::new(&[part], in_, Some(b.clone()), &Device::Cpu, &pool).unwrap();
        let x = Tensor::from_vec(random.normal(rows * in_), (rows, in_), &Device::Cpu).unwrap();
        let r = Tensor::from_vec(random.normal(rows * out), (rows, out), &Device::Cpu).unwrap();
        let w = Tensor::from_vec(w, (out, in_), &Device::Cpu).unwrap();
        let b = Tensor::from_vec(b, out, &Device::Cpu).unwrap();
        let plain = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
        close(&dense.forward(&x).unwrap(), &plain);
        close(&dense.forward_gelu(&x).unwrap(), &plain.gelu_erf().unwrap());
        close(&dense.forward_add(&x, &r).unwrap(), &(plain + &r).unwrap());
        for row in [0, 149] {
            let one = |t: &Tensor| t.narrow(0, row, 1).unwrap();
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (many, alone) in [
                (dense.forward_add(&x, &r), dense.forward_add(&one(&x), &one(&r))),
                (dense.forward_gelu(&x), dense.forward_gelu(&one(&x))),
            ] {
                let case = || format!("row {row}, seed {}", random.seed);
                same_bits(&bits(&one(&many.unwrap())), &bits(&alone.unwrap()), case);
            }
        }
        assert!(Dense::new(&[part], in_, Some(vec![0.0]), &Device::Cpu, &pool).is_err());
        assert!(dense.forward_add(&x, &x).is_err());
        assert!(dense.forward_geglu(&x).is_err(), "33 outputs have no halves");
    }

    #[test]
    fn a_gated_layer_is_the_gate_of_its_product_fused_or_not() {
        let mut random = Random::fresh();
        let pool = Arc::new(Pool::new(2));
        for (rows, in_, ff) in [(150, 70, 128), (40, 200, 33), (3, 16, 64)] {
            let bytes: Vec<u8> = random.normal(2 * ff * in_).iter().flat_map(|v| v.to_le_bytes()).collect();
            let part = Part { format: Format::F32, out: 2 * ff, bytes: &bytes };
            let dense = Dense::new(&[part], in_, Some(random.normal(2 * ff)), &Device::Cpu, &pool).unwrap();
            let x = Tensor::from_vec(random.normal(rows * in_), (rows, in_), &Device::Cpu).unwrap();
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (fused, both) = (dense.forward_geglu(&x).unwrap(), dense.forward(&x).unwrap());
            let parted = geglu(&both, &pool).unwrap();
            same_bits(&bits(&parted), &bits(&fused), || format!("{ff} wide, seed {}", random.seed));
            close(&composed::geglu(&both).unwrap(), &fused);
        }
    }

    #[test]
    fn a_norm_equals_candles_own_words() {
        let mut random = Random::fresh();
        let pool = Pool::new(1);
        let tensor = |v: Vec<f32>, dims: &[usize]| Tensor::from_vec(v, dims, &Device::Cpu).unwrap();
        let (x, w, b) = (
            tensor(random.normal(20 * 33), &[20, 33]),
            tensor(random.normal(33), &[33]),
            tensor(random.normal(33), &[33]),
        );
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let plain = centred.broadcast_div(&(variance + 1e-5).unwrap().sqrt().unwrap()).unwrap();
        let plain = plain.broadcast_mul(&w).unwrap().broadcast_add(&b).unwrap();
        close(&layer_norm(&x, &w, &b, 1e-5, &pool).unwrap(), &plain);
        assert!(layer_norm(&x, &w, &x, 1e-5, &pool).is_err());
    }
}
