//! What the pipeline has under it: rows of tokens go in, a token for every row that wants one comes out. [`Direct`] is the
//! net in tensors, which computes when it is told to; another may be a step ahead of who reads its tokens. Refuses to know
//! predictions, text and who takes part in a step.

use candle_core::{DType, Result, Tensor};
use kernels::attention::BLOCK;
use kernels::op::{self, Ask, NotANumber};
use prediction::Kept;

use super::net::{Cache, Net};
use super::rows::Rows;

/// A row's token, unless its logits were none.
pub type Chosen = std::result::Result<u32, NotANumber>;

/// A net with its cache on a device.
pub trait Engine {
    /// Entries of the vocabulary that have weights.
    fn vocabulary(&self) -> usize;

    /// Blocks of 64 positions in its cache.
    fn blocks(&self) -> usize;

    /// Positions that one sequence can have.
    fn context(&self) -> usize;

    /// The device's memory that the weights take.
    fn weights_bytes(&self) -> u64;

    /// All of the device's memory that it holds between steps.
    fn bytes(&self) -> u64;

    /// The host's memory that `keep` takes; 0 where there is nothing to keep.
    fn kept_bytes(&self) -> u64 {
        0
    }

    /// A copy of the weights in the host's memory, for another engine of the same.
    fn keep(&self) -> Result<Option<Box<dyn Kept>>> {
        Ok(None)
    }

    /// What a step reads of that memory while its predictions have `positions` in the cache, all together: weights once,
    /// but of an embedding that is not also the head only rows; keys and values of the positions.
    fn step_bytes(&self, positions: usize) -> u64;

    /// Bytes per second that the device's memory gives at most, measured now; not a number where it cannot be.
    fn bandwidth(&self) -> Result<f64>;

    /// What activations are rounded to on their way; f32 where they are not.
    fn activations(&self) -> DType {
        DType::F32
    }

    /// Whether a step may be sent while the tokens of the one before have not been taken: [`Rows::push_next`] stands for
    /// those, and at most two steps are under way.
    fn looks_ahead(&self) -> bool {
        false
    }

    /// Begins a step: keys and values of all rows into the cache, and one token for every wanted row by what it asks.
    fn send(&mut self, rows: &Rows, asks: &[Ask]) -> Result<()>;

    /// Waits for the oldest step that is under way; its tokens in the order of the wanted rows.
    fn take(&mut self) -> Result<Vec<Chosen>>;

    /// A step from its beginning to its end.
    fn step(&mut self, rows: &Rows, asks: &[Ask]) -> Result<Vec<Chosen>> {
        self.send(rows, asks)?;
        self.take()
    }

    /// The same step without a choice: logits f32 `[wanted, vocabulary]`, for who compares numbers. Nothing is under way.
    fn logits(&mut self, rows: &Rows) -> Result<Vec<f32>>;
}

/// The net in candle's tensors: our kernels on the CPU, candle's elsewhere. A step is done when it was sent.
pub struct Direct {
    net: Net,
    cache: Cache,
    chosen: Vec<Chosen>,
}

impl Direct {
    /// With a cache of `blocks` for predictions of `context` positions.
    pub fn new(net: Net, blocks: usize, context: usize, dtype: DType) -> Result<Self> {
        let cache = Cache::new(&net, blocks, context, dtype)?;
        Ok(Self { net, cache, chosen: Vec::new() })
    }

    fn forward(&mut self, rows: &Rows) -> Result<Option<Tensor>> {
        self.net.forward(rows, &mut self.cache)
    }
}

impl Engine for Direct {
    fn vocabulary(&self) -> usize {
        self.net.vocabulary()
    }

    fn blocks(&self) -> usize {
        self.cache.blocks
    }

    fn context(&self) -> usize {
        self.cache.context
    }

    fn weights_bytes(&self) -> u64 {
        self.net.bytes()
    }

    fn bytes(&self) -> u64 {
        self.net.bytes() + self.cache.bytes()
    }

    fn step_bytes(&self, positions: usize) -> u64 {
        let rows_only = self.net.head.as_ref().map_or(0, |_| self.net.embed.bytes());
        let cache = self.cache.bytes() * positions as u64 / (self.cache.blocks * BLOCK) as u64;
        self.net.bytes() - rows_only + cache
    }

    fn bandwidth(&self) -> Result<f64> {
        // What candle does elsewhere is not ours to measure.
        Ok(if self.net.device.is_cpu() { kernels::bandwidth::read_bytes_per_s(&self.net.pool) } else { f64::NAN })
    }

    fn send(&mut self, rows: &Rows, asks: &[Ask]) -> Result<()> {
        self.chosen = match self.forward(rows)? {
            Some(logits) => op::sample(&logits, asks, &self.net.pool)?,
            None => Vec::new(),
        };
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<Chosen>> {
        Ok(std::mem::take(&mut self.chosen))
    }

    fn logits(&mut self, rows: &Rows) -> Result<Vec<f32>> {
        let logits = self.forward(rows)?.map(|logits| logits.flatten_all()?.to_vec1());
        logits.transpose().map(Option::unwrap_or_default)
    }
}
