//! Attention of a batch's images or texts: every row of a part looks at its own part. As everywhere in `op`: a fused kernel on the
//! CPU and one on a GPU, which reads keys and values where a product left them; candle's own words elsewhere.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::fused;
use super::memory::{self, Memory, attend};
use super::place::gpu;
use crate::attend::Shape;
use crate::pool::Pool;

/// What is composed writes its scores to memory, so many bytes of f32 at a time.
const SCORE_BYTES: usize = 256 << 20;

/// What the parts of a batch look at.
pub struct Scene {
    shape: Shape,
    parts: usize,
    causal: bool,
    inner: Inner,
}

enum Inner {
    Cpu(Vec<Memory>),
    /// `[parts * positions, 2 * heads * dim]`, keys and then values, perhaps inside a wider tensor.
    Gpu(Option<Tensor>),
}

impl Scene {
    /// Room for `parts` times `shape.positions`; nothing can be seen yet.
    pub fn new(shape: Shape, parts: usize, device: &Device, pool: &Arc<Pool>) -> Result<Scene> {
        if gpu(device) {
            return Ok(Scene { shape, parts, causal: false, inner: Inner::Gpu(None) });
        }
        let memories = (0..parts).map(|_| Memory::new(shape, DType::F32, device, pool)).collect::<Result<_>>()?;
        Ok(Scene { shape, parts, causal: false, inner: Inner::Cpu(memories) })
    }

    /// Row `r` of a part sees the positions up to its own alone: of a text, what was said before.
    pub fn causal(self) -> Scene {
        Scene { causal: true, ..self }
    }

    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Shows keys and values, `[parts * positions, 2 * heads * dim]`: keys, then values in each row. A GPU keeps the tensor itself.
    pub fn show(&mut self, both: &Tensor) -> Result<()> {
        let Shape { positions, heads, dim } = self.shape;
        let width = heads * dim;
        if both.dims2()? != (self.parts * positions, 2 * width) {
            candle_core::bail!("keys and values of {:?} for {} times {:?}", both.dims(), self.parts, self.shape);
        }
        match &mut self.inner {
            Inner::Gpu(seen) => *seen = Some(both.clone()),
            Inner::Cpu(memories) => {
                for (part, memory) in memories.iter_mut().enumerate() {
                    let rows = both.narrow(0, part * positions, positions)?;
                    memory.write(0, &rows.narrow(1, 0, width)?, &rows.narrow(1, width, width)?)?;
                }
            }
        }
        Ok(())
    }

    /// `q` is `[parts * rows, heads * dim]`, a part's rows one behind the other, and so is the result.
    pub fn attend(&self, q: &Tensor, scale: f32) -> Result<Tensor> {
        let Shape { positions, heads, dim } = self.shape;
        let (count, width) = q.dims2()?;
        if width != heads * dim || count == 0 || !count.is_multiple_of(self.parts) {
            candle_core::bail!("queries of {:?} look at {} times {:?}", q.dims(), self.parts, self.shape);
        }
        let rows = count / self.parts;
        let seen = match &self.inner {
            Inner::Cpu(memories) => {
                let of = |memory| (0..rows).map(move |row| (memory, self.sees(row)));
                let sights: Vec<_> = memories.iter().flat_map(of).collect();
                return attend(q, &sights, scale);
            }
            Inner::Gpu(None) => candle_core::bail!("nothing was shown"),
            Inner::Gpu(Some(seen)) => seen,
        };
        let (keys, values) = (seen.narrow(1, 0, width)?, seen.narrow(1, width, width)?);
        let batch = fused::Batch { parts: self.parts, rows, seen: positions, heads, causal: self.causal, scale };
        if dim == crate::cuda::attend::DIM
            && let Some(y) = fused::attend(q, &keys, &values, &batch)?
        {
            return Ok(y);
        }
        let at_once = (SCORE_BYTES / (4 * heads * positions)).max(1);
        let mut parts = Vec::new();
        for part in 0..self.parts {
            let shaped = |t: &Tensor| t.narrow(0, part * positions, positions)?.reshape((positions, heads, dim));
            let (keys, values) = (shaped(&keys)?, shaped(&values)?);
            for first in (0..rows).step_by(at_once) {
                let count = at_once.min(rows - first);
                let sees: Vec<usize> = (first..first + count).map(|row| self.sees(row)).collect();
                let q = q.narrow(0, part * rows + first, count)?;
                parts.push(memory::in_candles_words(&q, &keys, &values, &sees, scale)?);
            }
        }
        Tensor::cat(&parts, 0)
    }

    /// Positions that a part's row sees.
    fn sees(&self, row: usize) -> usize {
        if self.causal { self.shape.positions.min(row + 1) } else { self.shape.positions }
    }

    /// Once everything was shown.
    pub fn bytes(&self) -> u64 {
        match &self.inner {
            Inner::Cpu(memories) => memories.iter().map(Memory::bytes).sum(),
            Inner::Gpu(seen) => {
                seen.as_ref().map_or(0, |seen| (seen.elem_count() * seen.dtype().size_in_bytes()) as u64)
            }
        }
    }
}
