//! The forward pass: embedding, then per layer `x += o(attention(rope(q), rope(k), v))` and `x += down(swiglu(gate, up))`
//! on normalised `x`, then the head. A forward is a packed list of rows, each one token of one sequence at one position, so
//! that prompts and single steps of many predictions go through together. Refuses to know predictions and files.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use kernels::Pool;
use kernels::op::{self, KvCache, Linear, RopeTable};

use super::config::Config;
use super::rows::Rows;

pub struct Net {
    pub config: Config,
    pub embed: Linear,
    pub layers: Vec<Layer>,
    pub norm: Tensor,
    /// None where the embedding serves.
    pub head: Option<Linear>,
    pub device: Device,
    pub pool: Arc<Pool>,
}

pub struct Layer {
    pub attn_norm: Tensor,
    /// Query heads, key heads, value heads, stacked.
    pub qkv: Linear,
    pub o: Linear,
    pub ffn_norm: Tensor,
    /// Gate above up.
    pub gate_up: Linear,
    pub down: Linear,
}

/// Keys and values of every layer, in blocks, and the rotary table of a whole context.
pub struct Cache {
    layers: Vec<KvCache>,
    rope: RopeTable,
    pub blocks: usize,
    pub context: usize,
}

impl Cache {
    /// Memory: `blocks * 64 * Config::cache_elements_per_position * size of dtype`, touched as positions are written.
    pub fn new(net: &Net, blocks: usize, context: usize, dtype: DType) -> Result<Self> {
        let Config { kv_heads, head_dim, .. } = net.config;
        let layer = || KvCache::new(blocks, kv_heads, head_dim, dtype, &net.device, &net.pool);
        let layers = (0..net.layers.len()).map(|_| layer()).collect::<Result<_>>()?;
        Ok(Self { layers, rope: RopeTable::new(&net.config.inverse_frequencies(), context), blocks, context })
    }

    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(KvCache::bytes).sum()
    }
}

impl Net {
    /// Logits `[wanted, vocabulary]`. Keys and values of every row are in the cache afterwards.
    pub fn forward(&self, rows: &Rows, cache: &mut Cache) -> Result<Option<Tensor>> {
        let Config { heads, kv_heads, head_dim, norm_eps, .. } = self.config;
        let (tokens, wanted) = (rows.tokens(), rows.wanted());
        if !rows.next().is_empty() {
            candle_core::bail!("a row says what has not been chosen yet");
        }
        let pick = |all: &[u32]| -> Vec<u32> { wanted.iter().map(|&row| all[row as usize]).collect() };
        let (last_sequences, last_positions) = (pick(rows.sequences()), pick(rows.positions()));
        let mut places = rows.places()?;
        let pool = &self.pool;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let norm = |x: &Tensor, weight: &Tensor| op::rms_norm(x, weight, norm_eps, pool);
        let mut x = self.embed.rows(tokens)?;
        let last = self.layers.len() - 1;
        for (index, (layer, kv)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            let qkv = layer.qkv.forward(&norm(&x, &layer.attn_norm)?)?;
            let qkv = qkv.reshape((tokens.len(), heads + 2 * kv_heads, head_dim))?;
            let k = op::rope(&qkv.narrow(1, heads, kv_heads)?, &cache.rope, places.positions(), pool)?;
            kv.write(&k, &qkv.narrow(1, heads + kv_heads, kv_heads)?, &places)?;
            let mut q = qkv.narrow(1, 0, heads)?;
            // Behind the last layer's keys and values only the wanted rows matter.
            if index == last && wanted.len() < tokens.len() {
                if wanted.is_empty() {
                    return Ok(None);
                }
                let ids = Tensor::new(wanted, &self.device)?;
                (q, x) = (q.contiguous()?.index_select(&ids, 0)?, x.index_select(&ids, 0)?);
                places = rows.placed(&last_sequences, &last_positions)?;
            }
            let q = op::rope(&q, &cache.rope, places.positions(), pool)?;
            let seen = op::attention(&q, kv, &places, scale)?;
            x = layer.o.forward_add(&seen, &x)?;
            let gate_up = layer.gate_up.forward(&norm(&x, &layer.ffn_norm)?)?;
            x = layer.down.forward_add(&op::swiglu(&gate_up, pool)?, &x)?;
        }
        let head = self.head.as_ref().unwrap_or(&self.embed);
        head.forward(&norm(&x, &self.norm)?).map(Some)
    }

    /// Entries of the vocabulary that have weights.
    pub fn vocabulary(&self) -> usize {
        self.embed.out_features()
    }

    pub fn bytes(&self) -> u64 {
        let layer = |layer: &Layer| {
            let norms = 4 * (layer.attn_norm.elem_count() + layer.ffn_norm.elem_count()) as u64;
            norms + layer.qkv.bytes() + layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes()
        };
        let ends = self.embed.bytes() + self.head.as_ref().map_or(0, Linear::bytes);
        ends + 4 * self.norm.elem_count() as u64 + self.layers.iter().map(layer).sum::<u64>()
    }
}
