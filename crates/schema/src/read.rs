//! Reading a mapping of cog.yaml key by key: what is wrong names its key, its value and the limit; what nobody asked
//! for is refused by name.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::{Map, config::ConfigError};

/// A mapping and where it stands in the file.
pub struct Mapping {
    path: String,
    rest: Map,
    known: Vec<&'static str>,
}

impl Mapping {
    /// An absent or empty mapping has no keys.
    pub fn new(path: impl Into<String>, value: Option<Value>) -> Result<Self, ConfigError> {
        let path = path.into();
        match value {
            None | Some(Value::Null) => Ok(Self { path, rest: Map::new(), known: Vec::new() }),
            Some(Value::Object(rest)) => Ok(Self { path, rest, known: Vec::new() }),
            Some(other) => Err(ConfigError(format!("{path}: {other} is not a mapping"))),
        }
    }

    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Null is as good as absent.
    pub fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.rest.shift_remove(key).filter(|value| !value.is_null())
    }

    pub fn mapping(&mut self, key: &'static str) -> Result<Mapping, ConfigError> {
        let path = self.path(key);
        Mapping::new(path, self.take(key))
    }

    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text)),
            Some(other) => Err(self.bad(key, &other, "a text that is not empty is expected")),
        }
    }

    pub fn required_text(&mut self, key: &'static str) -> Result<String, ConfigError> {
        let missing = ConfigError(format!("{} is missing", self.path(key)));
        self.text(key)?.ok_or(missing)
    }

    pub fn flag(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.bad(key, &other, "true or false is expected")),
        }
    }

    pub fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.bad(
                key,
                &value,
                format!("a whole number from {} to {} is expected", range.start(), range.end()),
            )),
        }
    }

    /// Bytes of a number of gigabytes, whole or not.
    pub fn gigabytes(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_f64().filter(|number| *number >= 0.0) {
            Some(number) => Ok(Some((number * 1e9) as u64)),
            None => Err(self.bad(key, &value, "a number of gigabytes from 0 on is expected")),
        }
    }

    pub fn list(&mut self, key: &'static str) -> Result<Vec<Value>, ConfigError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(self.bad(key, &other, "a list is expected")),
        }
    }

    pub fn bad(&self, key: &str, value: &Value, why: impl AsRef<str>) -> ConfigError {
        ConfigError(format!("{}: {value}: {}", self.path(key), why.as_ref()))
    }

    /// The keys that were never asked for, in the order of the file.
    pub fn rest(self) -> Map {
        self.rest
    }

    /// Refuses keys that were never asked for: a misspelt limit must not become no limit.
    pub fn end(self) -> Result<(), ConfigError> {
        match self.rest.keys().next() {
            None => Ok(()),
            Some(key) => {
                let known = self.known.join(", ");
                Err(ConfigError(format!("{} is not a key here; known are {known}", self.path(key))))
            }
        }
    }
}
