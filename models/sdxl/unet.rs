//! The network that says what is noise (Podell et al., "SDXL: improving latent diffusion models for high-resolution image
//! synthesis", 2023): latents, a time, a text and its conditions to one prediction per latent value. The reference is
//! diffusers' `UNet2DConditionModel` with `addition_embed_type` "text_time". Images are `[batch, height, width, channels]`,
//! f32 at both ends, and between layers what the device computes in. Refuses to know schedulers and guidance.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Conv2d, ConvShape, Dense};
use prediction::PredictError;

use super::config::UnetConfig;
use super::layers::{self, Groups, Norm, Resnet};
use super::reader::Reader;
pub use super::unet_blocks::Context;
use super::unet_blocks::Transformer;

/// The longest wave of a sinusoid, over 2 pi.
const LONGEST: f32 = 10_000.0;

pub struct Unet {
    config: UnetConfig,
    conv_in: Conv2d,
    time: [Dense; 2],
    condition: [Dense; 2],
    /// What every resnet makes of a time embedding, one below the other.
    times: Dense,
    down: Vec<Blocks>,
    middle: (Resnet, Transformer, Resnet),
    up: Vec<Blocks>,
    norm_out: Norm,
    conv_out: Conv2d,
    groups: Groups,
    device: Device,
    pool: Arc<Pool>,
}

/// A level on the way down or up.
struct Blocks {
    resnets: Vec<(Resnet, Option<Transformer>)>,
    /// To the next level: half the size on the way down; what follows doubling on the way up.
    next: Option<Conv2d>,
}

/// Loads resnets and transformers, and counts them.
struct Loading<'a> {
    config: &'a UnetConfig,
    groups: Groups,
    /// Every resnet's layer for the time, and its width.
    times: Vec<(String, usize)>,
    /// Layers of transformers so far.
    layers: usize,
}

impl Loading<'_> {
    fn resnet(
        &mut self,
        at: &Reader,
        name: &str,
        inputs: usize,
        out: usize,
    ) -> std::result::Result<Resnet, PredictError> {
        let first = self.times.iter().map(|(_, width)| width).sum();
        self.times.push((format!("{}time_emb_proj", at.at(name).prefix()), out));
        Resnet::load(&at.at(name), inputs, out, self.groups, Some(first))
    }

    fn transformer(
        &mut self,
        at: &Reader,
        name: &str,
        sizes: (usize, usize, usize),
    ) -> std::result::Result<Option<Transformer>, PredictError> {
        if sizes.1 == 0 {
            return Ok(None);
        }
        let transformer = Transformer::load(&at.at(name), self.config, sizes, self.layers)?;
        self.layers += transformer.depth();
        Ok(Some(transformer))
    }
}

impl Unet {
    pub(super) fn load(config: UnetConfig, reader: &Reader) -> std::result::Result<Self, PredictError> {
        let groups = Groups { count: config.groups, eps: config.norm_eps, silu: true };
        let mut loading = Loading { config: &config, groups, times: Vec::new(), layers: 0 };
        let (first, features) = (config.levels[0].channels, config.time_features());
        let pair = |name: &str, inputs: usize| {
            let at = reader.at(name);
            Ok([at.dense("linear_1", features, inputs)?, at.dense("linear_2", features, features)?])
        };
        let mut channels = first;
        let mut left = vec![first];
        let mut down = Vec::new();
        for (number, level) in config.levels.iter().enumerate() {
            let at = reader.at(format!("down_blocks.{number}"));
            let out = level.channels;
            let mut resnets = Vec::new();
            for n in 0..level.resnets {
                let resnet = loading.resnet(&at, &format!("resnets.{n}"), channels, out)?;
                let sizes = (out, level.depth, level.heads);
                resnets.push((resnet, loading.transformer(&at, &format!("attentions.{n}"), sizes)?));
                channels = out;
                left.push(out);
            }
            let last = number + 1 == config.levels.len();
            let half = ConvShape { stride: 2, ..layers::same(out, out) };
            let next = (!last).then(|| at.conv("downsamplers.0.conv", half)).transpose()?;
            left.extend(next.is_some().then_some(out));
            down.push(Blocks { resnets, next });
        }
        let at = reader.at("mid_block");
        let coarsest = config.levels[config.levels.len() - 1];
        let before = loading.resnet(&at, "resnets.0", channels, channels)?;
        let sizes = (channels, config.mid_depth, coarsest.heads);
        let transformer = Transformer::load(&at.at("attentions.0"), &config, sizes, loading.layers)?;
        loading.layers += transformer.depth();
        let middle = (before, transformer, loading.resnet(&at, "resnets.1", channels, channels)?);
        let mut up = Vec::new();
        for (number, level) in config.levels.iter().rev().enumerate() {
            let at = reader.at(format!("up_blocks.{number}"));
            let out = level.channels;
            let mut resnets = Vec::new();
            for n in 0..=level.resnets {
                let beside = left.pop().unwrap_or_default();
                let resnet = loading.resnet(&at, &format!("resnets.{n}"), channels + beside, out)?;
                let sizes = (out, level.depth, level.heads);
                resnets.push((resnet, loading.transformer(&at, &format!("attentions.{n}"), sizes)?));
                channels = out;
            }
            let last = number + 1 == config.levels.len();
            let next = (!last).then(|| at.conv("upsamplers.0.conv", layers::same(out, out))).transpose()?;
            up.push(Blocks { resnets, next });
        }
        Ok(Self {
            conv_in: reader.conv("conv_in", layers::same(config.in_channels, first))?,
            time: pair("time_embedding", first)?,
            condition: pair("add_embedding", config.condition)?,
            times: reader.gather(&loading.times, features)?,
            down,
            middle,
            up,
            norm_out: reader.norm("conv_norm_out", first)?,
            conv_out: reader.conv("conv_out", layers::same(first, config.out_channels))?,
            groups,
            device: reader.load.device.clone(),
            pool: reader.load.pool.clone(),
            config,
        })
    }

    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// What every layer remembers of the texts: `prompt_embeds` is `[batch, tokens, features]`.
    pub fn context(&self, prompt_embeds: &Tensor) -> Result<Context> {
        let (batch, tokens, features) = prompt_embeds.dims3()?;
        if features != self.config.cross {
            candle_core::bail!("texts of {:?}; {} features are read", prompt_embeds.dims(), self.config.cross);
        }
        let states = prompt_embeds.to_dtype(self.activations())?.contiguous()?.reshape((batch * tokens, features))?;
        let mut layers = Vec::new();
        let down = self.down.iter().flat_map(Blocks::transformers);
        let up = self.up.iter().flat_map(Blocks::transformers);
        for transformer in down.chain([&self.middle.1]).chain(up) {
            transformer.remember(&states, tokens, (&self.device, &self.pool), &mut layers)?;
        }
        Ok(Context { layers })
    }

    /// What the resnets make of each step's time and of the conditions, `[batch, features]` per step, for `forward`.
    /// `pooled` is `[batch, features]`, `time_ids` `[batch, ids]`; both steps and ids are read as sinusoids of f32.
    pub fn times(&self, timesteps: &[f32], pooled: &Tensor, time_ids: &Tensor) -> Result<Vec<Tensor>> {
        let (batch, features) = pooled.dims2()?;
        let ids = time_ids.to_vec2::<f32>()?;
        let each = self.config.time_id_features;
        if ids.len() != batch || ids.iter().any(|ids| features + ids.len() * each != self.config.condition) {
            let (pooled, ids, needed) = (pooled.dims(), time_ids.dims(), self.config.condition);
            candle_core::bail!("pooled texts of {pooled:?} and time ids of {ids:?}; {needed} features are read");
        }
        let ids = self.sinusoids(&ids.concat(), each)?.reshape((batch, self.config.condition - features))?;
        let condition = self.both(&self.condition, &Tensor::cat(&[&pooled.contiguous()?, &ids], 1)?)?;
        let times = self.both(&self.time, &self.sinusoids(timesteps, self.config.levels[0].channels)?)?;
        let width = condition.dim(1)?;
        let all = times.unsqueeze(1)?.broadcast_add(&condition.unsqueeze(0)?)?;
        let all = self.times.forward(&op::silu(&all.reshape((timesteps.len() * batch, width))?, &self.pool)?)?;
        (0..timesteps.len()).map(|step| all.narrow(0, step * batch, batch)).collect()
    }

    fn both(&self, [first, second]: &[Dense; 2], x: &Tensor) -> Result<Tensor> {
        second.forward(&op::silu(&first.forward(x)?, &self.pool)?)
    }

    /// `[values, features]`: cosines and sines of each value times frequencies from 1 down to 1 / 10,000.
    fn sinusoids(&self, values: &[f32], features: usize) -> Result<Tensor> {
        let half = features / 2;
        let frequency = |n: usize| (-LONGEST.ln() * n as f32 / (half as f32 - self.config.frequency_shift)).exp();
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let mut all = Vec::with_capacity(values.len() * features);
        for value in values {
            let angles = || frequencies.iter().map(|frequency| f64::from(value * frequency));
            let (cosines, sines) = (angles().map(|a| a.cos() as f32), angles().map(|a| a.sin() as f32));
            if self.config.cosines_first {
                all.extend(cosines.chain(sines));
            } else {
                all.extend(sines.chain(cosines));
            }
        }
        Tensor::from_vec(all, (values.len(), features), &self.device)
    }

    /// The prediction for `latents` (`[batch, height, width, channels]`, of any height and width), at the time of `emb`
    /// (one of `times`) and under the texts of `context`: `[batch, height, width, out_channels]`.
    pub fn forward(&self, latents: &Tensor, emb: &Tensor, context: &Context) -> Result<Tensor> {
        let (batch, _, _, channels) = latents.dims4()?;
        if channels != self.config.in_channels || emb.dim(0)? != batch || context.batch() != batch {
            let (latents, times, texts) = (latents.dims(), emb.dims(), context.batch());
            let needed = self.config.in_channels;
            candle_core::bail!("latents of {latents:?} with {needed} channels, times of {times:?}, {texts} texts");
        }
        let pool = &self.pool;
        let mut x = self.conv_in.forward(&latents.to_dtype(self.activations())?)?;
        let mut left = vec![x.clone()];
        for Blocks { resnets, next } in &self.down {
            for (resnet, transformer) in resnets {
                x = resnet.forward(&x, Some(emb), pool)?;
                if let Some(transformer) = transformer {
                    x = transformer.forward(&x, context, pool)?;
                }
                left.push(x.clone());
            }
            if let Some(next) = next {
                x = next.forward(&x)?;
                left.push(x.clone());
            }
        }
        let (before, transformer, after) = &self.middle;
        x = before.forward(&x, Some(emb), pool)?;
        x = transformer.forward(&x, context, pool)?;
        x = after.forward(&x, Some(emb), pool)?;
        for Blocks { resnets, next } in &self.up {
            for (resnet, transformer) in resnets {
                let Some(beside) = left.pop() else { candle_core::bail!("the way up is longer than the way down") };
                x = resnet.forward(&op::concat_channels(&[&x, &beside], pool)?, Some(emb), pool)?;
                if let Some(transformer) = transformer {
                    x = transformer.forward(&x, context, pool)?;
                }
            }
            if let (Some(next), Some(beside)) = (next, left.last()) {
                let (_, height, width, _) = beside.dims4()?;
                x = next.forward(&cropped(op::upsample_nearest_2x(&x, pool)?, height, width)?)?;
            }
        }
        self.conv_out.forward(&self.norm_out.group(&x, &self.groups, pool)?)?.to_dtype(latents.dtype())
    }

    /// What it holds between layers.
    pub fn activations(&self) -> DType {
        self.conv_in.activations()
    }

    /// Widths of heads whose attention our kernel does not run on this device, each once.
    pub fn composed_heads(&self) -> Vec<usize> {
        let levels = self.config.levels.iter().filter(|level| level.depth > 0);
        let mut dims: Vec<usize> = levels.map(|level| level.channels / level.heads).collect();
        dims.sort_unstable();
        dims.dedup();
        dims.retain(|dim| !op::attends_in_one_kernel(&self.device, self.activations(), *dim));
        dims
    }

    /// Multiplications and additions of one forward for one image of `height` x `width` latent pixels under a text of
    /// `tokens`: what the expected time and the share of the machine's peak are told from.
    pub fn operations(&self, height: usize, width: usize, tokens: usize) -> u64 {
        let mut sides = (height, width);
        let pixels = |(height, width): (usize, usize)| (height * width) as u64;
        let blocks = |blocks: &Blocks, pixels: u64| {
            let resnets = blocks.resnets.iter().map(|(resnet, _)| resnet.operations(pixels)).sum::<u64>();
            resnets + blocks.transformers().map(|t| t.operations(pixels, tokens as u64)).sum::<u64>()
        };
        let next =
            |blocks: &Blocks, pixels: u64| blocks.next.as_ref().map_or(0, |conv| layers::conv_operations(conv, pixels));
        let mut sum =
            [&self.conv_in, &self.conv_out].map(|conv| layers::conv_operations(conv, pixels(sides))).iter().sum();
        let mut left = vec![sides];
        for level in &self.down {
            sum += blocks(level, pixels(sides));
            if level.next.is_some() {
                sides = (sides.0.div_ceil(2), sides.1.div_ceil(2));
                left.push(sides);
            }
            sum += next(level, pixels(sides));
        }
        let (before, transformer, after) = &self.middle;
        sum += before.operations(pixels(sides)) + after.operations(pixels(sides));
        sum += transformer.operations(pixels(sides), tokens as u64);
        for level in &self.up {
            let at = pixels(left.pop().unwrap_or(sides));
            sum += blocks(level, at) + next(level, pixels(left.last().copied().unwrap_or(sides)));
        }
        sum
    }

    /// Of its layers.
    pub fn bytes(&self) -> u64 {
        let ends = [&self.conv_in, &self.conv_out].map(Conv2d::bytes).iter().sum::<u64>();
        let dense = self.time.iter().chain(&self.condition).chain([&self.times]).map(Dense::bytes).sum::<u64>();
        let (before, transformer, after) = &self.middle;
        let blocks = self.down.iter().chain(&self.up).map(Blocks::bytes).sum::<u64>();
        ends + dense + blocks + before.bytes() + transformer.bytes() + after.bytes()
    }
}

impl Blocks {
    fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.resnets.iter().filter_map(|(_, transformer)| transformer.as_ref())
    }

    fn bytes(&self) -> u64 {
        let resnets = self.resnets.iter().map(|(resnet, _)| resnet.bytes()).sum::<u64>();
        let transformers = self.transformers().map(Transformer::bytes).sum::<u64>();
        resnets + transformers + self.next.as_ref().map_or(0, Conv2d::bytes)
    }
}

/// An odd side was rounded up on the way down: the doubled one is a pixel too long.
fn cropped(x: Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, rows, columns, _) = x.dims4()?;
    if (rows, columns) == (height, width) {
        return Ok(x);
    }
    x.narrow(1, 0, height)?.narrow(2, 0, width)?.contiguous()
}
