//! A tensor as a file has it, on its way into a layer: its shape is checked and its precision changed here. Refuses to
//! know files and layers.

use std::borrow::Cow;

use candle_core::DType;
use kernels::Format;
use prediction::PredictError;

/// A tensor's values as the file has them, row-major, little-endian; f32, f16 or bf16.
pub struct Raw<'a> {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Raw<'a> {
    /// Refuses what is not a number that layers are made of.
    pub fn new(name: &str, dtype: DType, shape: &[usize], bytes: Cow<'a, [u8]>) -> Result<Self, PredictError> {
        if ![DType::F32, DType::F16, DType::BF16].contains(&dtype) {
            let why = format!("tensor {name} is {}; f32, f16 and bf16 are run", dtype.as_str());
            return Err(PredictError::Operator(why));
        }
        Ok(Self { name: name.into(), dtype, shape: shape.to_vec(), bytes })
    }

    pub fn of_shape(self, expected: &[usize]) -> Result<Self, PredictError> {
        if self.shape == expected {
            return Ok(self);
        }
        let Self { name, shape, .. } = self;
        Err(PredictError::Operator(format!("tensor {name} is {shape:?}; the config needs {expected:?}")))
    }

    pub fn to_f32(&self) -> Vec<f32> {
        let two = self.bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.dtype {
            DType::F16 => two.map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            DType::BF16 => two.map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
            _ => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }

    /// Other values of the same shape, in `dtype`.
    pub fn with_values(self, values: &[f32], dtype: DType) -> Self {
        let bytes: Vec<u8> = match dtype {
            DType::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        Self { dtype, bytes: Cow::Owned(bytes), ..self }
    }

    pub fn converted(self, dtype: DType) -> Self {
        if self.dtype == dtype {
            return self;
        }
        let values = self.to_f32();
        self.with_values(&values, dtype)
    }

    /// The kernels' word for its precision.
    pub fn format(&self) -> Format {
        match self.dtype {
            DType::F16 => Format::F16,
            DType::BF16 => Format::BF16,
            _ => Format::F32,
        }
    }
}
