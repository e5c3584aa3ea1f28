//! A GGUF file (versions 2 and 3), mapped: metadata by key, tensors by name.
//!
//! Everything the header says is checked against the file's size when it is opened, so that what comes later can slice
//! without fear: a hostile file is refused with the field, its value and the limit. Knows nothing of what a key or a
//! tensor means. Memory: the header's table only, about 100 bytes per tensor and 4 bytes per string of an array.

mod header;
mod kind;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

use prediction::PredictError;

use crate::Origin;
use crate::map::Mapped;
use header::{Header, Place};
pub use kind::GgmlType;
pub use value::{Strings, Value};

pub struct Gguf {
    file: Mapped,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Place>,
}

/// One tensor, as it lies in the file.
#[derive(Debug, Clone, Copy)]
pub struct GgufTensor<'a> {
    pub name: &'a str,
    pub kind: GgmlType,
    /// Outermost first, as everywhere else here: a linear layer is `[out_features, in_features]`. (The file itself
    /// counts from the innermost dimension.)
    pub shape: &'a [usize],
    /// Exactly as many bytes as kind and shape need.
    pub bytes: &'a [u8],
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self, PredictError> {
        let file = Mapped::open(path)?;
        let Header { metadata, tensors } = header::read(&file)
            .map_err(|why| PredictError::Operator(format!("{}: not a usable GGUF file: {why}", path.display())))?;
        Ok(Self { file, metadata, tensors })
    }

    pub fn origin(&self) -> Origin {
        Origin::Files(vec![self.file.identity()])
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// An integer that must be there and not be negative.
    pub fn u64(&self, key: &str) -> Result<u64, PredictError> {
        self.need(key, "an unsigned integer", Value::as_u64)
    }

    pub fn f32(&self, key: &str) -> Result<f32, PredictError> {
        self.need(key, "a float", Value::as_f32)
    }

    pub fn bool(&self, key: &str) -> Result<bool, PredictError> {
        self.need(key, "a boolean", Value::as_bool)
    }

    pub fn str(&self, key: &str) -> Result<&str, PredictError> {
        self.need(key, "a string", Value::as_str)
    }

    /// An array of strings; they stay in the file until somebody copies them.
    pub fn strings(&self, key: &str) -> Result<Strings<'_>, PredictError> {
        let array = self.need(key, "an array of strings", Value::as_strings)?;
        Ok(Strings::new(&self.file, array))
    }

    /// An array of floats (f32 or f64).
    pub fn floats(&self, key: &str) -> Result<Vec<f32>, PredictError> {
        self.need(key, "an array of floats", |value| value.floats(&self.file))
    }

    /// An array of integers of any width.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>, PredictError> {
        self.need(key, "an array of integers", |value| value.integers(&self.file))
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn tensor(&self, name: &str) -> Result<GgufTensor<'_>, PredictError> {
        match self.tensors.get_key_value(name) {
            Some((name, place)) => Ok(self.view(name, place)),
            None => Err(self.refuse(format!("tensor {name} is missing ({} others are there)", self.tensors.len()))),
        }
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = GgufTensor<'_>> {
        self.tensors.iter().map(|(name, place)| self.view(name, place))
    }

    /// Every tensor is wanted soon: the disk may begin.
    pub fn read_ahead(&self) {
        crate::map::read_ahead(std::slice::from_ref(&self.file));
    }

    /// The tensor was repacked: its pages need not stay in memory.
    pub fn advise_drop(&self, name: &str) {
        if let Some(place) = self.tensors.get(name) {
            self.file.advise_drop(place.start..place.start + place.len);
        }
    }

    /// Everything was read: no page need stay in memory.
    pub fn advise_drop_all(&self) {
        self.file.advise_drop(0..self.file.len());
    }

    fn view<'a>(&'a self, name: &'a str, place: &'a Place) -> GgufTensor<'a> {
        let bytes = &self.file[place.start..place.start + place.len];
        GgufTensor { name, kind: place.kind, shape: &place.shape, bytes }
    }

    fn need<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, PredictError> {
        let value = self.metadata.get(key).ok_or_else(|| self.refuse(format!("metadata {key} is missing")))?;
        read(value).ok_or_else(|| self.refuse(format!("metadata {key} is {value}, expected {what}")))
    }

    fn refuse(&self, why: String) -> PredictError {
        PredictError::Operator(format!("{}: {why}", self.file.path().display()))
    }
}

#[cfg(test)]
mod tests;
