//! The forward passes: a window of log-mel frames to what was heard, and tokens to logits over it. Heard is each decoder
//! layer's keys and values of the whole window, computed once; said is those of the tokens so far. Rows of many sequences
//! go through the decoder together, several of them over one window if need be. Refuses to know predictions and files.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Dense, Memory, MemoryShape};

use super::config::{Config, FRAMES};

const NORM_EPS: f32 = 1e-5;

pub struct Net {
    pub config: Config,
    pub encoder: Encoder,
    pub decoder: Decoder,
    /// What keys and values are kept in: f16 or f32.
    pub memory: DType,
    pub device: Device,
    pub pool: Arc<Pool>,
}

pub struct Encoder {
    /// `[hidden, 3 * mels]`: the three frames a result looks at, one after the other.
    pub conv1: Dense,
    pub conv2: Dense,
    /// `[audio_context, hidden]`.
    pub positions: Tensor,
    pub layers: Vec<EncoderLayer>,
    pub norm: Norm,
}

pub struct EncoderLayer {
    pub attention: SelfAttention,
    pub feed_forward: FeedForward,
}

pub struct Decoder {
    /// Also the head.
    pub embed: Dense,
    /// `[text_context, hidden]`.
    pub positions: Tensor,
    pub layers: Vec<DecoderLayer>,
    pub norm: Norm,
}

pub struct DecoderLayer {
    pub attention: SelfAttention,
    pub cross: CrossAttention,
    pub feed_forward: FeedForward,
}

pub struct SelfAttention {
    pub norm: Norm,
    /// Queries, keys and values, stacked.
    pub qkv: Dense,
    pub out: Dense,
}

pub struct CrossAttention {
    pub norm: Norm,
    pub q: Dense,
    /// Keys above values.
    pub kv: Dense,
    pub out: Dense,
}

pub struct FeedForward {
    pub norm: Norm,
    pub up: Dense,
    pub down: Dense,
}

pub struct Norm {
    pub weight: Tensor,
    pub bias: Tensor,
}

/// One window, as every layer of the decoder looks at it.
pub struct Heard {
    layers: Vec<Memory>,
}

/// One sequence of tokens, as every layer of the decoder remembers it.
pub struct Said {
    layers: Vec<Memory>,
}

/// Tokens that follow what was said, the first of them at `position`.
pub struct Feed<'a> {
    pub tokens: Vec<u32>,
    pub position: usize,
    pub said: &'a mut Said,
    pub heard: &'a Heard,
    /// Which of the tokens want their logits.
    pub wanted: Vec<usize>,
}

/// Called with a layer's number and its queries `[rows, hidden]` over what was heard.
pub type Tap<'a> = &'a mut dyn FnMut(usize, &Tensor) -> Result<()>;

impl Norm {
    fn forward(&self, x: &Tensor, pool: &Pool) -> Result<Tensor> {
        op::layer_norm(x, &self.weight, &self.bias, NORM_EPS, pool)
    }
}

impl FeedForward {
    fn forward(&self, x: &Tensor, pool: &Pool) -> Result<Tensor> {
        self.down.forward_add(&self.up.forward_gelu(&self.norm.forward(x, pool)?)?, x)
    }
}

impl Heard {
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(Memory::bytes).sum()
    }

    /// See `Memory::scores`: how much each query of a layer's head looks at the window's positions.
    pub fn scores(&self, layer: usize, head: usize, q: &Tensor, positions: usize, scale: f32) -> Result<Vec<f32>> {
        self.layers[layer].scores(q, head, positions, scale)
    }
}

impl Said {
    /// The first `positions` of another sequence, in place of its own.
    pub fn copy_from(&mut self, other: &Said, positions: usize) -> Result<()> {
        self.layers.iter_mut().zip(&other.layers).try_for_each(|(to, from)| to.copy_from(from, positions))
    }
}

impl Net {
    /// `mel` is `[FRAMES, mels]`, frame by frame; the result is `[audio_context, hidden]`.
    pub fn encode(&self, mel: &[f32]) -> Result<Tensor> {
        let Config { mels, hidden, audio_context, encoder_heads, .. } = self.config;
        if mel.len() != FRAMES * mels {
            candle_core::bail!("a window of {} values; {FRAMES} frames of {mels} are needed", mel.len());
        }
        let Encoder { conv1, conv2, positions, layers, norm } = &self.encoder;
        let x = Tensor::from_vec(beside(mel, mels, 1), (FRAMES, 3 * mels), &self.device)?;
        let x = conv1.forward_gelu(&x)?;
        let x = if self.device.is_cpu() {
            let x = x.flatten_all()?.to_vec1::<f32>()?;
            Tensor::from_vec(beside(&x, hidden, 2), (FRAMES / 2, 3 * hidden), &self.device)?
        } else {
            // Frames 2t - 1 and 2t lie side by side, and so do 2t + 1 and the next.
            let x = x.pad_with_zeros(0, 1, 1)?;
            let pairs = |first: usize| x.narrow(0, first, FRAMES)?.reshape((FRAMES / 2, 2 * hidden));
            Tensor::cat(&[pairs(0)?, pairs(2)?.narrow(1, 0, hidden)?], 1)?
        };
        let x = conv2.forward_gelu(&x)?;
        let mut x = (x + positions)?;
        let shape = self.shape(audio_context, encoder_heads);
        let mut memory = Memory::new(shape, DType::F32, &self.device, &self.pool)?;
        for EncoderLayer { attention, feed_forward } in layers {
            let qkv = attention.qkv.forward(&attention.norm.forward(&x, &self.pool)?)?;
            memory.write(0, &qkv.narrow(1, hidden, hidden)?, &qkv.narrow(1, 2 * hidden, hidden)?)?;
            let sights = vec![(&memory, audio_context); audio_context];
            let seen = op::attend(&qkv.narrow(1, 0, hidden)?, &sights, self.scale())?;
            x = feed_forward.forward(&attention.out.forward_add(&seen, &x)?, &self.pool)?;
        }
        norm.forward(&x, &self.pool)
    }

    /// What the decoder looks at, from `encode`'s result.
    pub fn hear(&self, encoded: &Tensor) -> Result<Heard> {
        let Config { hidden, audio_context, decoder_heads, .. } = self.config;
        let layer = |layer: &DecoderLayer| {
            let kv = layer.cross.kv.forward(encoded)?;
            let mut memory =
                Memory::new(self.shape(audio_context, decoder_heads), self.memory, &self.device, &self.pool)?;
            memory.write(0, &kv.narrow(1, 0, hidden)?, &kv.narrow(1, hidden, hidden)?)?;
            Ok(memory)
        };
        Ok(Heard { layers: self.decoder.layers.iter().map(layer).collect::<Result<_>>()? })
    }

    /// Room for a sequence of `positions` at most.
    pub fn say(&self, positions: usize) -> Result<Said> {
        let shape = self.shape(positions.min(self.config.text_context), self.config.decoder_heads);
        let layer = |_: &DecoderLayer| Memory::new(shape, self.memory, &self.device, &self.pool);
        Ok(Said { layers: self.decoder.layers.iter().map(layer).collect::<Result<_>>()? })
    }

    /// Logits `[wanted of all feeds, vocabulary]`, feed by feed. Keys and values of every token are in `said` afterwards.
    pub fn decode(&self, feeds: &mut [Feed], mut tap: Option<Tap>) -> Result<Tensor> {
        let Config { hidden, .. } = self.config;
        let Decoder { embed, positions, layers, norm } = &self.decoder;
        let tokens: Vec<u32> = feeds.iter().flat_map(|feed| feed.tokens.iter().copied()).collect();
        let places: Vec<u32> = feeds
            .iter()
            .flat_map(|feed| (feed.position..feed.position + feed.tokens.len()).map(|p| p as u32))
            .collect();
        let places = Tensor::from_vec(places, tokens.len(), &self.device)?;
        let mut x = (embed.linear().rows(&tokens)? + positions.index_select(&places, 0)?)?;
        for (index, layer) in layers.iter().enumerate() {
            let attention = &layer.attention;
            let qkv = attention.qkv.forward(&attention.norm.forward(&x, &self.pool)?)?;
            let mut row = 0;
            for feed in feeds.iter_mut() {
                let part = |from: usize| qkv.narrow(1, from, hidden)?.narrow(0, row, feed.tokens.len());
                feed.said.layers[index].write(feed.position, &part(hidden)?, &part(2 * hidden)?)?;
                row += feed.tokens.len();
            }
            let own = feeds
                .iter()
                .flat_map(|feed| (1..=feed.tokens.len()).map(|n| (&feed.said.layers[index], feed.position + n)));
            let seen = op::attend(&qkv.narrow(1, 0, hidden)?, &own.collect::<Vec<_>>(), self.scale())?;
            x = attention.out.forward_add(&seen, &x)?;
            let q = layer.cross.q.forward(&layer.cross.norm.forward(&x, &self.pool)?)?;
            if let Some(tap) = &mut tap {
                tap(index, &q)?;
            }
            let heard = feeds.iter().flat_map(|feed| {
                std::iter::repeat_n((&feed.heard.layers[index], self.config.audio_context), feed.tokens.len())
            });
            let seen = op::attend(&q, &heard.collect::<Vec<_>>(), self.scale())?;
            x = layer.feed_forward.forward(&layer.cross.out.forward_add(&seen, &x)?, &self.pool)?;
        }
        let mut wanted: Vec<u32> = Vec::new();
        let mut row = 0;
        for feed in feeds.iter() {
            wanted.extend(feed.wanted.iter().map(|token| (row + token) as u32));
            row += feed.tokens.len();
        }
        if wanted.len() < tokens.len() {
            let rows = wanted.len();
            x = x.index_select(&Tensor::from_vec(wanted, rows, &self.device)?, 0)?;
        }
        embed.forward(&norm.forward(&x, &self.pool)?)
    }

    /// What scores are multiplied by.
    pub fn scale(&self) -> f32 {
        (self.config.decoder_heads as f32 / self.config.hidden as f32).sqrt()
    }

    fn shape(&self, positions: usize, heads: usize) -> MemoryShape {
        MemoryShape { positions, heads, dim: self.config.hidden / heads }
    }

    /// Weights alone.
    pub fn bytes(&self) -> u64 {
        let norm = |norm: &Norm| 4 * (norm.weight.elem_count() + norm.bias.elem_count()) as u64;
        let own = |layer: &SelfAttention| norm(&layer.norm) + layer.qkv.bytes() + layer.out.bytes();
        let cross = |c: &CrossAttention| norm(&c.norm) + c.q.bytes() + c.kv.bytes() + c.out.bytes();
        let forward = |f: &FeedForward| norm(&f.norm) + f.up.bytes() + f.down.bytes();
        let Self { encoder: e, decoder: d, .. } = self;
        let places = 4 * (e.positions.elem_count() + d.positions.elem_count()) as u64;
        let ends = e.conv1.bytes() + e.conv2.bytes() + d.embed.bytes() + norm(&e.norm) + norm(&d.norm) + places;
        let encoder = e.layers.iter().map(|l| own(&l.attention) + forward(&l.feed_forward)).sum::<u64>();
        let decoder = d.layers.iter().map(|l| own(&l.attention) + cross(&l.cross) + forward(&l.feed_forward));
        ends + encoder + decoder.sum::<u64>()
    }

    /// What one step of the decoder reads of its weights: all but the layers that made the window's keys and values.
    pub fn step_bytes(&self) -> u64 {
        let layer = |l: &DecoderLayer| {
            let feed_forward = l.feed_forward.up.bytes() + l.feed_forward.down.bytes();
            l.attention.qkv.bytes() + l.attention.out.bytes() + l.cross.q.bytes() + l.cross.out.bytes() + feed_forward
        };
        self.decoder.embed.bytes() + self.decoder.layers.iter().map(layer).sum::<u64>()
    }
}

/// Every `step`th row of `[rows, width]` with the rows before and behind it, zeros at both ends: `[rows / step, 3 * width]`.
fn beside(values: &[f32], width: usize, step: usize) -> Vec<f32> {
    let rows = values.len() / width;
    let mut out = Vec::with_capacity(rows / step * 3 * width);
    for row in (0..rows).step_by(step) {
        match row {
            0 => {
                out.resize(out.len() + width, 0.0);
                out.extend_from_slice(&values[..2 * width]);
            }
            _ => {
                let end = ((row + 2) * width).min(values.len());
                out.extend_from_slice(&values[(row - 1) * width..end]);
                out.resize(out.len() + (row + 2) * width - end, 0.0);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::beside;

    #[test]
    fn rows_stand_beside_their_neighbours() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(beside(&values, 1, 1), [0.0, 1.0, 2.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 3.0, 4.0, 0.0]);
        assert_eq!(beside(&values, 1, 2), [0.0, 1.0, 2.0, 2.0, 3.0, 4.0]);
        assert_eq!(beside(&values, 2, 1), [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0]);
    }
}
