//! The text side of a CLIP (Radford et al., "Learning transferable visual models from natural language supervision", 2021):
//! token ids to the states before the last layer, which the UNet reads, and to one pooled row. The reference is
//! transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`. Refuses to know words.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Dense};
use prediction::PredictError;

use super::clip_layers::{Layers, Sight};
use super::config::TextConfig;
use super::layers::Norm;
use super::reader::Reader;

pub struct TextEncoder {
    config: TextConfig,
    /// `[vocabulary, hidden]`.
    tokens: Tensor,
    /// `[positions, hidden]`, f32.
    positions: Tensor,
    layers: Layers,
    norm: Norm,
    projection: Option<Dense>,
    device: Device,
    pool: Arc<Pool>,
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
        let TextConfig { tower, positions, vocabulary, .. } = config;
        let hidden = tower.hidden;
        let model = reader.at("text_model");
        let project = |features| reader.stack(&["text_projection"], features, hidden, false);
        Ok(Self {
            tokens: model.table("embeddings.token_embedding.weight", vocabulary, hidden)?,
            positions: model.tensor("embeddings.position_embedding.weight", &[positions, hidden])?,
            layers: Layers::load(tower, positions, Sight::Before, &model)?,
            norm: model.norm("final_layer_norm", hidden)?,
            projection: config.projection.map(project).transpose()?,
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
        let (batch, count, hidden) = (ids.len(), ids.first().map_or(0, Vec::len), self.config.tower.hidden);
        if count == 0 || count > self.config.positions || ids.iter().any(|text| text.len() != count) {
            let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
            candle_core::bail!("texts of {lengths:?} tokens; one length up to {} is read", self.config.positions);
        }
        let places = self.positions.narrow(0, 0, count)?;
        let x = (self.embed(ids, more)?.reshape((batch, count, hidden))?.broadcast_add(&places)?)
            .reshape((batch * count, hidden))?
            .to_dtype(op::activations(&self.device, self.tokens.dtype()))?;
        let last = self.config.tower.layers - 1;
        let before_last = self.layers.forward(&x, batch, 0..last)?;
        let pooled = match &self.projection {
            None => None,
            Some(projection) => {
                let x = self.layers.forward(&before_last, batch, last..last + 1)?;
                let ends = ids.iter().zip(0..).map(|(text, row)| (row * count + self.end(text)) as u32);
                let ends = Tensor::from_vec(ends.collect::<Vec<u32>>(), batch, &self.device)?;
                let x = self.norm.layer(&x.index_select(&ends, 0)?, self.config.tower.norm_eps, &self.pool)?;
                Some(projection.forward(&x)?.to_dtype(DType::F32)?)
            }
        };
        Ok(Encoded { hidden: before_last.to_dtype(DType::F32)?.reshape((batch, count, hidden))?, pooled })
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
        let table = (self.tokens.elem_count() * self.tokens.dtype().size_in_bytes()) as u64;
        table + self.layers.bytes() + self.projection.as_ref().map_or(0, Dense::bytes)
    }
}
