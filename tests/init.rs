//! `pinion init` on folders as they come from elsewhere: what it writes is served at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cog::container::Container;
use crate::support::{output_of, pinion, recordings};

fn run(words: &[&str]) -> Output {
    pinion().args(words).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Where pinned real weights lie.
fn pulled(name: &str) -> PathBuf {
    PathBuf::from(output_of(pinion().args(["weights", "pull", name, "--print-path"])).trim())
}

fn link(from: &Path, to: &Path) {
    std::os::unix::fs::symlink(from.canonicalize().unwrap(), to).unwrap();
}

/// A folder of links to the files of another.
fn linked(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        link(&file, &to.join(file.file_name().unwrap()));
    }
    to.to_owned()
}

/// A second of silence.
fn silence(folder: &Path) -> String {
    let samples = 16_000u32;
    let mut wav = b"RIFF".to_vec();
    wav.extend((36 + 2 * samples).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    wav.extend(samples.to_le_bytes());
    wav.extend((2 * samples).to_le_bytes());
    wav.extend(b"\x02\0\x10\0data");
    wav.extend((2 * samples).to_le_bytes());
    wav.resize(44 + 2 * samples as usize, 0);
    let path = folder.join("silence.wav");
    fs::write(&path, wav).unwrap();
    format!("audio=@{}", path.display())
}

/// Makes the folder servable; what was said.
fn init(folder: &Path) -> String {
    let made = run(&["init", folder.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    stderr(&made)
}

/// Makes the folder servable and runs one prediction on it.
fn serves(folder: &Path, name: &str, input: &[&str]) -> String {
    let made = init(folder);
    assert!(made.contains(&format!("serves it as pinion/{name}")), "{made}");
    let config = folder.join("cog.yaml").display().to_string();
    let said = run(&[&["run", name, "--config", &config, "--offline"], input].concat());
    assert_eq!(said.status.code(), Some(0), "{}", stderr(&said));
    assert!(run(&["weights", "verify", "--config", &config]).status.success());
    String::from_utf8(said.stdout).unwrap()
}

/// Makes the folder servable, and has one prediction of a container that serves it.
fn predicted(folder: &Path, input: &Value) -> Value {
    init(folder);
    let container = Container::of(folder);
    container.wait_for("READY");
    let (code, prediction) = container.post("/predictions", &[], &json!({ "input": input }));
    assert_eq!((code, &prediction["status"]), (200, &json!("succeeded")), "{prediction}");
    assert_eq!(container.stop().code(), Some(0));
    prediction
}

#[test]
fn a_folder_with_the_real_smollm2_is_a_container() {
    let folder = tempfile::tempdir().unwrap();
    // Of another name than the other tests: one set of one name in the cache may be of either folder.
    link(&pulled("smollm2"), &folder.path().join("mine.gguf"));
    let said = predicted(folder.path(), &json!({ "prompt": "What is the capital of France?", "temperature": 0 }));
    let pieces = said["output"].as_array().unwrap().iter().map(|piece| piece.as_str().unwrap());
    assert_eq!(pieces.collect::<String>().trim(), "The capital of France is Paris.");
    assert!(said["metrics"]["output_token_count"].as_u64() > Some(4), "{said}");
}

#[test]
fn a_folder_with_the_real_whisper_is_a_container() {
    let folder = tempfile::tempdir().unwrap();
    let weights = linked(&pulled("whisper-tiny.en"), &folder.path().join("whisper-tiny.en"));
    let speech = STANDARD.encode(fs::read(recordings().join("jfk.wav")).unwrap());
    let said = predicted(&weights, &json!({ "audio": format!("data:audio/wav;base64,{speech}") }));
    let text = said["output"]["transcription"].as_str().unwrap_or_default();
    assert!(text.contains("ask not what your country can do for you"), "{said}");
}

#[test]
fn a_folder_with_a_random_sdxl_is_a_container() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("mine");
    output_of(pinion().args(["weights", "synth", "sdxl-tiny", "-o"]).arg(&weights));
    let said = predicted(&weights, &json!({ "width": 64, "height": 64, "num_inference_steps": 2, "seed": 1 }));
    let images = said["output"].as_array().unwrap();
    let content = images[0].as_str().unwrap().strip_prefix("data:image/png;base64,").expect("a PNG");
    assert!(images.len() == 1 && STANDARD.decode(content).unwrap().starts_with(b"\x89PNG\r\n"), "{said}");
    assert!(said["logs"].as_str().unwrap().starts_with("Using seed: 1\n"), "{said}");
}

#[test]
fn a_folder_with_the_real_smollm2_is_served_and_refused_once_altered() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    fs::copy(pulled("smollm2"), &file).unwrap();
    let question = ["-i", "prompt=What is the capital of France?", "-i", "temperature=0"];
    let said = serves(folder.path(), "smollm2-135m-8k-lc100k-mix1-ep2", &question);
    assert_eq!(said.trim_end(), "The capital of France is Paris.");

    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&file).unwrap();
    fs::write(&file, bytes).unwrap();
    let config = folder.path().join("cog.yaml").display().to_string();
    let said = run(&["run", "smollm2-135m-8k-lc100k-mix1-ep2", "--config", &config, "-i", "prompt=x"]);
    assert_eq!(said.status.code(), Some(1));
    assert!(stderr(&said).contains("model.gguf was altered"), "{}", stderr(&said));

    // What shows without reading is refused before anything is served.
    fs::write(&file, b"short").unwrap();
    let data = folder.path().join("data").display().to_string();
    let said = run(&["serve", "--listen", "127.0.0.1:0", "--data", &data, "--config", &config]);
    assert_eq!(said.status.code(), Some(1));
    let expected = "model.gguf was altered: 98362432 bytes are locked, 5 are there";
    assert!(stderr(&said).contains(expected), "{}", stderr(&said));
}

#[test]
fn a_folder_with_the_real_whisper_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let weights = linked(&pulled("whisper-tiny.en"), &folder.path().join("whisper-tiny.en"));
    serves(&weights, "whisper-tiny.en", &["-i", &silence(folder.path())]);
}

#[test]
fn a_transformers_folder_of_a_whisper_is_served_without_its_pickle() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("mine");
    output_of(pinion().args(["weights", "synth", "whisper-test", "-o"]).arg(&weights));
    fs::write(weights.join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    serves(&weights, "mine", &["-i", &silence(folder.path())]);
    let lock = fs::read_to_string(weights.join("weights.lock")).unwrap();
    assert!(!lock.contains("\"path\": \"pytorch_model.bin\"") && !lock.contains("\"path\": \"cog.yaml\""), "{lock}");
}

#[test]
fn a_diffusers_folder_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("model_index.json", r#"{"_class_name": "StableDiffusionXLPipeline"}"#),
        ("unet/config.json", "{}"),
        ("unet/diffusion_pytorch_model.safetensors", "weights"),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let made = run(&["init", folder.path().to_str().unwrap(), "--name", "my-sdxl"]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let (cog, lock) = (folder.path().join("cog.yaml"), folder.path().join("weights.lock"));
    assert!(fs::read_to_string(cog).unwrap().contains("model: sdxl"));
    assert!(fs::read_to_string(lock).unwrap().contains("unet/diffusion_pytorch_model.safetensors"));

    let again = run(&["init", folder.path().to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("cog.yaml is there already; --force"), "{}", stderr(&again));
}

#[test]
fn what_is_not_recognised_is_said_with_its_reason() {
    for (files, expected) in [
        (&[][..], "has neither model_index.json, model.bin, config.json nor a .gguf file"),
        (
            &[("config.json", r#"{"architectures": ["MambaForCausalLM"]}"#)],
            "config.json says \"MambaForCausalLM\"; there is",
        ),
        (&[("config.json", "{}")], "config.json does not say what it is"),
        (&[("config.json", "{")], "config.json: EOF"),
        (&[("a.gguf", "x"), ("b.gguf", "x")], "has 2 .gguf files: name one of them"),
        (&[("a.gguf", "x")], "not a usable GGUF file"),
        (&[("config.json", r#"{"model_type": "llama"}"#), ("model.pt", "\u{0}")], ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let said = run(&["init", folder.path().to_str().unwrap(), "--name", "x"]);
        assert_eq!(said.status.success(), expected.is_empty(), "{expected}: {}", stderr(&said));
        assert!(stderr(&said).contains(expected), "{expected}: {}", stderr(&said));
    }
    let pickle = tempfile::tempdir().unwrap();
    fs::write(pickle.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    fs::write(pickle.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    let said = run(&["init", pickle.path().to_str().unwrap(), "--name", "x"]);
    assert!(stderr(&said).contains("its weights are Python pickles (pytorch_model.bin)"), "{}", stderr(&said));
}
