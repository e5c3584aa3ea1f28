//! The UNet's transformers: attention over the image itself and over the text, for every pixel of a level. The reference is
//! diffusers' `Transformer2DModel`. Refuses to know where in the net it stands.

use candle_core::{Device, Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Dense, Scene};
use prediction::PredictError;
use std::sync::Arc;

use super::config::UnetConfig;
use super::layers::{self, Groups, Norm};
use super::reader::Reader;

/// Of the norms before each part of a block.
const NORM_EPS: f32 = 1e-5;
/// Of the norm before a transformer.
const GROUP_EPS: f64 = 1e-6;

/// Keys and values of the prompts in every layer of the net, made once per prompt and read by every step.
pub struct Context {
    pub(super) layers: Vec<Scene>,
}

impl Context {
    /// Texts in the batch.
    pub fn batch(&self) -> usize {
        self.layers.first().map_or(0, Scene::parts)
    }

    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(Scene::bytes).sum()
    }
}

/// A level's transformer.
pub struct Transformer {
    norm: Norm,
    proj_in: Dense,
    blocks: Vec<Block>,
    proj_out: Dense,
    groups: Groups,
    heads: usize,
    width: usize,
    /// The number of its first layer among all of the net's.
    pub(super) first: usize,
}

struct Block {
    norm1: Norm,
    /// Queries, keys and values of the image, stacked.
    qkv: Dense,
    out1: Dense,
    norm2: Norm,
    q: Dense,
    /// Of the text, keys above values.
    kv: Dense,
    out2: Dense,
    norm3: Norm,
    up: Dense,
    down: Dense,
}

impl Transformer {
    pub(super) fn load(
        reader: &Reader,
        config: &UnetConfig,
        (width, depth, heads): (usize, usize, usize),
        first: usize,
    ) -> std::result::Result<Self, PredictError> {
        layers::heads(1, width, heads)?;
        let block = |n: usize| {
            let at = reader.at(format!("transformer_blocks.{n}"));
            let (own, text) = (at.at("attn1"), at.at("attn2"));
            Ok(Block {
                norm1: at.norm("norm1", width)?,
                qkv: own.stack(&["to_q", "to_k", "to_v"], width, width, false)?,
                out1: own.dense("to_out.0", width, width)?,
                norm2: at.norm("norm2", width)?,
                q: text.stack(&["to_q"], width, width, false)?,
                kv: text.stack(&["to_k", "to_v"], width, config.cross, false)?,
                out2: text.dense("to_out.0", width, width)?,
                norm3: at.norm("norm3", width)?,
                up: at.dense("ff.net.0.proj", 8 * width, width)?,
                down: at.dense("ff.net.2", width, 4 * width)?,
            })
        };
        Ok(Self {
            norm: reader.norm("norm", width)?,
            proj_in: reader.dense("proj_in", width, width)?,
            blocks: (0..depth).map(block).collect::<std::result::Result<_, PredictError>>()?,
            proj_out: reader.dense("proj_out", width, width)?,
            groups: Groups { count: config.groups, eps: GROUP_EPS, silu: false },
            heads,
            width,
            first,
        })
    }

    /// Keys and values of `states` (`[batch * tokens, features]`) in each of its layers.
    pub(super) fn remember(
        &self,
        states: &Tensor,
        tokens: usize,
        (device, pool): (&Device, &Arc<Pool>),
        to: &mut Vec<Scene>,
    ) -> Result<()> {
        let shape = op::MemoryShape { positions: tokens, heads: self.heads, dim: self.width / self.heads };
        for block in &self.blocks {
            let mut texts = Scene::new(shape, states.dim(0)? / tokens, device, pool)?;
            texts.show(&block.kv.forward(states)?)?;
            to.push(texts);
        }
        Ok(())
    }

    /// `x` is `[batch, height, width, channels]`.
    pub(super) fn forward(&self, x: &Tensor, context: &Context, pool: &Arc<Pool>) -> Result<Tensor> {
        let (batch, height, columns, width) = x.dims4()?;
        let pixels = height * columns;
        let flat = |x: &Tensor| x.reshape((batch * pixels, width));
        let shape = op::MemoryShape { positions: pixels, heads: self.heads, dim: width / self.heads };
        let scale = layers::scale(shape);
        let mut own = Scene::new(shape, batch, x.device(), pool)?;
        let mut y = self.proj_in.forward(&flat(&self.norm.group(x, &self.groups, pool)?)?)?;
        for (block, texts) in self.blocks.iter().zip(&context.layers[self.first..]) {
            let qkv = block.qkv.forward(&block.norm1.layer(&y, NORM_EPS, pool)?)?;
            own.show(&qkv.narrow(1, width, 2 * width)?)?;
            let seen = own.attend(&qkv.narrow(1, 0, width)?, scale)?;
            y = block.out1.forward_add(&seen, &y)?;
            let q = block.q.forward(&block.norm2.layer(&y, NORM_EPS, pool)?)?;
            let seen = texts.attend(&q, scale)?;
            y = block.out2.forward_add(&seen, &y)?;
            let wide = block.up.forward_geglu(&block.norm3.layer(&y, NORM_EPS, pool)?)?;
            y = block.down.forward_add(&wide, &y)?;
        }
        self.proj_out.forward_add(&y, &flat(x)?)?.reshape((batch, height, columns, width))
    }

    /// Layers of it.
    pub(super) fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Multiplications and additions for an image of so many pixels under a text of so many tokens, whose keys and values
    /// are there.
    pub(super) fn operations(&self, pixels: u64, tokens: u64) -> u64 {
        let block = |b: &Block| {
            let dense = [&b.qkv, &b.out1, &b.q, &b.out2, &b.up, &b.down].map(|dense| layers::operations(dense, pixels));
            dense.iter().sum::<u64>() + layers::attention_operations(pixels, pixels + tokens, self.width)
        };
        let ends = layers::operations(&self.proj_in, pixels) + layers::operations(&self.proj_out, pixels);
        ends + self.blocks.iter().map(block).sum::<u64>()
    }

    pub(super) fn bytes(&self) -> u64 {
        let block =
            |b: &Block| [&b.qkv, &b.out1, &b.q, &b.kv, &b.out2, &b.up, &b.down].map(Dense::bytes).iter().sum::<u64>();
        self.proj_in.bytes() + self.proj_out.bytes() + self.blocks.iter().map(block).sum::<u64>()
    }
}
