//! A Whisper of one small layer with random weights, multilingual, written where it is wanted: everything but sense.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

const HIDDEN: usize = 64;
const VOCABULARY: usize = 51_865;

/// Writes config.json, model.safetensors and tokenizer.json; gives the folder.
pub fn write(seed: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["WhisperForConditionalGeneration"], "d_model": HIDDEN, "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1, "num_mel_bins": 80,
        "max_source_positions": 1500, "max_target_positions": 448, "vocab_size": VOCABULARY,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    weights(&folder.path().join("model.safetensors"), seed);
    tokenizer(&folder.path().join("tokenizer.json"));
    folder
}

fn weights(path: &Path, seed: u64) {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| shapes.push((format!("model.{name}"), shape.to_vec()));
    add("encoder.conv1.weight".into(), &[HIDDEN, 80, 3]);
    add("encoder.conv2.weight".into(), &[HIDDEN, HIDDEN, 3]);
    add("encoder.conv1.bias".into(), &[HIDDEN]);
    add("encoder.conv2.bias".into(), &[HIDDEN]);
    add("encoder.embed_positions.weight".into(), &[1500, HIDDEN]);
    add("decoder.embed_positions.weight".into(), &[448, HIDDEN]);
    add("decoder.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN]);
    for side in ["encoder", "decoder"] {
        let layer = format!("{side}.layers.0");
        let mut norms = vec![format!("{layer}.self_attn_layer_norm"), format!("{layer}.final_layer_norm")];
        norms.push(format!("{side}.layer_norm"));
        let mut attentions = vec![format!("{layer}.self_attn")];
        if side == "decoder" {
            norms.push(format!("{layer}.encoder_attn_layer_norm"));
            attentions.push(format!("{layer}.encoder_attn"));
        }
        for norm in norms {
            add(format!("{norm}.weight"), &[HIDDEN]);
            add(format!("{norm}.bias"), &[HIDDEN]);
        }
        for part in attentions.iter().flat_map(|of| ["q", "k", "v", "out"].map(|part| format!("{of}.{part}_proj"))) {
            add(format!("{part}.weight"), &[HIDDEN, HIDDEN]);
            if !part.ends_with("k_proj") {
                add(format!("{part}.bias"), &[HIDDEN]);
            }
        }
        add(format!("{layer}.fc1.weight"), &[4 * HIDDEN, HIDDEN]);
        add(format!("{layer}.fc1.bias"), &[4 * HIDDEN]);
        add(format!("{layer}.fc2.weight"), &[HIDDEN, 4 * HIDDEN]);
        add(format!("{layer}.fc2.bias"), &[HIDDEN]);
    }
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let bytes: HashMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let norm = name.contains("norm.weight");
            let scale = if shape.len() > 1 { 3.0 / (shape[1] as f32).sqrt() } else { 0.2 };
            let count = shape.iter().product::<usize>();
            let values = (0..count).map(|_| next() * scale + if norm { 1.0 } else { 0.0 });
            (name, (shape, values.flat_map(f32::to_le_bytes).collect()))
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, (shape, bytes))| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The bytes as GPT-2 writes them, and words that nobody says up to the size of the real vocabulary.
fn tokenizer(path: &Path) {
    let mut vocabulary = serde_json::Map::new();
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 0x100;
    for byte in 0..256 {
        let code = if printable(byte) {
            byte
        } else {
            others += 1;
            others - 1
        };
        vocabulary.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    (256..50_257).for_each(|id| drop(vocabulary.insert(format!("\u{120}word{id}"), id.into())));
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{"id": 50_257, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    std::fs::write(path, tokenizer.to_string()).unwrap();
}
