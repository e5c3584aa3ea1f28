//! Safetensors, mapped: one file, a folder of files, or shards behind an index; tensors by name and by slice.
//!
//! Every header is validated whole (the `safetensors` crate: offsets without gaps, sizes that fit shapes, the file
//! neither shorter nor longer) when it is opened. Refuses pickles, and an index that points out of its folder. Knows
//! nothing of what a tensor means.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use candle_core::DType;
use prediction::PredictError;
use safetensors::Dtype;
use serde::Deserialize;

use crate::Origin;
use crate::map::Mapped;
use crate::weights::{begins_like_pickle, is_pickle};

/// An index lists a line per tensor: the largest models have some hundred thousand.
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 1_024;

pub struct SafeTensors {
    path: PathBuf,
    shards: Vec<Mapped>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies: `range` is inside the shard.
struct Place {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// One tensor, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    pub name: &'a str,
    pub dtype: DType,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafeTensors {
    /// A `.safetensors` file, an index, or a folder: its index if it has one, else all its safetensors files.
    pub fn open(path: &Path) -> Result<Self, PredictError> {
        if path.is_dir() {
            let files = inside(path).map_err(|e| refuse(path, &e))?;
            return match files.iter().find(|file| is_index(file)) {
                Some(index) => Self::open_index(index),
                None => Self::open_files(path, &with_extension(path, &files)?),
            };
        }
        if is_index(path) { Self::open_index(path) } else { Self::open_files(path, &[path.to_owned()]) }
    }

    /// A part of a file, such as a member of an archive, that is a safetensors file of its own; `name` is what messages
    /// call it.
    pub fn open_part(path: &Path, range: Range<u64>, name: &str) -> Result<Self, PredictError> {
        let mut this = Self { path: name.into(), shards: Vec::new(), tensors: BTreeMap::new() };
        this.take(Mapped::part(path, range, Path::new(name))?)?;
        Ok(this)
    }

    fn open_files(path: &Path, files: &[PathBuf]) -> Result<Self, PredictError> {
        let mut this = Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        for file in files {
            this.add(file)?;
        }
        Ok(this)
    }

    fn open_index(index: &Path) -> Result<Self, PredictError> {
        let bytes = fs::metadata(index).map_err(|e| refuse(index, &e))?.len();
        if bytes > MAX_INDEX_BYTES {
            return Err(refuse(index, &format_args!("has {bytes} bytes; at most {MAX_INDEX_BYTES}")));
        }
        let text = fs::read_to_string(index).map_err(|e| refuse(index, &e))?;
        let Index { weight_map } = serde_json::from_str(&text).map_err(|e| refuse(index, &e))?;
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut names: Vec<&str> = weight_map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() || names.len() > MAX_SHARDS {
            return Err(refuse(index, &format_args!("names {} shards; 1 to {MAX_SHARDS}", names.len())));
        }
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) || name.is_empty() {
                return Err(refuse(index, &format_args!("points out of its folder: {name:?}")));
            }
            files.push(folder.join(name));
        }
        let this = Self::open_files(index, &files)?;
        for (tensor, file) in &weight_map {
            let place = this.tensors.get(tensor);
            if place.is_none_or(|place| this.shards[place.shard].path() != folder.join(file)) {
                return Err(refuse(index, &format_args!("says that {tensor} is in {file}, and it is not")));
            }
        }
        Ok(this)
    }

    fn add(&mut self, path: &Path) -> Result<(), PredictError> {
        self.take(Mapped::open(path)?)
    }

    fn take(&mut self, file: Mapped) -> Result<(), PredictError> {
        let path = file.path().to_owned();
        let unusable = |why: &dyn std::fmt::Display| match begins_like_pickle(&file) {
            true => refuse(&path, &"is a Python pickle, which runs code when it is loaded; convert it to safetensors"),
            false => refuse(&path, &format_args!("not a usable safetensors file of {} bytes: {why}", file.len())),
        };
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&file).map_err(|e| unusable(&e))?;
        let start = 8 + header;
        for (name, info) in metadata.tensors() {
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            if file.get(range.clone()).is_none() {
                return Err(unusable(&format_args!("tensor {name} lies at {range:?}")));
            }
            let place = Place { shard: self.shards.len(), dtype: info.dtype, shape: info.shape.clone(), range };
            if let Some(other) = self.tensors.insert(name.clone(), place) {
                let other = self.shards[other.shard].path().display();
                return Err(refuse(&path, &format_args!("tensor {name} is also in {other}")));
            }
        }
        self.shards.push(file);
        Ok(())
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, PredictError> {
        let (name, place) = self.tensors.get_key_value(name).ok_or_else(|| {
            refuse(&self.path, &format_args!("tensor {name} is missing ({} others are there)", self.tensors.len()))
        })?;
        let dtype = dtype(place.dtype).ok_or_else(|| {
            refuse(&self.path, &format_args!("tensor {name} is {:?}, which is not read", place.dtype))
        })?;
        Ok(Tensor { name, dtype, shape: &place.shape, bytes: &self.shards[place.shard][place.range.clone()] })
    }

    /// The part of a tensor that lies at `range` of its dimension `dim`, row-major. Borrowed where it is one piece.
    pub fn slice(&self, name: &str, dim: usize, range: Range<usize>) -> Result<Cow<'_, [u8]>, PredictError> {
        let Tensor { dtype, shape, bytes, .. } = self.tensor(name)?;
        let within = shape.get(dim).is_some_and(|&size| range.start <= range.end && range.end <= size);
        if !within {
            let why = format_args!("tensor {name} of shape {shape:?} has no {range:?} in dimension {dim}");
            return Err(refuse(&self.path, &why));
        }
        // [outer, size, inner]: from each outer block, one run of range.len() * inner.
        let inner = shape[dim + 1..].iter().product::<usize>() * dtype.size_in_bytes();
        let block = shape[dim] * inner;
        let run = range.start * inner..range.end * inner;
        if block == bytes.len() {
            return Ok(Cow::Borrowed(&bytes[run]));
        }
        Ok(Cow::Owned(bytes.chunks_exact(block.max(1)).flat_map(|outer| &outer[run.clone()]).copied().collect()))
    }

    pub fn origin(&self) -> Origin {
        Origin::Files(self.shards.iter().map(Mapped::identity).collect())
    }

    /// Every tensor is wanted soon: the disk may begin.
    pub fn read_ahead(&self) {
        crate::map::read_ahead(&self.shards);
    }

    /// The tensor was taken over: its pages need not stay in memory.
    pub fn advise_drop(&self, name: &str) {
        if let Some(place) = self.tensors.get(name) {
            self.shards[place.shard].advise_drop(place.range.clone());
        }
    }
}

/// The files of a folder that could hold tensors; if there are none, why.
fn with_extension(folder: &Path, files: &[PathBuf]) -> Result<Vec<PathBuf>, PredictError> {
    let found: Vec<PathBuf> = files.iter().filter(|file| has_extension(file, "safetensors")).cloned().collect();
    if !found.is_empty() {
        return Ok(found);
    }
    match files.iter().find(|file| is_pickle(file).unwrap_or(false)) {
        Some(pickle) => {
            let name = pickle.file_name().unwrap_or_default().to_string_lossy();
            Err(refuse(
                folder,
                &format_args!(
                    "has no safetensors file, only {name}, a Python pickle, which runs code when it is loaded; convert it to safetensors"
                ),
            ))
        }
        None => Err(refuse(folder, &"has no safetensors file")),
    }
}

/// Plain files, sorted.
fn inside(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

fn is_index(path: &Path) -> bool {
    // A variant of the weights has its name before the ending: `.index.fp16.json`.
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_suffix(".json")).is_some_and(|name| {
        name.split_once(".safetensors.index").is_some_and(|(_, variant)| variant.is_empty() || variant.starts_with('.'))
    })
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension == wanted)
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::U8 | Dtype::BOOL => DType::U8,
        Dtype::U32 => DType::U32,
        Dtype::I64 => DType::I64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        _ => return None,
    })
}

fn refuse(path: &Path, why: &dyn std::fmt::Display) -> PredictError {
    PredictError::Operator(format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests;
