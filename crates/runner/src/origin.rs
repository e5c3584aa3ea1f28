//! Which bytes opened weights are of, without a look at them: what was made of two of the same origin is the same. Refuses to know
//! what is made.

use candle_core::DType;

use crate::map::FileIdentity;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Mapped files, in the order in which they were opened.
    Files(Vec<FileIdentity>),
    /// Random weights: the same for the same words.
    Random { shape: &'static str, dtype: DType, seed: u64 },
}
