//! Llamas of true shapes for random weights: sizes, configuration, tokenizer and how each tensor is scaled. The values are
//! the runner's; what a shape is called and measured as stands in `SHAPES`, and nowhere else.
//!
//! The tokenizer works: every byte is a token, so that any text survives the way there and back, special tokens have
//! their real ids and are recognised in a template. It knows no merges, so a text has a token per byte; the rest of the
//! vocabulary are fillers that only the net says.

use runner::synth::{Fill, Plan, Shape, Tensor};
use serde_json::{Map, Value, json};

use super::files::{Role, names, roles};
use super::tokenizer::byte_level_characters;
use super::tokenizer_gguf::LLAMA3_WORDS;

/// What transformers initialises a Llama's matrices with.
const DEVIATION: f32 = 0.02;

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "llama-3-8b",
        about: "Meta Llama 3 8B: 8.03 billion parameters",
        dtype: "bf16",
        listed: true,
        plan: |dtype| LLAMA_3_8B.plan(dtype),
    },
    Shape {
        name: "llama-3-70b",
        about: "Meta Llama 3 70B: 70.6 billion parameters",
        dtype: "bf16",
        listed: true,
        plan: |dtype| LLAMA_3_70B.plan(dtype),
    },
    Shape {
        name: "llama-3.2-1b",
        about: "Meta Llama 3.2 1B, its first 8192 positions: 1.24 billion parameters, tied head",
        dtype: "bf16",
        listed: true,
        plan: |dtype| LLAMA_3_2_1B.plan(dtype),
    },
    Shape {
        name: "smollm2-135m",
        about: "SmolLM2 135M: 135 million parameters, tied head",
        dtype: "bf16",
        listed: true,
        plan: |dtype| SMOLLM2_135M.plan(dtype),
    },
    Shape {
        name: "tiny-64",
        about: "For tests of the CUDA kernels: two layers, heads of 64",
        dtype: "f16",
        listed: false,
        plan: |dtype| TINY_64.plan(dtype),
    },
    Shape { name: "tiny", about: "For tests: two layers", dtype: "f32", listed: false, plan: |dtype| TINY.plan(dtype) },
];

/// Sizes as `config.json` names them.
#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    context: usize,
    rope_theta: f32,
    tied: bool,
    family: Family,
}

/// Whose special tokens and template it has.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Llama3,
    SmolLm2,
}

const LLAMA_3_8B: Sizes = Sizes {
    hidden: 4096,
    inner: 14_336,
    layers: 32,
    heads: 32,
    kv_heads: 8,
    vocabulary: 128_256,
    context: 8192,
    rope_theta: 500_000.0,
    tied: false,
    family: Family::Llama3,
};

const LLAMA_3_70B: Sizes = Sizes { hidden: 8192, inner: 28_672, layers: 80, heads: 64, ..LLAMA_3_8B };

const LLAMA_3_2_1B: Sizes = Sizes { hidden: 2048, inner: 8192, layers: 16, tied: true, ..LLAMA_3_8B };

const SMOLLM2_135M: Sizes = Sizes {
    hidden: 576,
    inner: 1536,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    vocabulary: 49_152,
    context: 8192,
    rope_theta: 100_000.0,
    tied: true,
    family: Family::SmolLm2,
};

const TINY: Sizes =
    Sizes { hidden: 64, inner: 160, layers: 2, heads: 4, kv_heads: 2, vocabulary: 640, context: 256, ..LLAMA_3_8B };

const TINY_64: Sizes = Sizes { hidden: 128, heads: 2, kv_heads: 1, ..TINY };

impl Sizes {
    fn plan(&self, dtype: &str) -> Plan {
        let text = |value: Value| value.to_string().into_bytes();
        Plan {
            files: vec![
                ("tokenizer.json", text(self.tokenizer())),
                ("tokenizer_config.json", text(self.tokenizer_config())),
                ("generation_config.json", text(self.generation())),
                ("config.json", text(self.config(dtype))),
            ],
            tensors: roles(self.layers, self.tied).map(|role| self.tensor(role)).collect(),
        }
    }

    /// What is added to the residual stream is made smaller by the number of additions, as GPT-2 was: the stream, and
    /// with it every activation, stays within what f16 holds however many layers there are.
    fn tensor(&self, role: Role) -> Tensor {
        let Self { hidden, inner, heads, kv_heads, vocabulary, .. } = *self;
        let head_dim = hidden / heads;
        let (shape, fill) = match role {
            Role::Embed | Role::Head => (vec![vocabulary, hidden], Fill::Normal(DEVIATION)),
            Role::Norm | Role::AttnNorm(_) | Role::FfnNorm(_) => (vec![hidden], Fill::Ones),
            Role::Q(_) => (vec![heads * head_dim, hidden], Fill::Normal(DEVIATION)),
            Role::K(_) | Role::V(_) => (vec![kv_heads * head_dim, hidden], Fill::Normal(DEVIATION)),
            Role::Gate(_) | Role::Up(_) => (vec![inner, hidden], Fill::Normal(DEVIATION)),
            Role::O(_) => (vec![hidden, heads * head_dim], self.residual()),
            Role::Down(_) => (vec![hidden, inner], self.residual()),
        };
        Tensor { name: names(role).1, shape, fill }
    }

    fn residual(&self) -> Fill {
        Fill::Normal(DEVIATION / (2.0 * self.layers as f32).sqrt())
    }

    fn config(&self, dtype: &str) -> Value {
        let stored = match dtype {
            "bf16" => "bfloat16",
            "f16" => "float16",
            _ => "float32",
        };
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": stored,
            "hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context, "rope_theta": self.rope_theta, "rope_scaling": null,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
            "tie_word_embeddings": self.tied, "bos_token_id": self.id(self.bos()), "eos_token_id": self.id(self.eos()),
        })
    }

    fn generation(&self) -> Value {
        let ends: Vec<_> = self.ends().iter().map(|word| self.id(word)).collect();
        json!({"bos_token_id": self.id(self.bos()), "eos_token_id": ends, "do_sample": true, "temperature": 0.6, "top_p": 0.9})
    }

    fn bos(&self) -> &'static str {
        match self.family {
            Family::Llama3 => "<|begin_of_text|>",
            Family::SmolLm2 => "<|im_start|>",
        }
    }

    fn eos(&self) -> &'static str {
        self.ends()[0]
    }

    fn ends(&self) -> &'static [&'static str] {
        match self.family {
            Family::Llama3 => &["<|eot_id|>", "<|end_of_text|>"],
            Family::SmolLm2 => &["<|im_end|>"],
        }
    }

    fn id(&self, special: &str) -> Option<usize> {
        self.specials().into_iter().find(|(_, word)| word == special).map(|(id, _)| id)
    }

    /// Llama 3 has them behind the texts, SmolLM2 before.
    fn specials(&self) -> Vec<(usize, String)> {
        match self.family {
            Family::Llama3 => {
                const NAMED: [(usize, &str); 5] = [
                    (0, "begin_of_text"),
                    (1, "end_of_text"),
                    (6, "start_header_id"),
                    (7, "end_header_id"),
                    (9, "eot_id"),
                ];
                let first = self.vocabulary - LLAMA3_SPECIALS;
                let mut reserved = 0;
                let word = |at: usize| match NAMED.iter().find(|(place, _)| *place == at) {
                    Some((_, name)) => format!("<|{name}|>"),
                    None => {
                        reserved += 1;
                        format!("<|reserved_special_token_{}|>", reserved - 1)
                    }
                };
                (0..LLAMA3_SPECIALS).map(word).enumerate().map(|(at, word)| (first + at, word)).collect()
            }
            Family::SmolLm2 => SMOLLM2_SPECIALS.iter().map(|word| (*word).to_owned()).enumerate().collect(),
        }
    }

    fn tokenizer(&self) -> Value {
        let specials = self.specials();
        let mut vocabulary: Map<String, Value> = specials.iter().map(|(id, word)| (word.clone(), json!(id))).collect();
        let taken =
            |id: usize| specials.first().is_some_and(|(first, _)| (*first..first + specials.len()).contains(&id));
        let mut free = (0..self.vocabulary).filter(|id| !taken(*id));
        vocabulary.extend(byte_level_characters().zip(&mut free).map(|(byte, id)| (byte.to_string(), json!(id))));
        vocabulary.extend(free.enumerate().map(|(number, id)| (filler(number), json!(id))));
        let added = specials.iter().map(|(id, word)| {
            json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        });
        let first = json!({"SpecialToken": {"id": self.bos(), "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let bos = json!({"id": self.bos(), "ids": [self.id(self.bos())], "tokens": [self.bos()]});
        // SmolLM2 begins nothing with a token of its own.
        let begin = (self.family == Family::Llama3).then(|| {
            json!({"type": "TemplateProcessing", "single": [first, text], "pair": [first, text],
                "special_tokens": {self.bos(): bos}})
        });
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let words =
            json!({"type": "Split", "pattern": {"Regex": LLAMA3_WORDS}, "behavior": "Isolated", "invert": false});
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, bytes]},
            "post_processor": begin, "decoder": bytes,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": []},
        })
    }

    fn tokenizer_config(&self) -> Value {
        let template = match self.family {
            Family::Llama3 => LLAMA3_CHAT,
            Family::SmolLm2 => SMOLLM2_CHAT,
        };
        json!({"bos_token": self.bos(), "eos_token": self.eos(), "chat_template": template,
            "model_max_length": self.context, "tokenizer_class": "PreTrainedTokenizerFast"})
    }
}

/// The `number`th word that no text is cut into: a blank and letters, `aa`, `ab` and on.
fn filler(number: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = number + 26;
    while rest > 0 {
        letters.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    // The blank, as the byte-level table spells it.
    std::iter::once('\u{120}').chain(letters.into_iter().rev()).collect()
}

/// The last ids of every Llama 3.
const LLAMA3_SPECIALS: usize = 256;

const SMOLLM2_SPECIALS: [&str; 17] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
];

const LLAMA3_CHAT: &str = "{{ bos_token }}{% for message in messages %}\
    {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

const SMOLLM2_CHAT: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
