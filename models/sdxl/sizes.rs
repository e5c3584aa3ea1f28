//! The shapes that Stable Diffusion XL comes in, as the `config.json` files of a diffusers folder say them: what a single
//! checkpoint file leaves out, and what random weights are made in.

use serde_json::{Value, json};

/// One of the two CLIPs.
#[derive(Clone, Copy)]
pub struct Text {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    /// Features of the pooled text, where it is used.
    pub projection: Option<usize>,
    pub activation: &'static str,
}

/// A base, with both CLIPs, or a refiner, with the second alone.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub texts: [Option<Text>; 2],
    /// Channels, transformer layers and heads per level, from the finest to the coarsest.
    pub levels: &'static [(usize, usize, usize)],
    pub mid_depth: usize,
    pub cross: usize,
    /// Channels that the UNet reads: latents, and of one that only paints over images a mask and the masked image's latents.
    pub inputs: usize,
    pub time_id_features: usize,
    pub time_ids: usize,
    pub groups: usize,
    /// Latent pixels of a side.
    pub sample_size: usize,
    pub vae: &'static [usize],
    pub vae_groups: usize,
}

pub const VOCABULARY: usize = 49_408;
pub const POSITIONS: usize = 77;
pub const LATENTS: usize = 4;
/// Of every level, on the way down.
pub const RESNETS: usize = 2;

const CLIP_L: Text = Text { hidden: 768, layers: 12, heads: 12, projection: None, activation: "quick_gelu" };
const BIG_G: Text = Text { hidden: 1280, layers: 32, heads: 20, projection: Some(1280), activation: "gelu" };

/// Stable Diffusion XL 1.0.
pub const BASE: Sizes = Sizes {
    texts: [Some(CLIP_L), Some(BIG_G)],
    levels: &[(320, 0, 5), (640, 2, 10), (1280, 10, 20)],
    mid_depth: 10,
    cross: 2048,
    inputs: LATENTS,
    time_id_features: 256,
    time_ids: 6,
    groups: 32,
    sample_size: 128,
    vae: &[128, 256, 512, 512],
    vae_groups: 32,
};

pub const REFINER: Sizes = Sizes {
    texts: [None, Some(BIG_G)],
    levels: &[(384, 0, 6), (768, 4, 12), (1536, 4, 24), (1536, 0, 24)],
    mid_depth: 4,
    cross: 1280,
    time_ids: 5,
    ..BASE
};

/// Paints over a part of an image and does nothing else.
pub const INPAINT: Sizes = Sizes { inputs: 2 * LATENTS + 1, ..BASE };

const TINY_L: Text = Text { hidden: 32, layers: 2, heads: 2, projection: None, activation: "quick_gelu" };
const TINY_G: Text = Text { hidden: 48, layers: 3, heads: 3, projection: Some(64), activation: "gelu" };

/// No two of its sizes are alike where a mistake would hide.
pub const TINY: Sizes = Sizes {
    texts: [Some(TINY_L), Some(TINY_G)],
    levels: &[(32, 0, 2), (64, 1, 4), (96, 2, 6)],
    mid_depth: 2,
    cross: 80,
    inputs: LATENTS,
    time_id_features: 32,
    time_ids: 6,
    groups: 8,
    sample_size: 16,
    vae: &[16, 32, 32, 48],
    vae_groups: 8,
};

pub const TINY_REFINER: Sizes = Sizes {
    texts: [None, Some(TINY_G)],
    levels: &[(32, 0, 2), (64, 1, 4), (64, 1, 4), (64, 0, 4)],
    mid_depth: 1,
    cross: 48,
    time_ids: 5,
    ..TINY
};

pub const TINY_INPAINT: Sizes = Sizes { inputs: 2 * LATENTS + 1, ..TINY };

/// Large enough to measure on a processor in seconds.
pub const SMALL: Sizes = Sizes {
    levels: &[(64, 0, 1), (128, 2, 2), (256, 4, 4)],
    mid_depth: 4,
    groups: 32,
    sample_size: 64,
    vae: &[32, 64, 128, 128],
    vae_groups: 32,
    ..TINY
};

/// What a single checkpoint file may be of.
pub const KNOWN: [&Sizes; 7] = [&BASE, &REFINER, &INPAINT, &TINY, &TINY_REFINER, &TINY_INPAINT, &SMALL];

impl Sizes {
    /// Whether it draws from noise; a refiner works on what another has drawn.
    pub fn is_base(&self) -> bool {
        self.texts[0].is_some()
    }

    /// Features of the pooled text and the time ids.
    pub fn condition(&self) -> usize {
        let pooled = self.texts.iter().flatten().filter_map(|text| text.projection).sum::<usize>();
        pooled + self.time_ids * self.time_id_features
    }

    /// Pixels of an image's usual side.
    pub fn pixels(&self) -> usize {
        self.sample_size << (self.vae.len() - 1)
    }

    /// The configuration files, each with its place in the folder. `dtype` is transformers' word for the precision.
    pub fn files(&self, dtype: &str) -> Vec<(&'static str, Value)> {
        let text = |at: usize| self.texts[at].map(|text| text.config(dtype));
        let all = [
            ("model_index.json", Some(self.index())),
            ("scheduler/scheduler_config.json", Some(scheduler())),
            ("text_encoder/config.json", text(0)),
            ("text_encoder_2/config.json", text(1)),
            ("unet/config.json", Some(self.unet())),
            ("vae/config.json", Some(self.autoencoder())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn index(&self) -> Value {
        let base = self.is_base();
        let part = |library: &str, class: &str| json!([library, class]);
        let first = |library: &str, class: &str| if base { part(library, class) } else { json!([null, null]) };
        let class = match base {
            true if self.inputs > LATENTS => "StableDiffusionXLInpaintPipeline",
            true => "StableDiffusionXLPipeline",
            false => "StableDiffusionXLImg2ImgPipeline",
        };
        let mut index = json!({
            "_class_name": class, "_diffusers_version": "0.42.1", "force_zeros_for_empty_prompt": base,
            "scheduler": part("diffusers", "EulerDiscreteScheduler"),
            "text_encoder": first("transformers", "CLIPTextModel"),
            "text_encoder_2": part("transformers", "CLIPTextModelWithProjection"),
            "tokenizer": first("transformers", "CLIPTokenizer"), "tokenizer_2": part("transformers", "CLIPTokenizer"),
            "unet": part("diffusers", "UNet2DConditionModel"), "vae": part("diffusers", "AutoencoderKL"),
        });
        if !base {
            index["requires_aesthetics_score"] = json!(true);
        }
        index
    }

    fn unet(&self) -> Value {
        let with_attention = |name: &str| {
            let kind = |&(_, depth, _): &(usize, usize, usize)| match depth {
                0 => format!("{name}Block2D"),
                _ => format!("CrossAttn{name}Block2D"),
            };
            self.levels.iter().map(kind).collect::<Vec<_>>()
        };
        let mut up = with_attention("Up");
        up.reverse();
        // A level without attention still has a number; the last one is the middle's.
        let mut depths: Vec<usize> = self.levels.iter().map(|&(_, depth, _)| depth.max(1)).collect();
        if let Some(last) = depths.last_mut() {
            *last = self.mid_depth;
        }
        json!({
            "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.42.1", "act_fn": "silu",
            "addition_embed_type": "text_time", "addition_time_embed_dim": self.time_id_features,
            "attention_head_dim": self.levels.iter().map(|&(_, _, heads)| heads).collect::<Vec<_>>(),
            "block_out_channels": self.levels.iter().map(|&(channels, _, _)| channels).collect::<Vec<_>>(),
            "center_input_sample": false, "cross_attention_dim": self.cross, "down_block_types": with_attention("Down"),
            "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": self.inputs,
            "layers_per_block": RESNETS, "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-5, "norm_num_groups": self.groups, "out_channels": LATENTS,
            "projection_class_embeddings_input_dim": self.condition(), "resnet_time_scale_shift": "default",
            "sample_size": self.sample_size, "transformer_layers_per_block": depths, "up_block_types": up,
            "use_linear_projection": true,
        })
    }

    fn autoencoder(&self) -> Value {
        let all = |kind: &'static str| vec![kind; self.vae.len()];
        json!({
            "_class_name": "AutoencoderKL", "_diffusers_version": "0.42.1", "act_fn": "silu",
            "block_out_channels": self.vae, "down_block_types": all("DownEncoderBlock2D"), "force_upcast": true,
            "in_channels": 3, "latent_channels": LATENTS, "layers_per_block": RESNETS,
            "norm_num_groups": self.vae_groups, "out_channels": 3, "sample_size": self.pixels(),
            "scaling_factor": 0.13025, "up_block_types": all("UpDecoderBlock2D"),
        })
    }
}

impl Text {
    pub fn inner(&self) -> usize {
        4 * self.hidden
    }

    fn config(&self, dtype: &str) -> Value {
        let class = if self.projection.is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
        json!({
            "architectures": [class], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
            "hidden_act": self.activation, "hidden_size": self.hidden, "initializer_factor": 1.0,
            "initializer_range": 0.02, "intermediate_size": self.inner(), "layer_norm_eps": 1e-5,
            "max_position_embeddings": POSITIONS, "model_type": "clip_text_model", "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers, "pad_token_id": 1,
            "projection_dim": self.projection.unwrap_or(self.hidden), "torch_dtype": dtype, "vocab_size": VOCABULARY,
        })
    }
}

fn scheduler() -> Value {
    json!({
        "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.42.1", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
        "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
        "timestep_spacing": "leading", "trained_betas": null, "use_karras_sigmas": false,
    })
}
