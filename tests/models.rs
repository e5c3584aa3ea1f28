//! Llama folders of a wanted size with made-up weights, for tests of memory: what they say means nothing. Knows the format of
//! the files, nothing of who loads them.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::support::tests_folder;

/// Positions of a prediction that such a model knows.
pub const POSITIONS: u32 = 8192;

const LAYERS: usize = 8;
const HIDDEN: usize = 256;
const HEAD: usize = 32;
/// As the tokenizer of the golden folder has them.
const VOCABULARY: usize = 512;

/// Writes `name` below `folder`: about `megabytes` of weights in f32.
pub fn write(folder: &Path, name: &str, megabytes: usize) -> PathBuf {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    let golden = tests_folder().join("../models/llama/golden/tiny-llama3");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(golden.join(file), folder.join(file)).unwrap();
    }
    // Most of it is the three matrices of each layer's feed-forward.
    let inner = megabytes * 1_000_000 / (4 * 3 * LAYERS * HIDDEN) / 32 * 32;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
    let own = json!({
        "hidden_size": HIDDEN, "intermediate_size": inner, "num_attention_heads": HIDDEN / HEAD,
        "num_key_value_heads": 1, "head_dim": HEAD, "num_hidden_layers": LAYERS, "max_position_embeddings": POSITIONS,
    });
    config.extend(own.as_object().unwrap().clone());
    fs::write(folder.join("config.json"), Value::Object(config).to_string()).unwrap();
    safetensors(&folder.join("model.safetensors"), &tensors(inner));
    folder
}

fn tensors(inner: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let own = [
            ("input_layernorm", vec![HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, inner]),
            ("mlp.gate_proj", vec![inner, HIDDEN]),
            ("mlp.up_proj", vec![inner, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.k_proj", vec![HEAD, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj", vec![HEAD, HIDDEN]),
        ];
        tensors.extend(own.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    tensors
}

/// Eight bytes of length, a header in JSON, the values.
fn safetensors(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let values: Vec<u8> = (0..4096u32).flat_map(value).collect();
    let mut left = end;
    while left > 0 {
        let piece = left.min(values.len());
        file.write_all(&values[..piece]).unwrap();
        left -= piece;
    }
    file.flush().unwrap();
}

/// Between -0.05 and 0.05, without a pattern that matters.
fn value(index: u32) -> [u8; 4] {
    let mixed = index.wrapping_mul(2_654_435_761) >> 8;
    (((mixed as f32 / (1 << 24) as f32) - 0.5) / 10.0).to_le_bytes()
}
