//! What `precision` asks for: the type that plain numbers are computed in, or what the weights of products are rounded to while
//! activations stay what they are. Refuses to know devices.

use candle_core::DType;
use kernels::Format;
use prediction::PredictError;

use super::files::Role;

/// What plain weights are rounded to at load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounded {
    /// Blocks of 32 with an f16 scale.
    Q8_0,
    /// The same in four bits; the head stays in eight.
    Q4_0,
    /// Whole numbers of eight bits, a scale per row.
    Int8,
    /// e4m3, a scale per row.
    Fp8,
}

const ALL: [(&str, Rounded); 4] =
    [("q8_0", Rounded::Q8_0), ("q4_0", Rounded::Q4_0), ("int8", Rounded::Int8), ("fp8", Rounded::Fp8)];

impl Rounded {
    /// None for the types of plain numbers, for `None`, and for what nobody knows.
    pub fn of(precision: Option<&str>) -> Option<Rounded> {
        ALL.into_iter().find(|(name, _)| Some(*name) == precision).map(|(_, rounded)| rounded)
    }

    /// What this tensor is rounded to, if it is. An embedding that is no head is only looked up: it stays.
    pub fn at(self, role: Role, tied: bool) -> Option<Rounded> {
        match (self, role) {
            (_, Role::Embed) if !tied => None,
            (Self::Q4_0, Role::Embed | Role::Head) => Some(Self::Q8_0),
            _ => Some(self),
        }
    }

    /// The same in GGUF's blocks.
    pub fn format(self, role: Role, tied: bool) -> Result<Option<Format>, PredictError> {
        match self.at(role, tied) {
            None => Ok(None),
            Some(Self::Q8_0) => Ok(Some(Format::Q8_0)),
            Some(Self::Q4_0) => Ok(Some(Format::Q4_0)),
            Some(Self::Int8 | Self::Fp8) => {
                let name = ALL.iter().find(|(_, rounded)| *rounded == self).map_or("", |(name, _)| name);
                Err(PredictError::Operator(format!(
                    "precision {name}: a scale per row is read by our CUDA kernels only; q8_0 has eight bits everywhere"
                )))
            }
        }
    }
}

/// What `precision` says of plain numbers.
pub fn plain(precision: Option<&str>) -> Option<&str> {
    precision.filter(|_| Rounded::of(precision).is_none())
}

/// The type of keys and values beside plain numbers of this one.
pub fn cached(plain: DType) -> DType {
    if plain == DType::F32 { DType::F32 } else { DType::F16 }
}
