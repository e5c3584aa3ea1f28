//! Random weights: a folder that was written and weights made in place are loaded as any others, and are the same.

use ::prediction::{LoadSpec, Loaded, PredictError, Weights};
use runner::synth::Synth;
use runner::weights::lock_path;
use serde_json::json;

use super::super::weights::Opened;
use super::{alone, golden, load, metric, pieces, spec};

fn synth(shape: &str, dtype: &str, seed: u64) -> Opened {
    Opened::synth(shape, dtype, seed).unwrap()
}

fn tiny(dtype: &str, seed: u64) -> LoadSpec {
    let weights = Weights::Synth { shape: "tiny".into(), dtype: dtype.into(), seed };
    LoadSpec { weights, ..spec(&golden("tiny-tied")) }
}

#[test]
fn random_weights_are_written_loaded_and_stepped() {
    let folder = tempfile::tempdir().unwrap();
    let shape = super::super::ENTRY.shape("tiny").unwrap();
    for dtype in ["f32", "f16", "bf16"] {
        let to = folder.path().join(dtype);
        let written = Synth::new(shape, dtype, 5).unwrap().write(&to, &mut |_, _| ()).unwrap();
        assert_eq!(written.bytes, lock_path("tiny", &to).unwrap().size);
        let mut files: Vec<_> =
            std::fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let beside = ["config.json", "generation_config.json", "model.safetensors"];
        assert_eq!(files, [&beside[..], &["tokenizer.json", "tokenizer_config.json"]].concat());

        let input = json!({"prompt": "Any words at all", "temperature": 0, "max_tokens": 12, "min_tokens": 12});
        let mut from_files = load(&spec(&to)).unwrap();
        let events = alone(&mut from_files, input.clone());
        assert_eq!(metric(&events, "output_token_count"), 12);
        let mut in_place = load(&tiny(dtype, 5)).unwrap();
        assert_eq!(in_place.bytes(), from_files.bytes());
        assert_eq!(pieces(&alone(&mut in_place, input.clone())), pieces(&events), "{dtype}");
        let mut other = load(&tiny(dtype, 6)).unwrap();
        assert_ne!(pieces(&alone(&mut other, input)), pieces(&events), "another seed says something else");
    }
}

#[test]
fn loading_them_says_that_they_are_random() {
    let mut lines = Vec::new();
    super::super::pipeline::Pipeline::load(&tiny("f16", 3), &mut |line| lines.push(line.to_owned())).unwrap();
    assert!(lines.iter().any(|line| line.contains("random weights of the shape tiny (f16, seed 3)")), "{lines:?}");
}

#[test]
fn the_shapes_are_those_that_are_published() {
    // Parameters as the model cards count them.
    for (shape, parameters) in [
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("smollm2-135m", 134_515_008),
    ] {
        let shape = super::super::ENTRY.shape(shape).unwrap();
        assert_eq!(Synth::new(shape, "bf16", 0).unwrap().total_bytes(), 2 * parameters, "{}", shape.name);
    }
    let config = synth("llama-3-8b", "bf16", 0).config;
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.layers), (32, 8, 128, 32));
    assert_eq!(
        (config.rope_theta, config.context, config.tied, config.ends),
        (5e5, 8192, false, vec![128_001, 128_009])
    );
}

#[test]
fn special_tokens_have_their_real_ids() {
    let (llama, words) = synth("llama-3-8b", "bf16", 0).tokenizer().unwrap();
    for (word, id) in [
        ("<|begin_of_text|>", 128_000),
        ("<|end_of_text|>", 128_001),
        ("<|reserved_special_token_0|>", 128_002),
        ("<|reserved_special_token_3|>", 128_005),
        ("<|start_header_id|>", 128_006),
        ("<|end_header_id|>", 128_007),
        ("<|reserved_special_token_4|>", 128_008),
        ("<|eot_id|>", 128_009),
        ("<|reserved_special_token_5|>", 128_010),
        ("<|reserved_special_token_250|>", 128_255),
    ] {
        assert_eq!(llama.special(word), Some(id), "{word}");
    }
    assert_eq!((llama.encode("!").unwrap(), llama.bos), (vec![0], Some(128_000)));
    assert_eq!(llama.inner.get_vocab_size(true), 128_256);
    assert_eq!((words.bos.as_str(), words.eos.as_str()), ("<|begin_of_text|>", "<|eot_id|>"));

    let (smollm2, words) = synth("smollm2-135m", "f16", 0).tokenizer().unwrap();
    for (word, id) in [("<|endoftext|>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2), ("<empty_output>", 16)] {
        assert_eq!(smollm2.special(word), Some(id), "{word}");
    }
    assert_eq!((smollm2.bos, smollm2.inner.get_vocab_size(true)), (None, 49_152));
    assert_eq!(words.eos, "<|im_end|>");
}

#[test]
fn every_text_survives_the_tokenizer() {
    for shape in ["llama-3-8b", "smollm2-135m", "tiny"] {
        let (tokenizer, _) = synth(shape, "bf16", 0).tokenizer().unwrap();
        let every_byte: String = (0..=0x7FF).filter_map(char::from_u32).chain("€ 🦀 語\r\n\t".chars()).collect();
        for text in ["", "Hello, world", "it's 12345  blanks\n\n", "<|im_start|>user\n", every_byte.as_str()] {
            let ids = tokenizer.encode(text).unwrap();
            let mut bytes = Vec::new();
            ids.iter().for_each(|&id| tokenizer.spell(id, false, &mut bytes));
            let special = text.contains("<|im_start|>") && shape == "smollm2-135m";
            let expected = if special { text.replace("<|im_start|>", "") } else { text.to_owned() };
            assert_eq!(String::from_utf8(bytes).unwrap(), expected, "{shape}");
        }
    }
}

#[test]
fn a_chat_is_rendered_with_the_models_own_words() {
    let mut pipeline = load(&tiny("f32", 0)).unwrap();
    let events = alone(&mut pipeline, json!({"prompt": "Hi", "max_tokens": 1}));
    // bos, two headers of 4 + "user" and 9 + "assistant" with two newlines each, "Hi", an end.
    let tokens = 1 + (2 + 4 + 2) + 2 + 1 + (2 + 9 + 2);
    assert_eq!(metric(&events, "input_token_count"), tokens);
}

#[test]
fn unknown_shapes_are_refused_with_those_there_are() {
    let PredictError::FixInput(why) = Opened::synth("gpt-4", "bf16", 0).err().unwrap() else { panic!() };
    assert_eq!(why, "no shape is called \"gpt-4\"; there is llama-3-8b, llama-3-70b, llama-3.2-1b, smollm2-135m");
    assert!(crate::Entry::of_shape("tiny").is_ok() && crate::Entry::of_shape("gpt-4").is_err());
    let refused = load(&tiny("q4", 0)).err().unwrap().to_string();
    assert_eq!(refused, "dtype q4: unknown; f32, f16 and bf16 are");
}

/// The residual stream and the logits stay far inside what f16 holds, at the depth and width that real ones have.
#[test]
fn logits_of_random_weights_are_numbers_of_an_ordinary_size() {
    let mut pipeline = load(&LoadSpec { precision: Some("f16".into()), ..tiny("f16", 1) }).unwrap();
    let mut rows = super::super::rows::Rows::default();
    rows.push(&[0], 0, &[600, 1, 2, 3, 4]);
    rows.want_last(0);
    let logits = pipeline.engine.logits(&rows).unwrap();
    let largest = logits.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    assert!(logits.iter().all(|x| x.is_finite()) && (0.1..100.0).contains(&largest), "{largest}");
}
