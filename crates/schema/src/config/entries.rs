//! Which of the ways to say what is served a file takes, and what it says. Knows keys, and no model.

use serde_json::Value;

use super::{ConfigError, Container};
use crate::{Map, read::Mapping};

/// By the URI of weights: the model in `models/` that they are of, and their name in its lock.
pub type Known<'a> = dyn Fn(&str) -> Option<(String, String)> + 'a;

/// Every model that is to be served, as a mapping with the keys of `native.models`.
pub(super) struct Entries {
    pub list: Vec<Value>,
    /// `native:` says so, and not Cog's keys.
    pub is_native: bool,
    pub note: Option<String>,
}

/// The keys of `native.models[0]` that may stand in `native:` itself.
const ONE_MODEL: [&str; 16] = [
    "name",
    "model",
    "weights",
    "path",
    "synth",
    "description",
    "names",
    "versions",
    "context_tokens",
    "concurrency",
    "precision",
    "device",
    "keep_alive_seconds",
    "threads",
    "batch_invariant",
    "defaults",
];

pub(super) fn read(native: &mut Mapping, container: &Container, known: &Known) -> Result<Entries, ConfigError> {
    let list = native.list("models")?;
    let mut one: Map = ONE_MODEL.iter().filter_map(|key| Some(((*key).to_owned(), native.take(key)?))).collect();
    // Another word for it.
    if let Some(dtype) = native.take("dtype") {
        one.entry("precision").or_insert(dtype);
    }
    match (list.is_empty(), one.get("model").cloned()) {
        (false, None) if one.is_empty() => return Ok(Entries { list, is_native: true, note: None }),
        (false, _) => {
            let key = one.keys().next().cloned().unwrap_or_default();
            return Err(ConfigError(format!(
                "native.{key}: stands beside native.models; write it into an entry there"
            )));
        }
        (true, Some(model)) => {
            let name = container.name.clone().map_or(model, Value::from);
            one.entry("name").or_insert(name);
            return Ok(Entries { list: vec![one.into()], is_native: true, note: None });
        }
        (true, None) => {}
    }
    let Some(runs) = &container.runs else {
        return Err(ConfigError("native.models is empty: there is nothing to serve".into()));
    };
    let (model, weights, note) = if let Some(model) = container.reserved() {
        let [only] = container.weights.as_slice() else {
            let count = container.weights.len();
            return Err(ConfigError(format!("run: {runs} needs exactly one entry in `weights`; there are {count}")));
        };
        (model, only.name.clone(), None)
    } else {
        let uris = || container.weights.iter().flat_map(|weights| &weights.uris);
        let found = uris().find_map(|uri| Some((uri, known(uri)?)));
        let Some((uri, (model, weights))) = found else { return Err(python(runs)) };
        let note =
            format!("cog.yaml: {runs} is not run: {model} serves in its place, with its own {weights}, for {uri}");
        (model, weights, Some(note))
    };
    one.entry("name").or_insert_with(|| container.name.clone().unwrap_or_else(|| model.clone()).into());
    one.insert("model".into(), model.into());
    one.entry("weights").or_insert(weights.into());
    Ok(Entries { list: vec![one.into()], is_native: false, note })
}

fn python(runs: &str) -> ConfigError {
    ConfigError(format!(
        "run: {runs} is Python code, and Pinion runs none; say which of its models serves in its place, for example \
         `native: {{ model: llama, path: WEIGHTS }}` or `native: {{ model: llama, weights: NAME }}` (`pinion init FOLDER` \
         writes it for a folder of weights)"
    ))
}

pub(super) fn notes(container: &Container, is_native: bool, unknown: Vec<String>) -> impl Iterator<Item = String> {
    let note =
        |keys: Vec<String>, why: &str| (!keys.is_empty()).then(|| format!("cog.yaml: {} {why}", keys.join(", ")));
    let runs = container.runs.clone().filter(|_| is_native);
    let runs =
        runs.map(|runs| format!("cog.yaml: run: {runs} ignored: `native:` says what is served, and Python is not run"));
    let trains = container.trains.then(|| "cog.yaml: train ignored: Pinion trains nothing".to_owned());
    let ignored = note(container.ignored.clone(), "ignored: nothing is built here, and Python is not run");
    let unknown = note(unknown, "ignored: neither Cog nor Pinion knows it");
    ignored.into_iter().chain(runs).chain(trains).chain(unknown)
}
