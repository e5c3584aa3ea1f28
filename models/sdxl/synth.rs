//! Stable Diffusion XL in true and in tiny shapes for random weights, as a diffusers folder: which tensors there are, how
//! each is scaled, and tokenizers that work. The values are the runner's.
//!
//! With the usual initialisation a text hardly moves the UNet's output, and a mistake in its way would not be seen. So
//! every matrix keeps the size of what goes through it (deviation = gain / sqrt(inputs)), and attention looks hard enough
//! at single tokens for another text to be another picture.

use runner::synth::{Fill, Plan, Shape, Tensor};
use serde_json::{Map, Value, json};

use super::sizes::{self, LATENTS, POSITIONS, RESNETS, Sizes, Text, VOCABULARY};

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "sdxl",
        about: "Stable Diffusion XL 1.0: a UNet of 2.57 billion parameters, both CLIPs, VAE",
        dtype: "f16",
        listed: true,
        plan: |dtype| plan(&sizes::BASE, dtype),
    },
    Shape {
        name: "sdxl-refiner",
        about: "Stable Diffusion XL 1.0's refiner: a UNet of 2.26 billion parameters, the second CLIP, VAE",
        dtype: "f16",
        listed: true,
        plan: |dtype| plan(&sizes::REFINER, dtype),
    },
    Shape {
        name: "sdxl-small",
        about: "For measuring on a processor: levels of 64, 128 and 256 channels",
        dtype: "f32",
        listed: false,
        plan: |dtype| plan(&sizes::SMALL, dtype),
    },
    Shape {
        name: "sdxl-tiny",
        about: "For tests: three levels of 32 to 96 channels",
        dtype: "f32",
        listed: false,
        plan: |dtype| plan(&sizes::TINY, dtype),
    },
    Shape {
        name: "sdxl-tiny-refiner",
        about: "For tests: a refiner of four levels",
        dtype: "f32",
        listed: false,
        plan: |dtype| plan(&sizes::TINY_REFINER, dtype),
    },
    Shape {
        name: "sdxl-tiny-inpaint",
        about: "For tests: the tiny one with a UNet that only paints over images",
        dtype: "f32",
        listed: false,
        plan: |dtype| plan(&sizes::TINY_INPAINT, dtype),
    },
];

/// Of queries and keys over the text: scores as far apart as a trained net's.
const LOOK: f32 = 1.6;
/// Of the layer that a time embedding goes through on its way into a resnet.
const TIME: f32 = 0.5;
/// Of a CLIP's embeddings, and of what its layers add to them.
const TOKEN: f32 = 1.0;
const TOKEN_LAYER: f32 = 0.7;
/// Of biases, and of norms' gains around 1.
const BIAS: f32 = 0.05;
const NORM: f32 = 0.1;

const UNET: &str = "unet/diffusion_pytorch_model/";
const VAE: &str = "vae/diffusion_pytorch_model/";
const TEXTS: [&str; 2] = ["text_encoder/model/", "text_encoder_2/model/"];

fn plan(sizes: &Sizes, dtype: &str) -> Plan {
    let stored = match dtype {
        "bf16" => "bfloat16",
        "f16" => "float16",
        _ => "float32",
    };
    let mut files: Vec<_> =
        sizes.files(stored).into_iter().map(|(name, json)| (name, json.to_string().into_bytes())).collect();
    if sizes.is_base() {
        files.extend(tokenizer(FIRST_TOKENIZER, "<|endoftext|>"));
    }
    files.extend(tokenizer(SECOND_TOKENIZER, "!"));
    Plan { files, tensors: tensors(sizes) }
}

/// The tensors of a pipeline of these sizes, under the names that a diffusers folder has.
pub(super) fn tensors(sizes: &Sizes) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for (text, prefix) in sizes.texts.iter().zip(TEXTS) {
        if let Some(text) = text {
            clip(&mut Names { all: &mut tensors, prefix: prefix.into() }, text);
        }
    }
    unet(&mut Names { all: &mut tensors, prefix: UNET.into() }, sizes);
    vae(&mut Names { all: &mut tensors, prefix: VAE.into() }, sizes);
    tensors
}

/// Adds tensors under a prefix.
struct Names<'a> {
    all: &'a mut Vec<Tensor>,
    prefix: String,
}

impl Names<'_> {
    fn at(&mut self, name: &str) -> Names<'_> {
        Names { prefix: format!("{}{name}.", self.prefix), all: self.all }
    }

    fn add(&mut self, name: &str, shape: &[usize], fill: Fill) {
        self.all.push(Tensor { name: format!("{}{name}", self.prefix), shape: shape.to_vec(), fill });
    }

    /// A weight whose result is `gain` times as large as what it reads.
    fn weight(&mut self, name: &str, shape: &[usize], gain: f32) {
        let inputs: usize = shape[1..].iter().product();
        self.add(&format!("{name}.weight"), shape, Fill::Normal(gain / (inputs as f32).sqrt()));
    }

    fn dense(&mut self, name: &str, out: usize, inputs: usize, gain: f32) {
        self.weight(name, &[out, inputs], gain);
        self.add(&format!("{name}.bias"), &[out], Fill::Normal(BIAS));
    }

    fn conv(&mut self, name: &str, out: usize, inputs: usize, kernel: usize) {
        self.weight(name, &[out, inputs, kernel, kernel], 1.0);
        self.add(&format!("{name}.bias"), &[out], Fill::Normal(BIAS));
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(&format!("{name}.weight"), &[width], Fill::NearOne(NORM));
        self.add(&format!("{name}.bias"), &[width], Fill::Normal(BIAS));
    }
}

fn clip(names: &mut Names, text: &Text) {
    let Text { hidden, layers, projection, .. } = *text;
    let mut model = names.at("text_model");
    model.add("embeddings.token_embedding.weight", &[VOCABULARY, hidden], Fill::Normal(TOKEN));
    model.add("embeddings.position_embedding.weight", &[POSITIONS, hidden], Fill::Normal(TOKEN / 2.0));
    for n in 0..layers {
        let mut layer = model.at(&format!("encoder.layers.{n}"));
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            layer.dense(&format!("self_attn.{name}"), hidden, hidden, TOKEN_LAYER);
        }
        layer.norm("layer_norm1", hidden);
        layer.norm("layer_norm2", hidden);
        layer.dense("mlp.fc1", text.inner(), hidden, 1.0);
        layer.dense("mlp.fc2", hidden, text.inner(), TOKEN_LAYER);
    }
    model.norm("final_layer_norm", hidden);
    if let Some(features) = projection {
        names.weight("text_projection", &[features, hidden], 1.0);
    }
}

fn unet(names: &mut Names, sizes: &Sizes) {
    let levels = sizes.levels;
    let first = levels[0].0;
    let time = 4 * first;
    names.conv("conv_in", first, sizes.inputs, 3);
    for (name, inputs) in [("time_embedding", first), ("add_embedding", sizes.condition())] {
        names.dense(&format!("{name}.linear_1"), time, inputs, 1.0);
        names.dense(&format!("{name}.linear_2"), time, time, 1.0);
    }
    let mut channels = first;
    // What the way up finds beside it, in the order in which it was left.
    let mut left = vec![first];
    for (at, &(out, depth, _)) in levels.iter().enumerate() {
        let mut block = names.at(&format!("down_blocks.{at}"));
        for n in 0..RESNETS {
            resnet(&mut block.at(&format!("resnets.{n}")), channels, out, Some(time));
            if depth > 0 {
                transformer(&mut block.at(&format!("attentions.{n}")), out, depth, sizes.cross);
            }
            channels = out;
            left.push(out);
        }
        if at + 1 < levels.len() {
            block.conv("downsamplers.0.conv", out, out, 3);
            left.push(out);
        }
    }
    let mut middle = names.at("mid_block");
    resnet(&mut middle.at("resnets.0"), channels, channels, Some(time));
    transformer(&mut middle.at("attentions.0"), channels, sizes.mid_depth, sizes.cross);
    resnet(&mut middle.at("resnets.1"), channels, channels, Some(time));
    for (at, &(out, depth, _)) in levels.iter().rev().enumerate() {
        let mut block = names.at(&format!("up_blocks.{at}"));
        for n in 0..=RESNETS {
            let beside = left.pop().unwrap_or_default();
            resnet(&mut block.at(&format!("resnets.{n}")), channels + beside, out, Some(time));
            if depth > 0 {
                transformer(&mut block.at(&format!("attentions.{n}")), out, depth, sizes.cross);
            }
            channels = out;
        }
        if at + 1 < levels.len() {
            block.conv("upsamplers.0.conv", out, out, 3);
        }
    }
    names.norm("conv_norm_out", channels);
    names.conv("conv_out", LATENTS, channels, 3);
}

fn resnet(names: &mut Names, inputs: usize, out: usize, time: Option<usize>) {
    names.norm("norm1", inputs);
    names.conv("conv1", out, inputs, 3);
    if let Some(time) = time {
        names.dense("time_emb_proj", out, time, TIME);
    }
    names.norm("norm2", out);
    names.conv("conv2", out, out, 3);
    if inputs != out {
        names.conv("conv_shortcut", out, inputs, 1);
    }
}

fn transformer(names: &mut Names, width: usize, depth: usize, cross: usize) {
    names.norm("norm", width);
    names.dense("proj_in", width, width, 1.0);
    for n in 0..depth {
        let mut block = names.at(&format!("transformer_blocks.{n}"));
        for (attention, read, look) in [("attn1", width, 1.0), ("attn2", cross, LOOK)] {
            block.weight(&format!("{attention}.to_q"), &[width, width], look);
            block.weight(&format!("{attention}.to_k"), &[width, read], look);
            block.weight(&format!("{attention}.to_v"), &[width, read], 1.0);
            block.dense(&format!("{attention}.to_out.0"), width, width, 1.0);
        }
        for norm in ["norm1", "norm2", "norm3"] {
            block.norm(norm, width);
        }
        block.dense("ff.net.0.proj", 8 * width, width, 1.0);
        block.dense("ff.net.2", width, 4 * width, 1.0);
    }
    names.dense("proj_out", width, width, 1.0);
}

fn vae(names: &mut Names, sizes: &Sizes) {
    let levels = sizes.vae;
    let last = levels[levels.len() - 1];
    let mut encoder = names.at("encoder");
    encoder.conv("conv_in", levels[0], 3, 3);
    let mut channels = levels[0];
    for (at, &out) in levels.iter().enumerate() {
        let mut block = encoder.at(&format!("down_blocks.{at}"));
        for n in 0..RESNETS {
            resnet(&mut block.at(&format!("resnets.{n}")), channels, out, None);
            channels = out;
        }
        if at + 1 < levels.len() {
            block.conv("downsamplers.0.conv", out, out, 3);
        }
    }
    vae_middle(&mut encoder.at("mid_block"), last);
    encoder.norm("conv_norm_out", last);
    encoder.conv("conv_out", 2 * LATENTS, last, 3);
    let mut decoder = names.at("decoder");
    decoder.conv("conv_in", last, LATENTS, 3);
    vae_middle(&mut decoder.at("mid_block"), last);
    for (at, &out) in levels.iter().rev().enumerate() {
        let mut block = decoder.at(&format!("up_blocks.{at}"));
        for n in 0..=RESNETS {
            resnet(&mut block.at(&format!("resnets.{n}")), channels, out, None);
            channels = out;
        }
        if at + 1 < levels.len() {
            block.conv("upsamplers.0.conv", out, out, 3);
        }
    }
    decoder.norm("conv_norm_out", channels);
    decoder.conv("conv_out", 3, channels, 3);
    names.conv("quant_conv", 2 * LATENTS, 2 * LATENTS, 1);
    names.conv("post_quant_conv", LATENTS, LATENTS, 1);
}

fn vae_middle(names: &mut Names, width: usize) {
    resnet(&mut names.at("resnets.0"), width, width, None);
    let mut attention = names.at("attentions.0");
    attention.norm("group_norm", width);
    for name in ["to_q", "to_k", "to_v", "to_out.0"] {
        attention.dense(name, width, width, 1.0);
    }
    resnet(&mut names.at("resnets.1"), width, width, None);
}

const FIRST_TOKENIZER: [&str; 4] = [
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
];
const SECOND_TOKENIZER: [&str; 4] = [
    "tokenizer_2/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
];

/// A CLIP tokenizer of the real size: bytes, bytes that end a word, all pairs of two letters; the rest are words that no
/// text is cut into.
fn tokenizer(files: [&'static str; 4], padding: &str) -> [(&'static str, Vec<u8>); 4] {
    const END: &str = "</w>";
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..256).filter(|byte| !printable(byte)).zip(0x100..).map(|(_, stand_in)| stand_in);
    let bytes: Vec<String> =
        (0..256).filter(printable).chain(others).filter_map(char::from_u32).map(String::from).collect();
    let letters = || (b'a'..=b'z').map(char::from);
    let pairs: Vec<(char, String)> =
        letters().flat_map(|a| letters().flat_map(move |b| [(a, format!("{b}{END}")), (a, b.to_string())])).collect();
    let mut words: Vec<String> = bytes.clone();
    words.extend(bytes.iter().map(|byte| format!("{byte}{END}")));
    words.extend(pairs.iter().map(|(a, b)| format!("{a}{b}")));
    let rest = VOCABULARY - 2 - words.len();
    words.extend((0..rest).map(|n| format!("word{n}{END}")));
    words.extend(["<|startoftext|>".into(), "<|endoftext|>".into()]);
    let vocabulary: Map<String, Value> = words.into_iter().zip(0..).map(|(word, id)| (word, Value::from(id))).collect();
    let merges = pairs.iter().map(|(a, b)| format!("{a} {b}\n"));
    let merges: String = std::iter::once("#version: 0.2\n".to_owned()).chain(merges).collect();
    let special = json!({
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": padding,
    });
    let mut config = special.clone();
    config["tokenizer_class"] = json!("CLIPTokenizer");
    config["model_max_length"] = json!(POSITIONS);
    config["do_lower_case"] = json!(true);
    config["add_prefix_space"] = json!(false);
    config["errors"] = json!("replace");
    let text = |value: Value| value.to_string().into_bytes();
    let [vocab, rules, specials, about] = files;
    [
        (vocab, text(Value::Object(vocabulary))),
        (rules, merges.into_bytes()),
        (specials, text(special)),
        (about, text(config)),
    ]
}
