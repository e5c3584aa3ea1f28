//! Cog's own keys in cog.yaml, of any year: those that mean something without Python, and the names of those that do not.
//! Refuses to know which models there are, and to run anything.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::ConfigError;
use crate::read::Mapping;

/// What the keys beside `native:` ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// `build.gpu`: true needs a GPU, false the processor; none leaves it open.
    pub gpu: Option<bool>,
    /// `concurrency.max`: predictions at once.
    pub concurrency: Option<u32>,
    /// `environment`: set before anything is loaded, unless the program was given another value.
    pub environment: Vec<(String, String)>,
    /// `weights`: the names, and where each is said to come from.
    pub weights: Vec<Declared>,
    /// The last part of `image` or `model`.
    pub name: Option<String>,
    /// `run`, which was `predict` before.
    pub(super) runs: Option<String>,
    /// What was read and has no meaning here.
    pub(super) ignored: Vec<String>,
    pub(super) trains: bool,
}

/// A set of weights by its name. What is in it, its lock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    pub uris: Vec<String>,
}

const CONCURRENCY: RangeInclusive<u64> = 1..=1024;

/// Read, and without a meaning where nothing is built. `tests` was a key of 0.14 to 0.16.
const MEANINGLESS: [&str; 1] = ["tests"];

/// What a file may not set, as Cog has it: the runtime's own, and the drivers'.
const DENIED: [&str; 8] = [
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "PYTHONUNBUFFERED",
    "LIBRARY_PATH",
    "HF_ENDPOINT",
    "HF_HUB_ENABLE_HF_TRANSFER",
];
const DENIED_BEGINNINGS: [&str; 7] = ["R8_", "REPLICATE_", "CUDA_", "NVIDIA_", "NV_", "PGET_", "KUBERNETES_"];

/// The environment reference of a model here, in place of a Python one: `native.py:Llama`.
const RESERVED: &str = "native.py:";

impl Container {
    pub(super) fn read(root: &mut Mapping) -> Result<Self, ConfigError> {
        let mut build = root.mapping("build")?;
        let gpu = build.flag("gpu")?;
        let mut ignored: Vec<String> = build.rest().keys().map(|key| format!("build.{key}")).collect();
        ignored.extend(MEANINGLESS.into_iter().filter(|key| root.take(key).is_some()).map(str::to_owned));
        let mut concurrency = root.mapping("concurrency")?;
        let max = concurrency.number("max", CONCURRENCY)?.map(|max| max as u32);
        ignored.extend(concurrency.rest().keys().map(|key| format!("concurrency.{key}")));
        let runs = match (root.text("run")?, root.text("predict")?) {
            (Some(_), Some(predict)) => return Err(root.bad("predict", &predict.into(), "`run` says it already")),
            (run, predict) => run.or(predict),
        };
        let named = match (root.text("image")?, root.text("model")?) {
            (Some(_), Some(model)) => return Err(root.bad("model", &model.into(), "`image` says it already")),
            (image, model) => image.or(model),
        };
        Ok(Self {
            gpu,
            concurrency: max,
            environment: environment(root)?,
            weights: weights(root)?,
            name: named.and_then(|name| last_part(&name)),
            runs,
            ignored,
            trains: root.take("train").is_some(),
        })
    }

    /// The model that a reserved reference names: `native.py:Llama` is `llama`.
    pub(super) fn reserved(&self) -> Option<String> {
        self.runs.as_ref()?.strip_prefix(RESERVED).map(str::to_ascii_lowercase)
    }
}

fn environment(root: &mut Mapping) -> Result<Vec<(String, String)>, ConfigError> {
    let read = |value: &Value| {
        let pair = value.as_str().and_then(|text| text.split_once('='));
        let Some((name, text)) = pair.filter(|(name, _)| is_name(name)) else {
            return Err(root_bad(value, "NAME=value is expected"));
        };
        if DENIED.contains(&name) || DENIED_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) {
            return Err(root_bad(value, &format!("{name} may not be set here: it is the runtime's own")));
        }
        Ok((name.to_owned(), text.to_owned()))
    };
    root.list("environment")?.iter().map(read).collect()
}

fn root_bad(value: &Value, why: &str) -> ConfigError {
    ConfigError(format!("environment: {value}: {why}"))
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
    begins && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Only what tells them apart: their reader is whoever fetches them.
fn weights(root: &mut Mapping) -> Result<Vec<Declared>, ConfigError> {
    let read = |(index, value): (usize, Value)| {
        let mut keys = Mapping::new(format!("weights[{index}]"), Some(value))?;
        let name = keys.required_text("name")?;
        let uri = |source: &Value| source["uri"].as_str().map(str::to_owned);
        let uris = match keys.take("source") {
            Some(Value::Array(sources)) => sources.iter().filter_map(uri).collect(),
            Some(source) => uri(&source).into_iter().collect(),
            None => Vec::new(),
        };
        Ok(Declared { name, uris })
    };
    root.list("weights")?.into_iter().enumerate().map(read).collect()
}

/// `r8.im/owner/name:tag` is `name`.
fn last_part(image: &str) -> Option<String> {
    let last = image.rsplit('/').next()?.split([':', '@']).next()?;
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    Some(last.chars().map(plain).collect()).filter(|name: &String| !name.is_empty())
}
