//! Cosines and sines by position. Knows the frequencies it is given; refuses to know how a model scales them.

use std::sync::OnceLock;

use candle_core::{Device, Result, Tensor};

/// Positions whose angles are computed together, on first use: a table of a whole 128k context would cost a second at load.
const CHUNK_POSITIONS: usize = 64;

pub struct RopeTable {
    frequencies: Vec<f32>,
    /// One entry per chunk; within it `[position][cos.., sin..]`.
    chunks: Vec<OnceLock<Box<[f32]>>>,
    context: usize,
}

impl RopeTable {
    /// `frequencies` is HF's `inv_freq`: one per pair of a head's values, already scaled as the model wants it.
    pub fn new(frequencies: &[f32], context_tokens: usize) -> RopeTable {
        let chunks = (0..context_tokens.div_ceil(CHUNK_POSITIONS)).map(|_| OnceLock::new()).collect();
        RopeTable { frequencies: frequencies.to_vec(), chunks, context: context_tokens }
    }

    pub fn dim(&self) -> usize {
        self.frequencies.len() * 2
    }

    /// The cosines and the sines of one position.
    pub(crate) fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let (half, position) = (self.frequencies.len(), position as usize);
        let chunk = self.chunks[position / CHUNK_POSITIONS].get_or_init(|| {
            let first = position / CHUNK_POSITIONS * CHUNK_POSITIONS;
            let mut values = Vec::with_capacity(CHUNK_POSITIONS * half * 2);
            for p in first..first + CHUNK_POSITIONS {
                // The angle is rounded to f32 as the reference does it; its cosine is not rounded twice.
                let angles = self.frequencies.iter().map(|f| (p as f32 * f) as f64);
                values.extend(angles.clone().map(|a| a.cos() as f32));
                values.extend(angles.map(|a| a.sin() as f32));
            }
            values.into_boxed_slice()
        });
        chunk[position % CHUNK_POSITIONS * half * 2..][..half * 2].split_at(half)
    }

    pub(crate) fn check(&self, dim: usize, rows: usize, positions: &[u32]) -> Result<()> {
        if dim != self.dim() || rows != positions.len() {
            candle_core::bail!(
                "rope of {rows} rows of {dim}: the table is for {}, positions {}",
                self.dim(),
                positions.len()
            );
        }
        match positions.iter().find(|&&p| p as usize >= self.context) {
            Some(p) => candle_core::bail!("position {p} is outside the context of {} tokens", self.context),
            None => Ok(()),
        }
    }

    pub(crate) fn tensors(&self, positions: &[u32], device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (positions.len(), self.frequencies.len());
        let cos: Vec<f32> = positions.iter().flat_map(|&p| self.at(p).0.to_vec()).collect();
        let sin: Vec<f32> = positions.iter().flat_map(|&p| self.at(p).1.to_vec()).collect();
        Ok((Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?))
    }
}
