//! `pinion init`: a cog.yaml and a weights.lock for a folder of weights. What the files themselves say they are decides which
//! model serves them; refuses to guess.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use runner::weights::declared;
use runner::{Ct2, Gguf};
use serde_json::{Value, json};

use crate::deployment::lock_of;
use crate::failure::Failure;
use crate::weights::pin;

#[derive(Args)]
pub struct Words {
    /// A folder of weights (transformers, diffusers or CTranslate2), or a GGUF file
    path: PathBuf,
    /// What it is served as; left out: what the weights are called, or the folder
    #[arg(long)]
    name: Option<String>,
    /// Write over a cog.yaml and a weights.lock that are there
    #[arg(long)]
    force: bool,
}

/// What files say that they are, and the folder in `models/` that runs it.
const ARCHITECTURES: &[(&str, &str)] = &[
    ("LlamaForCausalLM", "llama"),
    ("llama", "llama"),
    ("WhisperForConditionalGeneration", "whisper"),
    ("whisper", "whisper"),
    ("WhisperSpec", "whisper"),
    ("StableDiffusionXLPipeline", "sdxl"),
    ("StableDiffusionXLImg2ImgPipeline", "sdxl"),
    ("StableDiffusionXLInpaintPipeline", "sdxl"),
];

/// Weights that were recognised.
struct Found {
    architecture: String,
    /// Where that is said.
    said_by: &'static str,
    /// What they call themselves, if they do.
    title: Option<String>,
    /// The one file that is wanted; none: the folder.
    only: Option<String>,
}

pub fn main(words: Words) -> Result<(), Failure> {
    let found = recognise(&words.path)?;
    let Some((_, model)) = ARCHITECTURES.iter().find(|(name, _)| *name == found.architecture) else {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        return Err(Failure::BadInput(format!(
            "{}: {} says {:?}; there is {}",
            words.path.display(),
            found.said_by,
            found.architecture,
            known.join(", ")
        )));
    };
    let folder = if words.path.is_dir() { words.path.as_path() } else { words.path.parent().unwrap_or(Path::new("")) };
    let file = folder.join("cog.yaml");
    for there in [file.clone(), lock_of(&file)] {
        if there.exists() && !words.force {
            return Err(Failure::BadInput(format!("{} is there already; --force writes over it", there.display())));
        }
    }
    let name = words.name.as_deref().map_or_else(|| name_of(&found, &words.path), |name| Ok(plain(name)))?;
    let exclude = pickles(folder, &found)?;
    let text = manifest(&name, model, &found, &exclude);
    let sets = declared(&text)?;
    fs::write(&file, text).map_err(|e| Failure::Failed(format!("{}: {e}", file.display())))?;
    pin(&file, &sets)?;
    eprintln!("pinion: wrote {} and {}", file.display(), lock_of(&file).display());
    if !exclude.is_empty() {
        eprintln!("pinion: left out, since a Python pickle runs code when it is loaded: {}", exclude.join(", "));
    }
    match models::Entry::named(model) {
        Some(_) => eprintln!("pinion: `pinion serve --config {}` serves it as pinion/{name}", file.display()),
        None => eprintln!("pinion: the model {model} is not in this build: a later one serves it"),
    }
    Ok(())
}

fn recognise(path: &Path) -> Result<Found, Failure> {
    let refuse = |why: String| Failure::BadInput(format!("{}: {why}", path.display()));
    if path.is_file() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Found { only: Some(name), ..gguf(path)? });
    }
    if !path.is_dir() {
        return Err(refuse("is not there".into()));
    }
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let found = |architecture: Option<String>, said_by, title| {
        let architecture = architecture.ok_or_else(|| refuse(format!("{said_by} does not say what it is")))?;
        Ok(Found { architecture, said_by, title, only: None })
    };
    if let Some(index) = json_of(&path.join("model_index.json"))? {
        return found(text(&index, "_class_name"), "model_index.json", None);
    }
    if let Some(parts) = Ct2::in_folder(path) {
        return found(Some(Ct2::open(&parts)?.spec().to_owned()), "model.bin", None);
    }
    if let Some(config) = json_of(&path.join("config.json"))? {
        let first = config.pointer("/architectures/0").and_then(Value::as_str).map(str::to_owned);
        let title = text(&config, "_name_or_path").filter(|title| !title.is_empty());
        return found(first.or_else(|| text(&config, "model_type")), "config.json", title);
    }
    let entries = fs::read_dir(path).map_err(|e| refuse(e.to_string()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "gguf"));
    match files.as_slice() {
        [only] => recognise(only),
        [] => Err(refuse("has neither model_index.json, model.bin, config.json nor a .gguf file".into())),
        several => Err(refuse(format!("has {} .gguf files: name one of them", several.len()))),
    }
}

fn gguf(path: &Path) -> Result<Found, Failure> {
    let file = Gguf::open(path)?;
    let title = file.str("general.name").ok().filter(|title| !title.is_empty()).map(str::to_owned);
    let architecture = file.str("general.architecture")?.to_owned();
    Ok(Found { architecture, said_by: "general.architecture", title, only: None })
}

/// A JSON file, if it is there.
fn json_of(path: &Path) -> Result<Option<Value>, Failure> {
    let refuse = |why: String| Failure::BadInput(format!("{}: {why}", path.display()));
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| refuse(e.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// Pickles are left out where there is something beside them.
fn pickles(folder: &Path, found: &Found) -> Result<Vec<String>, Failure> {
    if found.only.is_some() {
        return Ok(Vec::new());
    }
    let pickles =
        runner::weights::pickles(folder).map_err(|e| Failure::Failed(format!("{}: {e}", folder.display())))?;
    let safe = |path: &str| path.ends_with(".safetensors");
    if !pickles.is_empty() && !runner::weights::names(folder).is_ok_and(|names| names.iter().any(|name| safe(name))) {
        return Err(Failure::BadInput(format!(
            "{}: its weights are Python pickles ({}), which run code when they are loaded; convert them to safetensors",
            folder.display(),
            pickles.join(", ")
        )));
    }
    Ok(pickles)
}

fn name_of(found: &Found, path: &Path) -> Result<String, Failure> {
    let folder = || {
        let path = path.canonicalize().ok()?;
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        name.map(|name| name.to_string_lossy().into_owned())
    };
    let title = found.title.as_deref().and_then(|title| title.rsplit('/').next()).map(str::to_owned);
    let name = title.or_else(folder).map(|name| plain(&name)).filter(|name| !name.is_empty());
    name.ok_or_else(|| Failure::BadInput(format!("{}: --name NAME is needed", path.display())))
}

/// Small letters and digits, with one dash, dot or underscore between: a name that Cog takes too.
fn plain(text: &str) -> String {
    let mut name = String::new();
    for c in text.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if name.is_empty() || name.ends_with(['-', '.', '_']) => {}
            '.' | '_' => name.push(c),
            _ => name.push('-'),
        }
    }
    name.trim_end_matches(['-', '.', '_']).to_owned()
}

fn manifest(name: &str, model: &str, found: &Found, exclude: &[String]) -> String {
    let Found { architecture, title, only, .. } = found;
    let uri = format!("file://{}", only.as_deref().unwrap_or("."));
    // JSON is YAML, and needs no care for what a name may hold.
    let mut source = json!({ "uri": uri });
    if !exclude.is_empty() {
        source["exclude"] = exclude.into();
    }
    let what = title.as_deref().map_or_else(|| architecture.clone(), |title| format!("{title} ({architecture})"));
    format!(
        "# Written by `pinion init`. The weights are those that weights.lock lists, to the byte; after a change\n\
         # `pinion weights lock --config cog.yaml` pins what is there.\n\
         weights:\n\
         \x20 - name: {name}\n\
         \x20   target: /weights/{name}\n\
         \x20   source: {source}\n\
         native:\n\
         \x20 models:\n\
         \x20   - name: {name}\n\
         \x20     model: {model}\n\
         \x20     weights: {name}\n\
         \x20     description: {}\n",
        Value::from(what)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_what_cog_takes() {
        for (text, expected) in [
            ("SmolLM2 135M Instruct", "smollm2-135m-instruct"),
            ("whisper-tiny.en", "whisper-tiny.en"),
            ("--Große Gewichte!!", "gro-e-gewichte"),
            ("a__b", "a_b"),
            ("!!", ""),
        ] {
            assert_eq!(plain(text), expected, "{text}");
        }
    }
}
