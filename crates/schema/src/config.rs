//! cog.yaml: what this deployment serves, and its limits. Everything of ours stands under `native:`, so that stock Cog
//! can still read the file; of its own keys those are read that mean something without Python, and the others are named once.
//!
//! What is served is said in one of these ways: `native.models`, a list; `native.model` with the keys of one of them;
//! `run: native.py:NAME` with one entry in `weights`; or a Python reference beside weights that a model here is known to have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use serde_json::Value;

use entries::Entries;

use crate::{Map, read::Mapping};

mod container;
mod devices;
mod entries;
mod files;

pub use container::{Container, Declared};
pub use devices::Device;
pub use entries::Known;
pub use files::{FileLimits, OutputFiles};

/// Names the key, the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cog.yaml: {}", self.0)
    }
}

impl std::error::Error for ConfigError {}

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub models: Vec<Served>,
    /// Empty: every GPU that works, else the CPU.
    pub devices: Vec<Device>,
    /// Of the host's memory, what copies of models that left their GPU may take, all GPUs together; 0: none are made. None: a part
    /// of what is free.
    pub host_cache_bytes: Option<u64>,
    pub limits: Limits,
    pub output_files: OutputFiles,
    /// Inputs, outputs and logs are removed this long after the end; the hosted service keeps them for an hour.
    pub retention_seconds: u64,
    pub egress: Egress,
    pub account: Account,
    /// Cog's own keys.
    pub container: Container,
    /// Lines for the operator about what was read and ignored.
    pub notes: Vec<String>,
}

/// One model with its weights, under one or several names.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// The short name, e.g. `smollm2`: the target of its predictions.
    pub name: String,
    /// The folder in `models/`, e.g. `llama`.
    pub model: String,
    pub weights: WeightsFrom,
    pub description: String,
    /// `owner/name` as callers write it; never empty.
    pub names: Vec<String>,
    /// Version ids that somebody's code pins, each with the name that it belongs to.
    pub versions: BTreeMap<String, String>,
    pub context_tokens: Option<u32>,
    pub concurrency: Option<u32>,
    pub precision: Option<String>,
    /// `cpu`, `cuda` (any GPU) or `cuda:N`; none: any that is used.
    pub device: Option<String>,
    /// Loaded at the start and never unloaded to make room.
    pub pinned: bool,
    /// Loaded at the start instead of on first use.
    pub preload: bool,
    /// Idle this long it is unloaded, 0 at once; none: it stays until another model needs the room.
    pub keep_alive_seconds: Option<u64>,
    pub threads: Option<u32>,
    /// A prediction says the same to the bit in any company, also where that takes time.
    pub batch_invariant: bool,
    /// Input defaults in place of the model's own.
    pub defaults: Map,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsFrom {
    /// An entry of the model's weights.lock.
    Locked(String),
    /// A file or folder on this machine.
    Path(PathBuf),
    /// Random weights of this shape, in the model's `precision` or the one that the real ones are published in: for
    /// measuring, never for answers.
    Synth(String),
}

/// Every number says its unit; the message that refuses names the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Predictions accepted and not yet started; the next one gets a 429.
    pub waiting_predictions: u64,
    /// Device time of one prediction; the hosted service stops at 30 minutes.
    pub run_seconds: u64,
    /// Bytes of one JSON request body; a larger one gets a 413.
    pub body_bytes: u64,
    /// What a worker may take for one step, saying nothing, before it counts as hung and is replaced.
    pub worker_silence_seconds: u64,
    pub files: FileLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting_predictions: 256,
            run_seconds: 30 * 60,
            body_bytes: 16 << 20,
            worker_silence_seconds: 60,
            files: FileLimits::default(),
        }
    }
}

/// Seconds that a finished prediction keeps its data unless the file says otherwise.
pub const RETENTION_SECONDS: u64 = 60 * 60;

/// What may be reached from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Egress {
    /// Private addresses, for webhooks and inputs inside one network. Off: a caller could otherwise probe it.
    pub allow_private: bool,
}

/// Who `GET /account` says this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub username: String,
    pub name: String,
}

/// The ranges a limit may have: from what still works to what still fits a machine.
mod range {
    use std::ops::RangeInclusive;

    pub const WAITING_PREDICTIONS: RangeInclusive<u64> = 1..=100_000;
    pub const RUN_SECONDS: RangeInclusive<u64> = 1..=7 * 24 * 3600;
    pub const BODY_BYTES: RangeInclusive<u64> = 1024..=1 << 30;
    pub const WORKER_SILENCE_SECONDS: RangeInclusive<u64> = 2..=24 * 3600;
    pub const RETENTION_SECONDS: RangeInclusive<u64> = 1..=10 * 365 * 24 * 3600;
    pub const CONTEXT_TOKENS: RangeInclusive<u64> = 16..=1 << 20;
    pub const CONCURRENCY: RangeInclusive<u64> = 1..=1024;
    pub const KEEP_ALIVE_SECONDS: RangeInclusive<u64> = 0..=365 * 24 * 3600;
    pub const THREADS: RangeInclusive<u64> = 1..=1024;
}

/// Characters of one name or version id.
const NAME_CHARACTERS: usize = 200;

const PRECISIONS: [&str; 7] = ["f32", "f16", "bf16", "int8", "fp8", "q8_0", "q4_0"];
const PRECISIONS_EXPECTED: &str = "f32, f16 or bf16 is expected, or int8, fp8, q8_0 or q4_0 for weights alone";

impl Config {
    pub fn parse(yaml: &str) -> Result<Self, ConfigError> {
        Self::parse_with(yaml, &|_| None)
    }

    /// `known` is asked for the model that weights from a URI are of, and for their name there.
    pub fn parse_with(yaml: &str, known: &Known) -> Result<Self, ConfigError> {
        let mut root = Mapping::new("", Some(values(yaml)?))?;
        let mut native = root.mapping("native")?;
        let container = Container::read(&mut root)?;
        let unknown: Vec<String> = root.rest().into_iter().map(|(key, _)| key).collect();
        let mut account = native.mapping("account")?;
        let username = account.text("username")?.unwrap_or_else(|| "pinion".into());
        let name = account.text("name")?.unwrap_or_else(|| "Pinion".into());
        if !is_plain(&username) {
            let why = "it stands in paths as the owner of models: no white space, `/`, `:`, `?`, `#` or `%`";
            return Err(account.bad("username", &username.into(), why));
        }
        account.end()?;
        let account = Account { username, name };
        let mut egress = native.mapping("egress")?;
        let allow_private = egress.flag("allow_private")?.unwrap_or_default();
        egress.end()?;
        let limits = limits(native.mapping("limits")?)?;
        let output_files = OutputFiles::read(&mut native)?;
        let devices = devices::read(native.list("devices")?)?;
        let host_cache_bytes = native.gigabytes("host_cache_gb")?;
        let retention_seconds = native.number("retention_seconds", range::RETENTION_SECONDS)?;
        let Entries { list, is_native, note } = entries::read(&mut native, &container, known)?;
        let models = list.into_iter().enumerate();
        let models = models.map(|(i, value)| served(i, value, &account.username));
        let mut models: Vec<Served> = models.collect::<Result<_, _>>()?;
        native.end()?;
        for model in &mut models {
            model.device =
                model.device.take().or_else(|| container.gpu.map(|gpu| if gpu { "cuda" } else { "cpu" }.into()));
            model.concurrency = model.concurrency.or(container.concurrency);
        }
        unique(&models)?;
        let notes = entries::notes(&container, is_native, unknown).chain(note).collect();
        devices::check(&models, &devices)?;
        let retention_seconds = retention_seconds.unwrap_or(RETENTION_SECONDS);
        let egress = Egress { allow_private };
        Ok(Self {
            models,
            devices,
            host_cache_bytes,
            limits,
            output_files,
            retention_seconds,
            egress,
            account,
            container,
            notes,
        })
    }
}

/// A cog.yaml as JSON, every key as it stands. Through YAML's own mapping first: it refuses a key that stands twice.
pub fn values(yaml: &str) -> Result<Value, ConfigError> {
    let value: serde_norway::Value = serde_norway::from_str(yaml).map_err(|error| ConfigError(error.to_string()))?;
    serde_json::to_value(value).map_err(|error| ConfigError(error.to_string()))
}

fn limits(mut keys: Mapping) -> Result<Limits, ConfigError> {
    let default = Limits::default();
    let limits = Limits {
        waiting_predictions: keys
            .number("waiting_predictions", range::WAITING_PREDICTIONS)?
            .unwrap_or(default.waiting_predictions),
        run_seconds: keys.number("run_seconds", range::RUN_SECONDS)?.unwrap_or(default.run_seconds),
        body_bytes: keys.number("body_bytes", range::BODY_BYTES)?.unwrap_or(default.body_bytes),
        worker_silence_seconds: keys
            .number("worker_silence_seconds", range::WORKER_SILENCE_SECONDS)?
            .unwrap_or(default.worker_silence_seconds),
        files: FileLimits::read(&mut keys)?,
    };
    keys.end()?;
    Ok(limits)
}

fn served(index: usize, value: Value, owner: &str) -> Result<Served, ConfigError> {
    let mut keys = Mapping::new(format!("native.models[{index}]"), Some(value))?;
    let name = keys.required_text("name")?;
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(keys.bad("name", &name.into(), "only letters, digits, `.`, `_` and `-` are allowed"));
    }
    let model = keys.required_text("model")?;
    let weights = match (keys.text("weights")?, keys.text("path")?, keys.text("synth")?) {
        (Some(name), None, None) => WeightsFrom::Locked(name),
        (None, Some(path), None) => WeightsFrom::Path(path.into()),
        (None, None, Some(shape)) => WeightsFrom::Synth(shape),
        _ => {
            return Err(ConfigError(format!(
                "{}: exactly one of `weights`, `path` and `synth` is expected",
                keys.path("weights")
            )));
        }
    };
    let description = keys.text("description")?.unwrap_or_default().trim().to_owned();
    let names = names(&mut keys)?.unwrap_or_else(|| vec![format!("{owner}/{name}")]);
    let versions = versions(&mut keys, &names)?;
    let precision = one_of(&mut keys, "precision", |text| PRECISIONS.contains(&text), PRECISIONS_EXPECTED)?;
    let device = one_of(&mut keys, "device", devices::is_device, devices::EXPECTED)?;
    let (pinned, preload, keep_alive_seconds) = residency(&mut keys, index)?;
    let small = |number: Option<u64>| number.map(|number| number as u32);
    let served = Served {
        name,
        model,
        weights,
        description,
        names,
        versions,
        context_tokens: small(keys.number("context_tokens", range::CONTEXT_TOKENS)?),
        concurrency: small(keys.number("concurrency", range::CONCURRENCY)?),
        precision,
        device,
        pinned,
        preload,
        keep_alive_seconds,
        threads: small(keys.number("threads", range::THREADS)?),
        batch_invariant: keys.flag("batch_invariant")?.unwrap_or_default(),
        defaults: keys.mapping("defaults")?.rest(),
    };
    keys.end()?;
    Ok(served)
}

/// When it is loaded and when it leaves: pinned, preload, keep_alive_seconds. The first model of a file is loaded at the
/// start unless it says otherwise.
fn residency(keys: &mut Mapping, index: usize) -> Result<(bool, bool, Option<u64>), ConfigError> {
    let pinned = keys.flag("pinned")?.unwrap_or_default();
    let preload = keys.flag("preload")?;
    let keep_alive_seconds = keys.number("keep_alive_seconds", range::KEEP_ALIVE_SECONDS)?;
    match (pinned, preload, keep_alive_seconds) {
        (true, Some(false), _) => Err(keys.bad("preload", &false.into(), "a pinned model is loaded at the start")),
        (true, _, Some(seconds)) => Err(keys.bad("keep_alive_seconds", &seconds.into(), "a pinned model never leaves")),
        _ => Ok((pinned, preload.unwrap_or(pinned || index == 0), keep_alive_seconds)),
    }
}

fn names(keys: &mut Mapping) -> Result<Option<Vec<String>>, ConfigError> {
    let list = keys.list("names")?;
    let read = |value: &Value| match value.as_str().filter(|name| is_full_name(name)) {
        Some(name) => Ok(name.to_owned()),
        None => {
            Err(keys.bad("names", value, format!("`owner/name` of at most {NAME_CHARACTERS} characters is expected")))
        }
    };
    let names: Vec<_> = list.iter().map(read).collect::<Result<_, _>>()?;
    Ok(Some(names).filter(|names| !names.is_empty()))
}

fn versions(keys: &mut Mapping, names: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    let read = |(id, name): (String, Value)| match name.as_str() {
        _ if !is_plain(&id) => Err(keys_bad(&id, &name, "the id may hold no white space, `/` or `:`")),
        Some(name) if names.iter().any(|known| known == name) => Ok((id, name.to_owned())),
        _ => Err(keys_bad(&id, &name, format!("one of this model's names is expected: {}", names.join(", ")))),
    };
    let versions = keys.mapping("versions")?;
    let path = versions.path("");
    let versions = versions.rest().into_iter().map(read).collect::<Result<_, _>>();
    versions.map_err(|ConfigError(why)| ConfigError(format!("{path}{why}")))
}

fn keys_bad(key: &str, value: &Value, why: impl AsRef<str>) -> ConfigError {
    ConfigError(format!("{key}: {value}: {}", why.as_ref()))
}

fn one_of(
    keys: &mut Mapping,
    key: &'static str,
    allowed: impl Fn(&str) -> bool,
    why: &str,
) -> Result<Option<String>, ConfigError> {
    match keys.text(key)? {
        Some(text) if !allowed(&text) => Err(keys.bad(key, &text.into(), why)),
        text => Ok(text),
    }
}

/// A part of a path and of a reference `owner/name:version`.
fn is_plain(text: &str) -> bool {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && !"/:?#%".contains(c);
    !text.is_empty() && text.chars().count() <= NAME_CHARACTERS && text.chars().all(allowed)
}

fn is_full_name(text: &str) -> bool {
    text.split_once('/').is_some_and(|(owner, name)| is_plain(owner) && is_plain(name))
}

/// Two models must not answer to one name, nor one id mean two versions.
fn unique(models: &[Served]) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for model in models {
        let target = [("name", &model.name)].into_iter();
        let names = model.names.iter().map(|name| ("names", name));
        let versions = model.versions.keys().map(|id| ("versions", id));
        for (key, text) in target.chain(names).chain(versions) {
            if !seen.insert((key, text)) {
                return Err(ConfigError(format!("native.models: {key}: \"{text}\" stands there twice")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
