//! What an image takes, counted from the networks' shapes alone: the memory of one call of a UNet and of one decoding beside
//! the weights, and a decoding's operations (two a multiply-add; a UNet counts its own). Refuses to know devices.

use super::config::{UnetConfig, VaeConfig};

/// Feed-forward layers of a transformer are so many times as wide as it, and gated.
const INNER: usize = 4;
/// Of f32, the widest that is held between layers; a GPU's 16 bits take half of it.
const VALUE_BYTES: usize = 4;

#[derive(Default)]
struct Sum {
    operations: f64,
    /// Values that one layer reads and makes, at most.
    largest: usize,
    /// Values that wait for the way up.
    kept: usize,
}

impl Sum {
    /// Of `side` x `side` pixels each.
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

    /// One head over all pixels.
    fn attention(&mut self, pixels: usize, width: usize) {
        self.operations += 8.0 * pixels as f64 * (width * width) as f64 + 4.0 * (pixels * pixels) as f64 * width as f64;
        self.largest = self.largest.max(pixels * 6 * width);
    }

    fn transformer(&mut self, pixels: usize, width: usize, depth: usize) {
        if depth > 0 {
            self.largest = self.largest.max(pixels * width * (3 + 3 * INNER));
        }
    }

    fn bytes(&self) -> u64 {
        ((self.largest + self.kept) * VALUE_BYTES) as u64
    }
}

/// Bytes at most while a UNet is called for so many images of `height` x `width` latent pixels.
pub fn call_bytes(config: &UnetConfig, images: usize, height: usize, width: usize) -> u64 {
    let mut sum = Sum::default();
    let pixels = |level: usize| images * height.div_ceil(1 << level) * width.div_ceil(1 << level);
    let mut channels = config.levels[0].channels;
    let mut waiting = vec![channels];
    sum.kept += pixels(0) * channels;
    let last = config.levels.len() - 1;
    for (number, level) in config.levels.iter().enumerate() {
        for _ in 0..level.resnets {
            sum.resnet(pixels(number), channels, level.channels);
            sum.transformer(pixels(number), level.channels, level.depth);
            channels = level.channels;
            waiting.push(channels);
            sum.kept += pixels(number) * channels;
        }
        if number < last {
            waiting.push(channels);
            sum.kept += pixels(number + 1) * channels;
        }
    }
    sum.transformer(pixels(last), channels, config.mid_depth);
    for (number, level) in config.levels.iter().enumerate().rev() {
        for _ in 0..=level.resnets {
            let beside = waiting.pop().unwrap_or_default();
            sum.resnet(pixels(number), channels + beside, level.channels);
            sum.transformer(pixels(number), level.channels, level.depth);
            channels = level.channels;
        }
        if number > 0 {
            sum.conv(pixels(number - 1), channels, channels, 3);
        }
    }
    sum.bytes()
}

fn decoding(config: &VaeConfig, height: usize, width: usize) -> Sum {
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
    sum
}

/// Operations of decoding one image of `height` x `width` latent pixels.
pub fn decode_operations(config: &VaeConfig, height: usize, width: usize) -> f64 {
    decoding(config, height, width).operations
}

/// Bytes at most meanwhile: those of a tile, where the image is larger than one.
pub fn decode_bytes(config: &VaeConfig, height: usize, width: usize) -> u64 {
    let tile = (config.sample_size / config.factor()).max(1);
    decoding(config, height.min(tile), width.min(tile)).bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_larger_image_takes_more_memory_and_a_decoding_no_more_than_a_tile() {
        // The shapes of SDXL 1.0, as its files have them.
        let unet = json!({
            "in_channels": 4, "out_channels": 4, "sample_size": 128, "block_out_channels": [320, 640, 1280],
            "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "cross_attention_dim": 2048, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816, "use_linear_projection": true, "norm_num_groups": 32,
        });
        let unet = UnetConfig::read("config.json", &unet).unwrap();
        let [small, large] = [64, 128].map(|side| call_bytes(&unet, 2, side, side));
        assert_eq!(large, 4 * small);
        // Skips and the widest layer of the finest level, f32.
        assert!((300 << 20..3 << 30).contains(&large), "{large}");
        let vae = json!({
            "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.13025,
            "force_upcast": true, "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        });
        let vae = VaeConfig::read("config.json", &vae).unwrap();
        assert_eq!(decode_bytes(&vae, 256, 256), decode_bytes(&vae, 128, 128));
        assert!((1 << 30..5 << 30).contains(&decode_bytes(&vae, 128, 128)), "{}", decode_bytes(&vae, 128, 128));
        assert!(decode_operations(&vae, 128, 128) > 2e12, "{}", decode_operations(&vae, 128, 128));
    }
}
