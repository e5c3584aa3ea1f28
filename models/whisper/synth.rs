//! Whispers of true shapes for random weights: sizes, configuration, vocabulary and how each tensor is scaled. The values
//! are the runner's. The vocabulary works: every byte is a token; the rest are words that only the net says.

use runner::synth::{Fill, Plan, Shape, Tensor};
use serde_json::{Map, Value, json};

/// What transformers initialises a Whisper's matrices with.
const DEVIATION: f32 = 0.02;

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "whisper-large-v3",
        about: "Whisper large-v3: 1.54 billion parameters",
        dtype: "f16",
        listed: true,
        plan: |dtype| LARGE_V3.plan(dtype),
    },
    Shape {
        name: "whisper-large-v3-turbo",
        about: "Whisper large-v3-turbo: four layers of decoder",
        dtype: "f16",
        listed: true,
        plan: |dtype| Sizes { decoder_layers: 4, ..LARGE_V3 }.plan(dtype),
    },
    Shape {
        name: "whisper-test",
        about: "For tests: one layer, multilingual",
        dtype: "f32",
        listed: false,
        plan: |dtype| TEST.plan(dtype),
    },
];

/// Sizes as `config.json` names them.
#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    encoder_layers: usize,
    decoder_layers: usize,
    mels: usize,
    vocabulary: usize,
    deviation: f32,
}

const LARGE_V3: Sizes =
    Sizes { hidden: 1280, encoder_layers: 32, decoder_layers: 32, mels: 128, vocabulary: 51_866, deviation: DEVIATION };

/// Scaled so that what is heard changes what is said.
const TEST: Sizes =
    Sizes { hidden: 64, encoder_layers: 1, decoder_layers: 1, mels: 80, vocabulary: 51_865, deviation: 0.3 };

/// Every Whisper's heads are so wide.
const HEAD: usize = 64;
const AUDIO_CONTEXT: usize = 1500;
const TEXT_CONTEXT: usize = 448;
/// Text tokens of the multilingual vocabulary, before `<|endoftext|>`.
const TEXT_TOKENS: usize = 50_257;

impl Sizes {
    fn plan(&self, dtype: &str) -> Plan {
        let text = |value: Value| value.to_string().into_bytes();
        Plan {
            files: vec![("tokenizer.json", text(tokenizer())), ("config.json", text(self.config(dtype)))],
            tensors: self.tensors(),
        }
    }

    fn config(&self, dtype: &str) -> Value {
        let stored = match dtype {
            "bf16" => "bfloat16",
            "f16" => "float16",
            _ => "float32",
        };
        let heads = self.hidden / HEAD;
        json!({
            "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "torch_dtype": stored,
            "d_model": self.hidden, "encoder_layers": self.encoder_layers, "decoder_layers": self.decoder_layers,
            "encoder_attention_heads": heads, "decoder_attention_heads": heads, "num_mel_bins": self.mels,
            "encoder_ffn_dim": 4 * self.hidden, "decoder_ffn_dim": 4 * self.hidden,
            "max_source_positions": AUDIO_CONTEXT, "max_target_positions": TEXT_CONTEXT,
            "vocab_size": self.vocabulary, "activation_function": "gelu", "scale_embedding": false,
        })
    }

    fn tensors(&self) -> Vec<Tensor> {
        let Self { hidden, mels, vocabulary, deviation, .. } = *self;
        let normal = Fill::Normal(deviation);
        let mut all = Vec::new();
        let mut add =
            |name: String, shape: Vec<usize>, fill| all.push(Tensor { name: format!("model.{name}"), shape, fill });
        for (number, inputs) in [(1, mels), (2, hidden)] {
            add(format!("encoder.conv{number}.weight"), vec![hidden, inputs, 3], normal);
            add(format!("encoder.conv{number}.bias"), vec![hidden], normal);
        }
        add("encoder.embed_positions.weight".into(), vec![AUDIO_CONTEXT, hidden], normal);
        add("decoder.embed_positions.weight".into(), vec![TEXT_CONTEXT, hidden], normal);
        add("decoder.embed_tokens.weight".into(), vec![vocabulary, hidden], normal);
        for (side, layers) in [("encoder", self.encoder_layers), ("decoder", self.decoder_layers)] {
            let attentions: &[&str] = if side == "decoder" { &["self_attn", "encoder_attn"] } else { &["self_attn"] };
            add(format!("{side}.layer_norm.weight"), vec![hidden], Fill::Ones);
            add(format!("{side}.layer_norm.bias"), vec![hidden], normal);
            for layer in (0..layers).map(|n| format!("{side}.layers.{n}")) {
                for norm in attentions.iter().map(|of| format!("{of}_layer_norm")).chain(["final_layer_norm".into()]) {
                    add(format!("{layer}.{norm}.weight"), vec![hidden], Fill::Ones);
                    add(format!("{layer}.{norm}.bias"), vec![hidden], normal);
                }
                for (of, part) in attentions.iter().flat_map(|of| ["q", "k", "v", "out"].map(|part| (of, part))) {
                    add(format!("{layer}.{of}.{part}_proj.weight"), vec![hidden, hidden], normal);
                    if part != "k" {
                        add(format!("{layer}.{of}.{part}_proj.bias"), vec![hidden], normal);
                    }
                }
                for (name, out, inputs) in [("fc1", 4 * hidden, hidden), ("fc2", hidden, 4 * hidden)] {
                    add(format!("{layer}.{name}.weight"), vec![out, inputs], normal);
                    add(format!("{layer}.{name}.bias"), vec![out], normal);
                }
            }
        }
        all
    }
}

/// The bytes as GPT-2 writes them, then words that no text is cut into, up to the real number of text tokens.
fn tokenizer() -> Value {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 0x100..;
    let bytes = (0..256).filter_map(|byte| if printable(&byte) { Some(byte) } else { others.next() });
    let bytes = bytes.filter_map(char::from_u32).map(String::from);
    let words = (256..TEXT_TOKENS).map(|id| format!("\u{120}word{id}"));
    let vocabulary: Map<String, Value> =
        bytes.chain(words).zip(0..).map(|(word, id)| (word, Value::from(id))).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "added_tokens": [{"id": TEXT_TOKENS, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
}
