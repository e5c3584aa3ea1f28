//! The shapes of the networks, read from the `config.json` of each of a diffusers folder's parts. Whatever would change the
//! arithmetic and is not done here is refused with a sentence. Refuses to know weights.

use prediction::PredictError;
use serde_json::{Value, json};

use super::fields::Fields;

/// The layers of either side of a CLIP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tower {
    pub hidden: usize,
    pub inner: usize,
    /// One at least.
    pub layers: usize,
    pub heads: usize,
    /// OpenAI's `x * sigmoid(1.702 x)`; else GELU by the error function.
    pub quick_gelu: bool,
    pub norm_eps: f32,
}

/// A CLIP that reads text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    pub tower: Tower,
    /// Tokens that it reads at once: 77.
    pub positions: usize,
    pub vocabulary: usize,
    /// Features of the pooled result, where there is one.
    pub projection: Option<usize>,
    /// Where the pooled result is read: the first token of this id, or the highest id of all with none.
    pub end_id: Option<u32>,
}

/// A CLIP that looks at images.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub tower: Tower,
    /// Pixels of a side.
    pub image_size: usize,
    /// Pixels of a patch's side: each patch is one position of the sequence.
    pub patch_size: usize,
    /// Features of the result.
    pub projection: usize,
}

/// A UNet with text and time as additional conditions.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Latent pixels of a side that it was trained with: an image's usual side over the VAE's factor.
    pub sample_size: usize,
    /// From the finest to the coarsest.
    pub levels: Vec<Level>,
    /// Transformer layers in the middle.
    pub mid_depth: usize,
    /// Features of the text's states.
    pub cross: usize,
    pub groups: usize,
    pub norm_eps: f64,
    /// Features of each time id's sinusoid.
    pub time_id_features: usize,
    /// Features of the additional condition: the pooled text's, and every time id's.
    pub condition: usize,
    /// The sinusoid begins with cosines.
    pub cosines_first: bool,
    pub frequency_shift: f32,
}

/// Blocks at one resolution, on the way down and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub channels: usize,
    /// On the way down; one more on the way up.
    pub resnets: usize,
    /// Transformer layers after each of them; 0 where there is no attention.
    pub depth: usize,
    pub heads: usize,
}

/// An autoencoder with a normal distribution in its middle.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    pub channels: usize,
    pub latent_channels: usize,
    /// From the finest to the coarsest.
    pub levels: Vec<usize>,
    /// Of the encoder's levels; one more in the decoder's.
    pub resnets: usize,
    pub groups: usize,
    /// Pixels of a side that one tile has.
    pub sample_size: usize,
    /// The UNet's latents are the encoder's times this.
    pub scaling_factor: f64,
    /// Its activations leave the range of f16.
    pub force_upcast: bool,
    pub quant_conv: bool,
    pub post_quant_conv: bool,
    pub mid_attention: bool,
}

impl Tower {
    fn read(fields: &Fields) -> Result<Self, PredictError> {
        let quick_gelu = match fields.json["hidden_act"].as_str().unwrap_or("quick_gelu") {
            "quick_gelu" => true,
            "gelu" => false,
            _ => return Err(fields.refuse("hidden_act", "quick_gelu and gelu are run")),
        };
        let tower = Self {
            hidden: fields.size("hidden_size")?,
            inner: fields.size("intermediate_size")?,
            layers: fields.size("num_hidden_layers")?,
            heads: fields.size("num_attention_heads")?,
            quick_gelu,
            norm_eps: fields.number_or("layer_norm_eps", 1e-5)? as f32,
        };
        match tower.hidden.is_multiple_of(tower.heads) {
            true => Ok(tower),
            false => Err(fields.refuse("hidden_size", &format!("{} heads share it", tower.heads))),
        }
    }
}

impl TextConfig {
    /// `file` is named in refusals.
    pub fn read(file: &str, json: &Value) -> Result<Self, PredictError> {
        let fields = Fields { file, json };
        // transformers reads the pooled row at the highest id where a file still has the id that was wrong at first.
        let end_id = match fields.get("eos_token_id") {
            None => Some(49_407),
            Some(value) => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(2) => None,
                Some(id) => Some(id),
                None => return Err(fields.refuse("eos_token_id", "an id is needed")),
            },
        };
        let architectures = json["architectures"].as_array();
        let projects = architectures.is_some_and(|all| all.iter().any(|name| name == "CLIPTextModelWithProjection"));
        Ok(Self {
            tower: Tower::read(&fields)?,
            positions: fields.size_or("max_position_embeddings", 77)?,
            vocabulary: fields.size_or("vocab_size", 49_408)?,
            projection: projects.then(|| fields.size_or("projection_dim", 512)).transpose()?,
            end_id,
        })
    }
}

impl VisionConfig {
    /// Of a whole CLIP's config, which has the image side's in `vision_config`.
    pub fn read(file: &str, json: &Value) -> Result<Self, PredictError> {
        let whole = Fields { file, json };
        let inside =
            whole.get("vision_config").ok_or_else(|| whole.refuse("vision_config", "the image side is needed"))?;
        let fields = Fields { file: &format!("{file}, vision_config"), json: inside };
        fields.only(&[("num_channels", json!(3))])?;
        let config = Self {
            tower: Tower::read(&fields)?,
            image_size: fields.size("image_size")?,
            patch_size: fields.size("patch_size")?,
            projection: whole.size("projection_dim")?,
        };
        match config.patch_size <= config.image_size {
            true => Ok(config),
            false => Err(fields.refuse("patch_size", &format!("an image of {} has no such patch", config.image_size))),
        }
    }

    /// Patches of a side; what is left at the right and below is not looked at.
    pub fn patches(&self) -> usize {
        self.image_size / self.patch_size
    }
}

impl UnetConfig {
    pub fn read(file: &str, json: &Value) -> Result<Self, PredictError> {
        let fields = Fields { file, json };
        let (null, none) = (Value::Null, || json!("default"));
        fields.only(&[
            ("act_fn", json!("silu")),
            ("addition_embed_type", json!("text_time")),
            ("attention_type", none()),
            ("center_input_sample", json!(false)),
            ("class_embed_type", null.clone()),
            ("class_embeddings_concat", json!(false)),
            ("conv_in_kernel", json!(3)),
            ("conv_out_kernel", json!(3)),
            ("cross_attention_norm", null.clone()),
            ("downsample_padding", json!(1)),
            ("dual_cross_attention", json!(false)),
            ("encoder_hid_dim", null.clone()),
            ("encoder_hid_dim_type", null.clone()),
            ("mid_block_scale_factor", json!(1)),
            ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
            ("num_attention_heads", null.clone()),
            ("num_class_embeds", null.clone()),
            ("only_cross_attention", json!(false)),
            ("resnet_out_scale_factor", json!(1)),
            ("resnet_skip_time_act", json!(false)),
            ("resnet_time_scale_shift", none()),
            ("reverse_transformer_layers_per_block", null.clone()),
            ("time_cond_proj_dim", null.clone()),
            ("time_embedding_act_fn", null.clone()),
            ("time_embedding_dim", null.clone()),
            ("time_embedding_type", json!("positional")),
            ("timestep_post_act", null),
        ])?;
        if fields.get("addition_embed_type").is_none() {
            return Err(fields.refuse("addition_embed_type", "text_time is run"));
        }
        let channels = fields.sizes("block_out_channels")?;
        let count = channels.len();
        let resnets = fields.per_level("layers_per_block", 2, count)?;
        let depths = fields.per_level("transformer_layers_per_block", 1, count)?;
        // The field's name is a mistake that became a habit: it holds the number of heads.
        let heads = fields.per_level("attention_head_dim", 8, count)?;
        let mut levels = Vec::with_capacity(count);
        for (at, kind) in fields.names("down_block_types", count)?.into_iter().enumerate() {
            let depth = match kind {
                "DownBlock2D" => 0,
                "CrossAttnDownBlock2D" => depths[at],
                _ => return Err(fields.refuse("down_block_types", "DownBlock2D and CrossAttnDownBlock2D are run")),
            };
            levels.push(Level { channels: channels[at], resnets: resnets[at], depth, heads: heads[at] });
        }
        for (kind, level) in fields.names("up_block_types", count)?.into_iter().zip(levels.iter().rev()) {
            if kind != if level.depth == 0 { "UpBlock2D" } else { "CrossAttnUpBlock2D" } {
                return Err(fields.refuse("up_block_types", "the way up is run as the mirror of the way down"));
            }
        }
        let config = Self {
            in_channels: fields.size_or("in_channels", 4)?,
            out_channels: fields.size_or("out_channels", 4)?,
            sample_size: fields.size_or("sample_size", 128)?,
            mid_depth: depths[count - 1],
            cross: fields.size("cross_attention_dim")?,
            groups: fields.size_or("norm_num_groups", 32)?,
            norm_eps: fields.number_or("norm_eps", 1e-5)?,
            time_id_features: fields.size("addition_time_embed_dim")?,
            condition: fields.size("projection_class_embeddings_input_dim")?,
            cosines_first: fields.truth_or("flip_sin_to_cos", true)?,
            frequency_shift: fields.number_or("freq_shift", 0.0)? as f32,
            levels,
        };
        for level in &config.levels {
            if !level.channels.is_multiple_of(config.groups) || !level.channels.is_multiple_of(level.heads) {
                let (groups, heads) = (config.groups, level.heads);
                let why = format!("{groups} groups and {heads} heads share {}", level.channels);
                return Err(fields.refuse("block_out_channels", &why));
            }
        }
        if !config.levels[0].channels.is_multiple_of(2) || !config.time_id_features.is_multiple_of(2) {
            return Err(fields.refuse("addition_time_embed_dim", "sinusoids have an even number of features"));
        }
        Ok(config)
    }

    /// Features of a time embedding.
    pub fn time_features(&self) -> usize {
        4 * self.levels[0].channels
    }

    /// How many time ids stand beside a pooled text of so many features: 6 for a base, 5 for a refiner.
    pub fn time_ids(&self, pooled: usize) -> Option<usize> {
        let rest = self.condition.checked_sub(pooled)?;
        rest.is_multiple_of(self.time_id_features).then(|| rest / self.time_id_features)
    }
}

impl VaeConfig {
    pub fn read(file: &str, json: &Value) -> Result<Self, PredictError> {
        let fields = Fields { file, json };
        let levels = fields.sizes("block_out_channels")?;
        let all = |kind: &str| Value::from(vec![kind; levels.len()]);
        fields.only(&[
            ("act_fn", json!("silu")),
            ("down_block_types", all("DownEncoderBlock2D")),
            ("up_block_types", all("UpDecoderBlock2D")),
            ("shift_factor", Value::Null),
            ("latents_mean", Value::Null),
            ("latents_std", Value::Null),
        ])?;
        let config = Self {
            channels: fields.size_or("in_channels", 3)?,
            latent_channels: fields.size_or("latent_channels", 4)?,
            resnets: fields.size_or("layers_per_block", 1)?,
            groups: fields.size_or("norm_num_groups", 32)?,
            sample_size: fields.size_or("sample_size", 32)?,
            scaling_factor: fields.number_or("scaling_factor", 0.18215)?,
            force_upcast: fields.truth_or("force_upcast", true)?,
            quant_conv: fields.truth_or("use_quant_conv", true)?,
            post_quant_conv: fields.truth_or("use_post_quant_conv", true)?,
            mid_attention: fields.truth_or("mid_block_add_attention", true)?,
            levels,
        };
        if config.channels != fields.size_or("out_channels", 3)? {
            return Err(fields.refuse("out_channels", "as many as in_channels are run"));
        }
        if config.levels.iter().any(|channels| !channels.is_multiple_of(config.groups)) {
            return Err(fields.refuse("block_out_channels", &format!("{} groups share each of them", config.groups)));
        }
        Ok(config)
    }

    /// Pixels per latent pixel, both ways.
    pub fn factor(&self) -> usize {
        1 << (self.levels.len() - 1)
    }
}
