//! Bad input and bad files: refused before device work, in a sentence with the limit in it.

use std::path::PathBuf;

use ::prediction::{Loaded, PredictError};
use serde_json::{Value, json};

use super::gguf::{Entry, write};
use super::{golden, job, load, spec, tiny};

#[test]
fn an_input_is_refused_before_the_device_works() {
    let mut pipeline = tiny("tiny-sharded-bf16");
    for (input, words) in [
        (json!({"prompt": ""}), "(E1001)"),
        (json!({"prompt": "the ".repeat(400)}), "at most 255 fit the context (E1002)"),
        // Refused by its length alone, without cutting it into tokens.
        (json!({"prompt": "x".repeat(1 << 20)}), "Prompt is too long: more than"),
        (json!({"prompt": "Hi", "prompt_template": "nothing"}), "(E1003)"),
        (json!({"prompt": "Hi", "prompt_template": "{prompt} {other}"}), "(E1004)"),
        (json!({"prompt": "Hi", "system_prompt": "this template knows none"}), "roles must alternate"),
        (json!({"prompt": "Hi", "min_tokens": 1, "min_new_tokens": 2}), "(E1101)"),
        (json!({"prompt": "Hi", "max_tokens": 1, "max_new_tokens": 2}), "(E1102)"),
        (json!({"prompt": "Hi", "temperature": 9}), "Must be less than or equal to 5"),
    ] {
        let PredictError::FixInput(why) = pipeline.admit(job("bad", input)).unwrap_err() else { panic!("{words}") };
        assert!(why.contains(words), "{why}");
        assert_eq!(pipeline.active(), 0);
    }
}

#[test]
fn a_deployment_that_asks_too_much_is_refused() {
    let base = spec(&golden("tiny-tied"));
    let refuse = |spec: &::prediction::LoadSpec, words: &str| {
        let why = load(spec).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(why.contains(words), "{why:?} lacks {words:?}");
    };
    refuse(
        &::prediction::LoadSpec { context_tokens: Some(257), ..base.clone() },
        "context_tokens is 257; the model was made for 2 to 256",
    );
    refuse(&::prediction::LoadSpec { concurrency: Some(0), ..base.clone() }, "concurrency is 0");
    refuse(&::prediction::LoadSpec { threads: Some(0), ..base.clone() }, "threads is 0; 1 to 1024");
    refuse(&::prediction::LoadSpec { precision: Some("fp8".into()), ..base.clone() }, "precision fp8: a scale");
    refuse(&::prediction::LoadSpec { precision: Some("fp4".into()), ..base.clone() }, "precision fp4: unknown");
    refuse(&::prediction::LoadSpec { device: "tpu".into(), ..base.clone() }, "device tpu");
}

fn refused(path: PathBuf, words: &str) {
    let why = load(&spec(&path)).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(why.contains(words), "{why:?} lacks {words:?}");
}

/// A copy of a golden folder with one change to a JSON file.
fn changed(folder: &str, file: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(folder)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.path().join(file);
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
    copy
}

#[test]
fn files_that_are_no_llama_are_refused() {
    refused(golden("texts.py"), "neither a .gguf or .safetensors file nor a folder");
    refused(golden("nowhere.gguf"), "nowhere.gguf");
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path().into(), "holds neither config.json nor a .gguf file");
    for name in ["a.gguf", "b.gguf"] {
        std::fs::copy(golden("tiny-q.gguf"), folder.path().join(name)).unwrap();
    }
    refused(folder.path().into(), "holds 2 .gguf files; name one of them");
}

#[test]
fn weights_of_another_shape_are_refused_with_the_tensors_name() {
    let other = changed("tiny-tied", "config.json", |config| config["hidden_size"] = json!(96));
    refused(other.path().into(), "tensor model.embed_tokens.weight is [512, 48]; the config needs [512, 96]");
    let deeper = changed("tiny-tied", "config.json", |config| config["num_hidden_layers"] = json!(3));
    refused(deeper.path().into(), "model.layers.2.");
    let untied = changed("tiny-tied", "config.json", |config| config["tie_word_embeddings"] = json!(false));
    refused(untied.path().into(), "lm_head.weight");
}

#[test]
fn ggufs_of_other_architectures_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, &[("general.architecture", Entry::Text("qwen2"))]);
    refused(path.clone(), "general.architecture is \"qwen2\"");
    write(&path, &[("general.architecture", Entry::Text("llama")), ("llama.expert_count", Entry::U32(8))]);
    refused(path.clone(), "mixtures of experts");
    write(&path, &[("general.architecture", Entry::Text("llama")), ("split.count", Entry::U32(3))]);
    refused(path.clone(), "one of 3 parts");
    write(&path, &[("general.architecture", Entry::Text("llama"))]);
    refused(path, "llama.attention.head_count is missing");
}

#[test]
fn a_truncated_gguf_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let whole = std::fs::read(golden("tiny-q.gguf")).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1000]).unwrap();
    refused(path, "past the file's end");
}
