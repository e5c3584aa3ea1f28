//! The text side of a CLIP (Radford et al., "Learning transferable visual models from natural language supervision", 2021):
//! token ids to the states before the last layer, which the UNet reads, and to one pooled row. The reference is
//! transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`. Refuses to know words.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Dense, MemoryShape, Scene};
use prediction::PredictError;

use super::config::TextConfig;
use super::layers::{self, Norm};
use super::reader::Reader;

pub struct TextEncoder {
    config: TextConfig,
    /// `[vocabulary, hidden]`.
    tokens: Tensor,
    /// `[positions, hidden]`, f32.
    positions: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    projection: Option<Dense>,
    shape: MemoryShape,
    device: Device,
    pool: Arc<Pool>,
}

struct Layer {
    norm1: Norm,
    /// Queries, keys and values, stacked.
    qkv: Dense,
    out: Dense,
    norm2: Norm,
    up: Dense,
    down: Dense,
}

/// What a text was read as.
pub struct Encoded {
    /// `[batch, tokens, hidden]`: after all layers but the last, without the final norm.
    pub hidden: Tensor,
    /// `[batch, projection]`: the final state at the text's end, normed and projected; none where nothing projects.
    pub pooled: Option<Tensor>,
}

impl TextEncoder {
    pub(super) fn load(config: TextConfig, reader: &Reader) -> std::result::Result<Self, PredictError> {
        let TextConfig { hidden, inner, positions, vocabulary, .. } = config;
        let shape = layers::heads(positions, hidden, config.heads)?;
        let model = reader.at("text_model");
        let layer = |n: usize| {
            let at = model.at(format!("encoder.layers.{n}"));
            let attention = at.at("self_attn");
            Ok(Layer {
                norm1: at.norm("layer_norm1", hidden)?,
                qkv: attention.stack(&["q_proj", "k_proj", "v_proj"], hidden, hidden, true)?,
                out: attention.dense("out_proj", hidden, hidden)?,
                norm2: at.norm("layer_norm2", hidden)?,
                up: at.dense("mlp.fc1", inner, hidden)?,
                down: at.dense("mlp.fc2", hidden, inner)?,
            })
        };
        let project = |features| reader.stack(&["text_projection"], features, hidden, false);
        let places = model.table("embeddings.position_embedding.weight", positions, hidden)?.to_dtype(DType::F32);
        Ok(Self {
            tokens: model.table("embeddings.token_embedding.weight", vocabulary, hidden)?,
            positions: places.map_err(|error| PredictError::Operator(error.to_string()))?,
            layers: (0..config.layers).map(layer).collect::<std::result::Result<_, PredictError>>()?,
            norm: model.norm("final_layer_norm", hidden)?,
            projection: config.projection.map(project).transpose()?,
            shape,
            device: reader.load.device.clone(),
            pool: reader.load.pool.clone(),
            config,
        })
    }

    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// Texts of one length, at most 77 tokens each, padded by whoever cut them.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Encoded> {
        self.forward_with(ids, None)
    }

    /// Ids behind the vocabulary are rows of `more` (`[tokens, hidden]`): what textual inversion has learned.
    pub fn forward_with(&self, ids: &[Vec<u32>], more: Option<&Tensor>) -> Result<Encoded> {
        let (batch, count, hidden) = (ids.len(), ids.first().map_or(0, Vec::len), self.config.hidden);
        if count == 0 || count > self.config.positions || ids.iter().any(|text| text.len() != count) {
            let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
            candle_core::bail!("texts of {lengths:?} tokens; one length up to {} is read", self.config.positions);
        }
        let places = self.positions.narrow(0, 0, count)?;
        let mut x = (self.embed(ids, more)?.reshape((batch, count, hidden))?.broadcast_add(&places))?
            .reshape((batch * count, hidden))?
            .to_dtype(op::activations(&self.device, self.tokens.dtype()))?;
        let shape = MemoryShape { positions: count, ..self.shape };
        // A token sees itself and what stands before it.
        let mut own = Scene::new(shape, batch, &self.device, &self.pool)?.causal();
        let mut before_last = None;
        for (number, layer) in self.layers.iter().enumerate() {
            if number + 1 == self.layers.len() {
                before_last = Some(x.clone());
                if self.projection.is_none() {
                    break;
                }
            }
            x = layer.forward(&x, &mut own, self)?;
        }
        let hidden_states = before_last.as_ref().unwrap_or(&x).to_dtype(DType::F32)?.reshape((batch, count, hidden))?;
        let pooled = match &self.projection {
            None => None,
            Some(projection) => {
                let ends = ids.iter().zip(0..).map(|(text, row)| (row * count + self.end(text)) as u32);
                let ends = Tensor::from_vec(ends.collect::<Vec<u32>>(), batch, &self.device)?;
                let x = self.norm.layer(&x.index_select(&ends, 0)?, self.config.norm_eps, &self.pool)?;
                Some(projection.forward(&x)?.to_dtype(DType::F32)?)
            }
        };
        Ok(Encoded { hidden: hidden_states, pooled })
    }

    /// `[tokens of all texts, hidden]`.
    fn embed(&self, ids: &[Vec<u32>], more: Option<&Tensor>) -> Result<Tensor> {
        let vocabulary = self.config.vocabulary;
        let all: Vec<u32> = ids.iter().flatten().copied().collect();
        let learned = more.map_or(Ok(0), |more| more.dim(0))?;
        if let Some(id) = all.iter().find(|id| **id as usize >= vocabulary + learned) {
            candle_core::bail!("token {id} of a vocabulary of {vocabulary} and {learned} learned tokens");
        }
        let known: Vec<u32> = all.iter().map(|&id| if (id as usize) < vocabulary { id } else { 0 }).collect();
        let known = Tensor::from_vec(known, all.len(), &self.device)?;
        let x = self.tokens.index_select(&known, 0)?.to_dtype(DType::F32)?;
        if let Some(more) = more {
            let more = more.to_dtype(DType::F32)?.contiguous()?;
            for (row, id) in all.iter().enumerate().filter(|(_, id)| **id as usize >= vocabulary) {
                x.slice_set(&more.narrow(0, *id as usize - vocabulary, 1)?.contiguous()?, 0, row)?;
            }
        }
        Ok(x)
    }

    /// The position that stands for the whole text.
    fn end(&self, ids: &[u32]) -> usize {
        let wanted = self.config.end_id.or_else(|| ids.iter().copied().max());
        ids.iter().position(|id| Some(*id) == wanted).unwrap_or(0)
    }

    /// Of its layers and table.
    pub fn bytes(&self) -> u64 {
        let layer = |l: &Layer| l.qkv.bytes() + l.out.bytes() + l.up.bytes() + l.down.bytes();
        let table = (self.tokens.elem_count() * self.tokens.dtype().size_in_bytes()) as u64;
        table + self.layers.iter().map(layer).sum::<u64>() + self.projection.as_ref().map_or(0, Dense::bytes)
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, own: &mut Scene, net: &TextEncoder) -> Result<Tensor> {
        let TextConfig { hidden, norm_eps, quick_gelu, .. } = net.config;
        let qkv = self.qkv.forward(&self.norm1.layer(x, norm_eps, &net.pool)?)?;
        own.show(&qkv.narrow(1, hidden, 2 * hidden)?)?;
        let seen = own.attend(&qkv.narrow(1, 0, hidden)?, layers::scale(net.shape))?;
        let x = self.out.forward_add(&seen, x)?;
        let y = self.norm2.layer(&x, norm_eps, &net.pool)?;
        let y =
            if quick_gelu { op::quick_gelu(&self.up.forward(&y)?, &net.pool)? } else { self.up.forward_gelu(&y)? };
        self.down.forward_add(&y, &x)
    }
}
