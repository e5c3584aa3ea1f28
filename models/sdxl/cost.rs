//! How much work an image is, counted from the networks' shapes alone: operations (two a multiply-add) of one call of a UNet
//! and of one decoding, and the memory that the largest of either takes beside the weights. Refuses to know devices.

use super::config::{UnetConfig, VaeConfig};

/// Of every prompt.
const TEXT_TOKENS: usize = 77;
/// Feed-forward layers of a transformer are so many times as wide as it, and gated.
const INNER: usize = 4;
/// Everything between layers is f32.
const VALUE_BYTES: usize = 4;

/// Operations and the most bytes at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    pub operations: f64,
    pub bytes: u64,
}

#[derive(Default)]
struct Sum {
    operations: f64,
    /// Values that one layer reads and makes, at most.
    largest: usize,
    /// Values that wait for the way up.
    kept: usize,
}

impl Sum {
    /// A convolution of 3 x 3, or of one pixel.
    fn conv(&mut self, pixels: usize, inputs: usize, out: usize, side: usize) {
        self.operations += 2.0 * (side * side) as f64 * pixels as f64 * inputs as f64 * out as f64;
        // Beside what it reads and makes stands what is added to it at the end.
        self.largest = self.largest.max(pixels * (inputs + 2 * out));
    }

    fn resnet(&mut self, pixels: usize, inputs: usize, out: usize) {
        self.conv(pixels, inputs, out, 3);
        self.conv(pixels, out, out, 3);
        if inputs != out {
            self.conv(pixels, inputs, out, 1);
        }
    }

    fn attention(&mut self, pixels: usize, width: usize) {
        self.operations += 8.0 * pixels as f64 * (width * width) as f64 + 4.0 * (pixels * pixels) as f64 * width as f64;
        self.largest = self.largest.max(pixels * 6 * width);
    }

    fn transformer(&mut self, images: usize, pixels: usize, width: usize, depth: usize) {
        if depth == 0 {
            return;
        }
        let (all, width_f) = ((images * pixels) as f64, width as f64);
        let projections = 4.0 * all * width_f * width_f;
        let of_itself = 8.0 * all * width_f * width_f + 4.0 * all * pixels as f64 * width_f;
        let of_text = 4.0 * all * width_f * width_f + 4.0 * all * TEXT_TOKENS as f64 * width_f;
        let inner = 6.0 * INNER as f64 * all * width_f * width_f;
        self.operations += projections + depth as f64 * (of_itself + of_text + inner);
        self.largest = self.largest.max(images * pixels * width * (3 + 3 * INNER));
    }

    fn cost(&self) -> Cost {
        Cost { operations: self.operations, bytes: ((self.largest + self.kept) * VALUE_BYTES) as u64 }
    }
}

/// One call of a UNet for so many images of `height` x `width` latent pixels.
pub fn unet(config: &UnetConfig, images: usize, height: usize, width: usize) -> Cost {
    let mut sum = Sum::default();
    let pixels = |level: usize| height.div_ceil(1 << level) * width.div_ceil(1 << level);
    let first = config.levels[0].channels;
    sum.conv(images * pixels(0), config.in_channels, first, 3);
    let (mut channels, mut waiting) = (first, vec![first]);
    sum.kept += images * pixels(0) * first;
    let last = config.levels.len() - 1;
    for (number, level) in config.levels.iter().enumerate() {
        let here = pixels(number);
        for _ in 0..level.resnets {
            sum.resnet(images * here, channels, level.channels);
            sum.transformer(images, here, level.channels, level.depth);
            channels = level.channels;
            waiting.push(channels);
            sum.kept += images * here * channels;
        }
        if number < last {
            sum.conv(images * pixels(number + 1), channels, channels, 3);
            waiting.push(channels);
            sum.kept += images * pixels(number + 1) * channels;
        }
    }
    sum.resnet(images * pixels(last), channels, channels);
    sum.transformer(images, pixels(last), channels, config.mid_depth);
    sum.resnet(images * pixels(last), channels, channels);
    for (number, level) in config.levels.iter().enumerate().rev() {
        let here = pixels(number);
        for _ in 0..=level.resnets {
            let beside = waiting.pop().unwrap_or_default();
            sum.resnet(images * here, channels + beside, level.channels);
            sum.transformer(images, here, level.channels, level.depth);
            channels = level.channels;
        }
        if number > 0 {
            sum.conv(images * pixels(number - 1), channels, channels, 3);
        }
    }
    sum.conv(images * pixels(0), first, config.out_channels, 3);
    sum.cost()
}

/// Decoding one image of `height` x `width` latent pixels. Its memory is that of a tile, where it is larger than one.
pub fn decode(config: &VaeConfig, height: usize, width: usize) -> Cost {
    let count = |height: usize, width: usize| {
        let mut sum = Sum::default();
        let coarsest = config.levels[config.levels.len() - 1];
        let mut pixels = height * width;
        sum.conv(pixels, config.latent_channels, coarsest, 3);
        sum.resnet(pixels, coarsest, coarsest);
        if config.mid_attention {
            sum.attention(pixels, coarsest);
        }
        sum.resnet(pixels, coarsest, coarsest);
        let mut channels = coarsest;
        for (number, level) in config.levels.iter().enumerate().rev() {
            for _ in 0..=config.resnets {
                sum.resnet(pixels, channels, *level);
                channels = *level;
            }
            if number > 0 {
                pixels *= 4;
                sum.conv(pixels, channels, channels, 3);
            }
        }
        sum.conv(pixels, channels, config.channels, 3);
        sum.cost()
    };
    let tile = config.sample_size / config.factor();
    let bytes = count(height.min(tile.max(1)), width.min(tile.max(1))).bytes;
    Cost { bytes, ..count(height, width) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The UNet of SDXL 1.0, as its config.json has it.
    fn base() -> UnetConfig {
        let json = json!({
            "in_channels": 4, "out_channels": 4, "sample_size": 128, "block_out_channels": [320, 640, 1280],
            "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "cross_attention_dim": 2048, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816, "use_linear_projection": true, "norm_num_groups": 32,
        });
        UnetConfig::read("config.json", &json).unwrap()
    }

    #[test]
    fn the_true_unet_is_as_much_work_as_is_published() {
        // 5.98 tera multiply-adds for two images of 1,024 x 1,024, by counters of floating point operations.
        let cost = unet(&base(), 2, 128, 128);
        let tera = cost.operations / 1e12;
        assert!((11.0..13.0).contains(&tera), "{tera}");
        let half = unet(&base(), 1, 128, 128).operations;
        assert!((cost.operations / half - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_larger_image_takes_more_work_and_more_memory() {
        let [small, large] = [64, 128].map(|side| unet(&base(), 2, side, side));
        assert!(large.operations > 4.0 * small.operations && large.bytes == 4 * small.bytes, "{small:?} {large:?}");
        // Skips and the widest layer of the finest level, f32.
        assert!((500 << 20..3 << 30).contains(&large.bytes), "{}", large.bytes);
    }
}
