//! The names of single checkpoint files: what the first implementation (Stability AI's generative-models, with open_clip's
//! transformer inside) calls the tensors that a diffusers folder has. Refuses to know files.
//!
//! Blocks are counted through all levels there: with r resnets per level, `input_blocks.{1 + level (r + 1) + n}` is a level's
//! nth resnet (`.0`) with its transformer (`.1`), or its downsampler; `output_blocks.{level (r + 1) + n}` likewise, where the
//! upsampler follows what is in the block. The VAE counts its levels on the way up from the finest.

use super::config::{UnetConfig, VaeConfig};

/// What of a tensor is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    Whole,
    /// This third of its rows: queries, keys and values are one matrix.
    Third(usize),
    /// Rows and columns change places.
    Turned,
}

/// A name and what of its tensor is wanted.
pub type Place = (String, Take);

/// First number after `word.` in `name`, and the rest behind it.
fn numbered<'a>(name: &'a str, word: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(word)?.strip_prefix('.')?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The parts of a resnet, in both networks, by (diffusers, UNet, VAE).
const RESNET: [(&str, &str, &str); 6] = [
    ("norm1", "in_layers.0", "norm1"),
    ("conv1", "in_layers.2", "conv1"),
    ("time_emb_proj", "emb_layers.1", ""),
    ("norm2", "out_layers.0", "norm2"),
    ("conv2", "out_layers.3", "conv2"),
    ("conv_shortcut", "skip_connection", "nin_shortcut"),
];

/// `part.weight` as `theirs.weight`.
fn renamed(rest: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(own, theirs)| Some(format!("{theirs}.{}", rest.strip_prefix(own)?.strip_prefix('.')?)))
}

pub fn unet(name: &str, config: &UnetConfig) -> Option<Place> {
    let resnet = |rest: &str| renamed(rest, &RESNET.map(|(own, theirs, _)| (own, theirs)));
    let before = |level: usize| config.levels[..level].iter().map(|level| level.resnets + 1).sum::<usize>();
    let up_before = |level: usize| config.levels.iter().rev().take(level).map(|level| level.resnets + 1).sum::<usize>();
    let their = if let Some((level, rest)) = numbered(name, "down_blocks") {
        let count = config.levels.get(level)?.resnets;
        match (numbered(rest, "resnets"), numbered(rest, "attentions"), numbered(rest, "downsamplers")) {
            (Some((n, rest)), _, _) => format!("input_blocks.{}.0.{}", 1 + before(level) + n, resnet(rest)?),
            (_, Some((n, rest)), _) => format!("input_blocks.{}.1.{rest}", 1 + before(level) + n),
            (_, _, Some((_, rest))) => {
                format!("input_blocks.{}.0.op.{}", 1 + before(level) + count, rest.strip_prefix("conv.")?)
            }
            _ => return None,
        }
    } else if let Some((level, rest)) = numbered(name, "up_blocks") {
        let at = config.levels.iter().rev().nth(level)?;
        match (numbered(rest, "resnets"), numbered(rest, "attentions"), numbered(rest, "upsamplers")) {
            (Some((n, rest)), _, _) => format!("output_blocks.{}.0.{}", up_before(level) + n, resnet(rest)?),
            (_, Some((n, rest)), _) => format!("output_blocks.{}.1.{rest}", up_before(level) + n),
            (_, _, Some((_, rest))) => {
                let place = if at.depth > 0 { 2 } else { 1 };
                format!("output_blocks.{}.{place}.{rest}", up_before(level) + at.resnets)
            }
            _ => return None,
        }
    } else if let Some(rest) = name.strip_prefix("mid_block.") {
        match (numbered(rest, "resnets"), numbered(rest, "attentions")) {
            (Some((n, rest)), _) => format!("middle_block.{}.{}", 2 * n, resnet(rest)?),
            (_, Some((_, rest))) => format!("middle_block.1.{rest}"),
            _ => return None,
        }
    } else {
        renamed(
            name,
            &[
                ("time_embedding.linear_1", "time_embed.0"),
                ("time_embedding.linear_2", "time_embed.2"),
                ("add_embedding.linear_1", "label_emb.0.0"),
                ("add_embedding.linear_2", "label_emb.0.2"),
                ("conv_in", "input_blocks.0.0"),
                ("conv_norm_out", "out.0"),
                ("conv_out", "out.2"),
            ],
        )?
    };
    Some((their, Take::Whole))
}

pub fn vae(name: &str, config: &VaeConfig) -> Option<Place> {
    let resnet = |rest: &str| renamed(rest, &RESNET.map(|(own, _, theirs)| (own, theirs)));
    let (side, rest) = name.split_once('.')?;
    let their = if let Some((level, rest)) = numbered(rest, "down_blocks") {
        match numbered(rest, "resnets") {
            Some((n, rest)) => format!("{side}.down.{level}.block.{n}.{}", resnet(rest)?),
            None => format!("{side}.down.{level}.downsample.{}", rest.strip_prefix("downsamplers.0.")?),
        }
    } else if let Some((level, rest)) = numbered(rest, "up_blocks") {
        let level = (config.levels.len() - 1).checked_sub(level)?;
        match numbered(rest, "resnets") {
            Some((n, rest)) => format!("{side}.up.{level}.block.{n}.{}", resnet(rest)?),
            None => format!("{side}.up.{level}.upsample.{}", rest.strip_prefix("upsamplers.0.")?),
        }
    } else if let Some(rest) = rest.strip_prefix("mid_block.") {
        match numbered(rest, "resnets") {
            Some((n, rest)) => format!("{side}.mid.block_{}.{}", n + 1, resnet(rest)?),
            None => {
                let table =
                    [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];
                format!("{side}.mid.attn_1.{}", renamed(rest.strip_prefix("attentions.0.")?, &table)?)
            }
        }
    } else {
        name.replace("conv_norm_out", "norm_out")
    };
    Some((their, Take::Whole))
}

/// open_clip's names of a CLIP's text side.
pub fn open_clip(name: &str) -> Option<Place> {
    let whole = |name: String| Some((name, Take::Whole));
    if name == "text_projection.weight" {
        return Some(("text_projection".into(), Take::Turned));
    }
    let name = name.strip_prefix("text_model.")?;
    let Some(layer) = name.strip_prefix("encoder.layers.") else {
        return match name {
            "embeddings.token_embedding.weight" => whole("token_embedding.weight".into()),
            "embeddings.position_embedding.weight" => whole("positional_embedding".into()),
            _ => whole(renamed(name, &[("final_layer_norm", "ln_final")])?),
        };
    };
    let (number, rest) = layer.split_once('.')?;
    let block = format!("transformer.resblocks.{number}");
    if let Some(rest) = rest.strip_prefix("self_attn.") {
        let third = ["q_proj.", "k_proj.", "v_proj."].iter().position(|name| rest.starts_with(name));
        if let Some(third) = third {
            let kind = rest.split_once('.')?.1;
            return Some((format!("{block}.attn.in_proj_{kind}"), Take::Third(third)));
        }
        return whole(format!("{block}.attn.{rest}"));
    }
    let table = [("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")];
    whole(format!("{block}.{}", renamed(rest, &table)?))
}
