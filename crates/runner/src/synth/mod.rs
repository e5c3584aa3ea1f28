//! Random weights of a true shape: for measuring speed and memory where the real weights are not at hand, never for
//! answers. The values of a tensor hang on the seed, its name and the precision alone, so that weights made where they are
//! used (`Synth::bytes`) are those that would have been written (`Synth::write`), byte for byte.
//!
//! Refuses to know models: which tensors there are, how large and how they are scaled is a model's `Plan`.

mod random;
mod write;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::DType;
use prediction::PredictError;

use crate::Origin;
use random::Values;
pub use write::Written;

/// What one thread makes at once: large enough to pay for the asking, small enough for the second-level cache.
const BLOCK_BYTES: usize = 1 << 20;

/// A shape that a model's folder offers.
pub struct Shape {
    /// E.g. `llama-3-8b`.
    pub name: &'static str,
    /// For people: whose shape it is.
    pub about: &'static str,
    /// The precision that the real weights are published in.
    pub dtype: &'static str,
    /// False for those that only tests use.
    pub listed: bool,
    /// For weights of this precision.
    pub plan: fn(&str) -> Plan,
}

/// What a folder of such weights holds.
pub struct Plan {
    /// Configuration and tokenizer: name and content.
    pub files: Vec<(&'static str, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

pub struct Tensor {
    /// Up to the last `/` the file that it stands in, within the folder and without its ending; `model` where there is none.
    pub name: String,
    pub shape: Vec<usize>,
    pub fill: Fill,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// 1 everywhere: the gains of norms.
    Ones,
    /// Normal around 0 with this standard deviation.
    Normal(f32),
    /// Normal around 1 with this standard deviation.
    NearOne(f32),
}

/// Weights that exist once somebody asks for them.
pub struct Synth {
    shape: &'static str,
    dtype: DType,
    seed: u64,
    plan: Plan,
    index: BTreeMap<String, usize>,
    /// One per fill of the plan.
    values: Vec<(Fill, Values)>,
}

impl Synth {
    /// `dtype` is f32, f16 or bf16.
    pub fn new(shape: &Shape, dtype: &str, seed: u64) -> Result<Self, PredictError> {
        let kind = match dtype {
            "f32" => DType::F32,
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            other => return Err(PredictError::FixInput(format!("dtype {other}: unknown; f32, f16 and bf16 are"))),
        };
        let plan = (shape.plan)(dtype);
        let index = plan.tensors.iter().zip(0..).map(|(tensor, at)| (tensor.name.clone(), at)).collect();
        let mut values: Vec<(Fill, Values)> = Vec::new();
        for Tensor { fill, .. } in &plan.tensors {
            if values.iter().all(|(known, _)| known != fill) {
                let made = Values::of(*fill, kind).map_err(|error| PredictError::Operator(error.to_string()))?;
                values.push((*fill, made));
            }
        }
        Ok(Self { shape: shape.name, dtype: kind, seed, plan, index, values })
    }

    /// "random weights of the shape llama-3-8b (bf16, seed 0)"
    pub fn title(&self) -> String {
        title(self.shape, self.dtype.as_str(), self.seed)
    }

    pub fn origin(&self) -> Origin {
        Origin::Random { shape: self.shape, dtype: self.dtype, seed: self.seed }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// What a file beside the tensors would hold.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.plan.files.iter().find(|(known, _)| *known == name).map(|(_, content)| content.as_slice())
    }

    /// Of all tensors, in the plan's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.plan.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    pub fn shape(&self, tensor: &str) -> Result<&[usize], PredictError> {
        Ok(&self.tensor(tensor)?.shape)
    }

    /// The tensor's values, row-major, made now by as many threads as there are cores.
    pub fn bytes(&self, tensor: &str) -> Result<Vec<u8>, PredictError> {
        let tensor = self.tensor(tensor)?;
        let mut bytes = vec![0; self.size(tensor) as usize];
        let blocks = bytes.chunks_mut(BLOCK_BYTES).enumerate().map(std::sync::Mutex::new).collect::<Vec<_>>();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                // Nobody else asks for this block.
                let mut block = block.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let (number, bytes) = &mut *block;
                self.fill(tensor, *number, bytes);
            }
        };
        std::thread::scope(|scope| {
            (1..threads().min(blocks.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        drop(blocks);
        Ok(bytes)
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.plan.tensors.iter().map(|tensor| self.size(tensor)).sum()
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, PredictError> {
        let missing = || PredictError::Operator(format!("the shape {} has no tensor {name}", self.shape));
        self.index.get(name).map(|&at| &self.plan.tensors[at]).ok_or_else(missing)
    }

    fn size(&self, tensor: &Tensor) -> u64 {
        tensor.shape.iter().product::<usize>() as u64 * self.dtype.size_in_bytes() as u64
    }

    /// Makes block `number` of a tensor: `BLOCK_BYTES`, or what is left at its end.
    fn fill(&self, tensor: &Tensor, number: usize, bytes: &mut [u8]) {
        let values = self.values.iter().find(|(fill, _)| *fill == tensor.fill).map(|(_, values)| values);
        values.expect("made by new").fill(random::key(self.seed, &tensor.name), number * BLOCK_BYTES, bytes);
    }
}

/// What every figure from such weights has to say.
pub fn title(shape: &str, dtype: &str, seed: u64) -> String {
    format!("random weights of the shape {shape} ({dtype}, seed {seed})")
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests;
