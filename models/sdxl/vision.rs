//! The image side of a CLIP (Radford et al., "Learning transferable visual models from natural language supervision", 2021; the
//! net is Dosovitskiy et al.'s, "An image is worth 16x16 words", 2020): pixels to one row among the texts' pooled ones. The
//! reference is transformers' `CLIPVisionModelWithProjection`. It computes in f32 between
//! layers on every device: one small image, held against thresholds. Refuses to know image files.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use kernels::Pool;
use kernels::op::Dense;
use prediction::PredictError;

use super::clip_layers::{Layers, Sight};
use super::config::VisionConfig;
use super::layers::Norm;
use super::reader::Reader;

/// Red, green and blue.
pub const CHANNELS: usize = 3;

pub struct VisionEncoder {
    config: VisionConfig,
    /// A convolution whose windows do not meet: each patch is a row.
    patches: Dense,
    /// What stands for the whole image, `[hidden]`, f32.
    class: Tensor,
    /// `[1 + patches, hidden]`, f32.
    positions: Tensor,
    before: Norm,
    layers: Layers,
    after: Norm,
    projection: Dense,
    device: Device,
    pool: Arc<Pool>,
}

impl VisionEncoder {
    pub(super) fn load(config: VisionConfig, reader: &Reader) -> std::result::Result<Self, PredictError> {
        let VisionConfig { tower, patch_size, projection, .. } = config;
        let hidden = tower.hidden;
        let count = 1 + config.patches() * config.patches();
        let model = reader.at("vision_model.vision_model");
        let embeddings = model.at("embeddings");
        Ok(Self {
            patches: embeddings.stack(&["patch_embedding"], hidden, CHANNELS * patch_size * patch_size, false)?,
            class: embeddings.tensor("class_embedding", &[hidden])?,
            positions: embeddings.tensor("position_embedding.weight", &[count, hidden])?,
            // The name is misspelt in every file.
            before: model.norm("pre_layrnorm", hidden)?,
            layers: Layers::load(tower, count, Sight::Everything, &model)?,
            after: model.norm("post_layernorm", hidden)?,
            projection: reader.stack(&["visual_projection"], projection, hidden, false)?,
            device: reader.load.device.clone(),
            pool: reader.load.pool.clone(),
            config,
        })
    }

    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// `[channels, side, side]` of the config's side, normalised, to `[1, projection]`.
    pub fn forward(&self, pixels: &[f32]) -> Result<Tensor> {
        let VisionConfig { tower, image_size: side, patch_size: size, .. } = self.config;
        if pixels.len() != CHANNELS * side * side {
            candle_core::bail!("{} values; an image of {CHANNELS} x {side} x {side} is looked at", pixels.len());
        }
        let patches = self.config.patches();
        let mut rows = Vec::with_capacity(pixels.len());
        for (down, right) in (0..patches).flat_map(|down| (0..patches).map(move |right| (down, right))) {
            for (channel, line) in (0..CHANNELS).flat_map(|channel| (0..size).map(move |line| (channel, line))) {
                let first = (channel * side + down * size + line) * side + right * size;
                rows.extend_from_slice(&pixels[first..first + size]);
            }
        }
        let rows = Tensor::from_vec(rows, (patches * patches, CHANNELS * size * size), &self.device)?;
        let x = (Tensor::cat(&[&self.class.unsqueeze(0)?, &self.patches.forward(&rows)?], 0)? + &self.positions)?;
        let x = self.before.layer(&x, tower.norm_eps, &self.pool)?;
        let x = self.layers.forward(&x, 1, 0..tower.layers)?;
        let whole = self.after.layer(&x.narrow(0, 0, 1)?, tower.norm_eps, &self.pool)?;
        self.projection.forward(&whole)
    }
}
