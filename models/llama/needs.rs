//! What a Llama takes of its device, from headers and the deployment's numbers: exact for weights and caches, an upper
//! bound for what a step makes. Refuses to allocate anything.

use candle_core::Device;
use kernels::op::KvCache;
use prediction::PredictError;

use super::config::Config;
use super::weights::Opened;

/// Bytes on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Repacked as the device's kernels read them.
    pub weights: u64,
    /// Every block of it.
    pub cache: u64,
    /// The activations of the largest step, logits included.
    pub step: u64,
}

/// How a Llama is to be loaded.
pub struct Load<'a> {
    pub device: &'a Device,
    pub precision: Option<&'a str>,
    /// Predictions at once.
    pub slots: usize,
    /// Positions of each.
    pub context: usize,
    /// Of the cache, of 64 positions each.
    pub blocks: usize,
    /// Rows of the largest step.
    pub rows: usize,
    /// Whatever else is in a step, a row's numbers are the same to the bit. The CPU always has it so.
    pub batch_invariant: bool,
}

impl Needs {
    pub fn of(opened: &Opened, load: &Load) -> Result<Self, PredictError> {
        #[cfg(feature = "cuda")]
        if let Some(Ok(fit)) = super::cuda::fit(opened, load) {
            return super::gpu::needs(opened, fit, load);
        }
        let &Load { device, precision, slots, blocks, rows, .. } = load;
        let Config { kv_heads, head_dim, layers, .. } = opened.config;
        let layer = KvCache::bytes_for(blocks, kv_heads, head_dim, opened.cache_dtype(precision)?, device);
        Ok(Self {
            weights: opened.net_bytes(device, precision)?,
            cache: layers as u64 * layer,
            step: step_bytes(&opened.config, rows, slots, opened.vocabulary()?),
        })
    }

    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.step
    }

    /// Refuses, before anything is allocated, what the device has no room for. On the CPU a cache takes memory as
    /// positions are written, and is not counted.
    pub fn check(&self, device: &Device) -> Result<(), PredictError> {
        let Some(memory) = runner::device::memory_of(device) else { return Ok(()) };
        let needed = if device.is_cpu() { self.weights + self.step } else { self.total() };
        let why = |there: String| {
            let Self { weights, cache, step } = self;
            let of = format!("weights {weights}, cache {cache}, a step {step}");
            format!("the model needs {needed} bytes ({of}); the device has {there}")
        };
        if needed > memory.total_bytes {
            return Err(PredictError::Operator(why(format!("{} bytes in all", memory.total_bytes))));
        }
        if needed > memory.free_bytes {
            return Err(PredictError::OutOfMemory(why(format!("{} bytes free", memory.free_bytes))));
        }
        Ok(())
    }
}

/// In f32, all alive at once in the widest place of a layer: the residual stream before and after, what its norm gives,
/// q, k and v as they came and turned, what attention saw, gate and up and their product; at the end a row of logits for
/// each of `slots`, on the device and read from it.
fn step_bytes(config: &Config, rows: usize, slots: usize, vocabulary: usize) -> u64 {
    let &Config { hidden, inner, heads, kv_heads, head_dim, .. } = config;
    let row = 3 * hidden + (3 * heads + 3 * kv_heads) * head_dim + 3 * inner;
    4 * (rows * row + 2 * slots * vocabulary) as u64
}
