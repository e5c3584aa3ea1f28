//! The way between pixels and latents (Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022;
//! the reference is diffusers' `AutoencoderKL`). Images are `[batch, height, width, channels]`, f32 at both ends; pixels from -1 to 1,
//! latents as the autoencoder has them: the UNet's are these times `scaling_factor`. Refuses to know files of images.
//!
//! Images of a batch go one after the other, and one that is larger than a tile in overlapping tiles (`vae_tiles`), so that
//! memory is bounded by one tile: 4.2 GiB for 1,024 x 1,024 pixels of the true net.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Conv2d, ConvShape, Dense, Scene};
use prediction::PredictError;

use super::config::VaeConfig;
use super::layers::{self, Groups, Norm, Resnet};
use super::reader::Reader;
use super::vae_tiles::{self, Tiles};

const EPS: f64 = 1e-6;
/// The logarithm of a variance is kept within these.
const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);

pub struct Vae {
    config: VaeConfig,
    encoder: Net,
    decoder: Net,
    quant: Option<Conv2d>,
    post_quant: Option<Conv2d>,
    /// Pixels of a tile's side.
    tile: usize,
    pool: Arc<Pool>,
}

/// An encoder or a decoder.
struct Net {
    conv_in: Conv2d,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: Norm,
    conv_out: Conv2d,
}

struct Level {
    resnets: Vec<Resnet>,
    next: Option<Conv2d>,
}

struct Middle {
    before: Resnet,
    attention: Option<Attention>,
    after: Resnet,
}

/// One head over all pixels.
struct Attention {
    norm: Norm,
    qkv: Dense,
    out: Dense,
    groups: Groups,
}

/// A normal distribution over latents, `[batch, height, width, channels]` both.
pub struct Latents {
    pub mean: Tensor,
    pub deviation: Tensor,
}

impl Vae {
    pub(super) fn load(config: VaeConfig, reader: &Reader) -> std::result::Result<Self, PredictError> {
        let latents = config.latent_channels;
        let pixel = |channels| ConvShape { kernel: 1, pad: [0; 4], ..layers::same(channels, channels) };
        let conv = |wanted: bool, name: &str, channels| wanted.then(|| reader.conv(name, pixel(channels))).transpose();
        Ok(Self {
            encoder: Net::encoder(&config, &reader.at("encoder"))?,
            decoder: Net::decoder(&config, &reader.at("decoder"))?,
            quant: conv(config.quant_conv, "quant_conv", 2 * latents)?,
            post_quant: conv(config.post_quant_conv, "post_quant_conv", latents)?,
            tile: config.sample_size.max(config.factor()),
            pool: reader.load.pool.clone(),
            config,
        })
    }

    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Tiles of so many pixels a side, at least one latent pixel; as large as the images that it was trained with at first.
    pub fn set_tile(&mut self, pixels: usize) {
        self.tile = pixels.max(self.config.factor());
    }

    /// `pixels` is `[batch, height, width, 3]`; every side is rounded down to whole latent pixels.
    pub fn encode(&self, pixels: &Tensor) -> Result<Latents> {
        let tiles = self.tiles(self.tile, self.tile / self.config.factor());
        let moments = self.one_by_one(pixels, self.config.channels, &tiles, &|image| {
            let x = self.encoder.conv_in.forward(image)?;
            let mut x = x;
            for level in &self.encoder.levels {
                x = level.forward(x, false, &self.pool)?;
            }
            let x = self.encoder.end(&self.encoder.middle.forward(&x, &self.pool)?, self.groups(), &self.pool)?;
            self.quant.as_ref().map_or(Ok(x.clone()), |quant| quant.forward(&x))
        })?;
        let latents = self.config.latent_channels;
        let (low, high) = LOG_VARIANCE;
        let logarithm = moments.narrow(3, latents, latents)?.contiguous()?.clamp(low, high)?;
        Ok(Latents { mean: moments.narrow(3, 0, latents)?.contiguous()?, deviation: (logarithm * 0.5)?.exp()? })
    }

    /// `latents` is `[batch, height, width, channels]`, as `encode` gives them; the pixels may leave -1 to 1.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let tiles = self.tiles(self.tile / self.config.factor(), self.tile);
        self.one_by_one(latents, self.config.latent_channels, &tiles, &|image| {
            let x = self.post_quant.as_ref().map_or(Ok(image.clone()), |conv| conv.forward(image))?;
            let mut x = self.decoder.middle.forward(&self.decoder.conv_in.forward(&x)?, &self.pool)?;
            for level in &self.decoder.levels {
                x = level.forward(x, true, &self.pool)?;
            }
            self.decoder.end(&x, self.groups(), &self.pool)
        })
    }

    fn tiles(&self, from: usize, to: usize) -> Tiles {
        Tiles { from: from.max(1), to: to.max(1) }
    }

    fn groups(&self) -> Groups {
        Groups { count: self.config.groups, eps: EPS, silu: true }
    }

    fn one_by_one(
        &self,
        images: &Tensor,
        channels: usize,
        tiles: &Tiles,
        apply: &dyn Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (batch, height, width, found) = images.dims4()?;
        if found != channels || batch * height * width == 0 {
            candle_core::bail!("images of {:?}; {channels} channels are read", images.dims());
        }
        let activations = self.decoder.conv_in.activations();
        let one = |number| {
            let image = images.narrow(0, number, 1)?.contiguous()?;
            let apply = |part: &Tensor| apply(&part.to_dtype(activations)?)?.to_dtype(part.dtype());
            if height > tiles.from || width > tiles.from {
                vae_tiles::tiled(&image, tiles, &apply)
            } else {
                apply(&image)
            }
        };
        let done = (0..batch).map(one).collect::<Result<Vec<_>>>()?;
        if let [one] = done.as_slice() { Ok(one.clone()) } else { Tensor::cat(&done, 0) }
    }

    /// Of its layers.
    pub fn bytes(&self) -> u64 {
        let ends = self.quant.iter().chain(&self.post_quant).map(Conv2d::bytes).sum::<u64>();
        ends + self.encoder.bytes() + self.decoder.bytes()
    }
}

impl Net {
    fn encoder(config: &VaeConfig, reader: &Reader) -> std::result::Result<Self, PredictError> {
        let groups = Groups { count: config.groups, eps: EPS, silu: true };
        let levels = &config.levels;
        let (first, last) = (levels[0], levels[levels.len() - 1]);
        let level = |number: usize| {
            let at = reader.at(format!("down_blocks.{number}"));
            let out = levels[number];
            // One row below and one column to the right: what the first implementation did.
            let half = ConvShape { stride: 2, pad: [0, 1, 0, 1], ..layers::same(out, out) };
            Level::load(&at, (levels[number.saturating_sub(1)], out, config.resnets), groups, || {
                (number + 1 < levels.len()).then(|| at.conv("downsamplers.0.conv", half)).transpose()
            })
        };
        Ok(Self {
            conv_in: reader.conv("conv_in", layers::same(config.channels, first))?,
            levels: (0..levels.len()).map(level).collect::<std::result::Result<_, _>>()?,
            middle: Middle::load(&reader.at("mid_block"), config, groups)?,
            norm_out: reader.norm("conv_norm_out", last)?,
            conv_out: reader.conv("conv_out", layers::same(last, 2 * config.latent_channels))?,
        })
    }

    fn decoder(config: &VaeConfig, reader: &Reader) -> std::result::Result<Self, PredictError> {
        let groups = Groups { count: config.groups, eps: EPS, silu: true };
        let levels: Vec<usize> = config.levels.iter().rev().copied().collect();
        let (first, last) = (levels[0], levels[levels.len() - 1]);
        let level = |number: usize| {
            let at = reader.at(format!("up_blocks.{number}"));
            let out = levels[number];
            Level::load(&at, (levels[number.saturating_sub(1)], out, config.resnets + 1), groups, || {
                let next = || at.conv("upsamplers.0.conv", layers::same(out, out));
                (number + 1 < levels.len()).then(next).transpose()
            })
        };
        Ok(Self {
            conv_in: reader.conv("conv_in", layers::same(config.latent_channels, first))?,
            levels: (0..levels.len()).map(level).collect::<std::result::Result<_, _>>()?,
            middle: Middle::load(&reader.at("mid_block"), config, groups)?,
            norm_out: reader.norm("conv_norm_out", last)?,
            conv_out: reader.conv("conv_out", layers::same(last, config.channels))?,
        })
    }

    fn end(&self, x: &Tensor, groups: Groups, pool: &Pool) -> Result<Tensor> {
        self.conv_out.forward(&self.norm_out.group(x, &groups, pool)?)
    }

    fn bytes(&self) -> u64 {
        let level =
            |l: &Level| l.resnets.iter().map(Resnet::bytes).sum::<u64>() + l.next.as_ref().map_or(0, Conv2d::bytes);
        let Middle { before, attention, after } = &self.middle;
        let middle = before.bytes() + after.bytes() + attention.as_ref().map_or(0, |a| a.qkv.bytes() + a.out.bytes());
        self.conv_in.bytes() + self.conv_out.bytes() + self.levels.iter().map(level).sum::<u64>() + middle
    }
}

impl Level {
    fn load(
        reader: &Reader,
        (inputs, out, count): (usize, usize, usize),
        groups: Groups,
        next: impl FnOnce() -> std::result::Result<Option<Conv2d>, PredictError>,
    ) -> std::result::Result<Self, PredictError> {
        let resnet = |n: usize| {
            Resnet::load(&reader.at(format!("resnets.{n}")), if n == 0 { inputs } else { out }, out, groups, None)
        };
        let resnets = (0..count).map(resnet).collect::<std::result::Result<_, _>>()?;
        Ok(Self { resnets, next: next()? })
    }

    fn forward(&self, mut x: Tensor, doubling: bool, pool: &Pool) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(&x, None, pool)?;
        }
        match &self.next {
            None => Ok(x),
            Some(next) if doubling => next.forward(&op::upsample_nearest_2x(&x, pool)?),
            Some(next) => next.forward(&x),
        }
    }
}

impl Middle {
    fn load(reader: &Reader, config: &VaeConfig, groups: Groups) -> std::result::Result<Self, PredictError> {
        let width = config.levels[config.levels.len() - 1];
        let attention = || {
            let at = reader.at("attentions.0");
            layers::heads(1, width, 1)?;
            Ok(Attention {
                norm: at.norm("group_norm", width)?,
                qkv: at.stack(&["to_q", "to_k", "to_v"], width, width, true)?,
                out: at.dense("to_out.0", width, width)?,
                groups: Groups { silu: false, ..groups },
            })
        };
        Ok(Self {
            before: Resnet::load(&reader.at("resnets.0"), width, width, groups, None)?,
            attention: config.mid_attention.then(attention).transpose()?,
            after: Resnet::load(&reader.at("resnets.1"), width, width, groups, None)?,
        })
    }

    fn forward(&self, x: &Tensor, pool: &Arc<Pool>) -> Result<Tensor> {
        let mut x = self.before.forward(x, None, pool)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x, pool)?;
        }
        self.after.forward(&x, None, pool)
    }
}

impl Attention {
    fn forward(&self, x: &Tensor, pool: &Arc<Pool>) -> Result<Tensor> {
        let (batch, height, columns, width) = x.dims4()?;
        let pixels = batch * height * columns;
        let flat = |x: &Tensor| x.reshape((pixels, width));
        let qkv = self.qkv.forward(&flat(&self.norm.group(x, &self.groups, pool)?)?)?;
        let shape = op::MemoryShape { positions: pixels, heads: 1, dim: width };
        // Images come one by one.
        let mut own = Scene::new(shape, 1, x.device(), pool)?;
        own.show(&qkv.narrow(1, width, 2 * width)?)?;
        let seen = own.attend(&qkv.narrow(1, 0, width)?, layers::scale(shape))?;
        self.out.forward_add(&seen, &flat(x)?)?.reshape((batch, height, columns, width))
    }
}
