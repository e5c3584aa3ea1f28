//! Reads every byte again: is a set still what the lock says, and what would a lock of this folder say?
//!
//! Knows nothing of networks. A file that was altered loses its place in the cache, so that the next start fetches it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prediction::PredictError;

use super::cache::{self, Cache};
use super::lock::{Entry, LockedFile, Origin, set_digest};
use super::{Options, Progress, is_pickle};

const MAX_FILES: usize = 10_000;

/// What one file of a set is found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    Good,
    Missing,
    Altered { expected: String, got: String },
    Unreadable(String),
}

/// Re-hashes every file of the entry in the cache. The result is in the lock's order.
pub fn verify(entry: &Entry, options: &Options, report: &mut dyn FnMut(Progress)) -> Vec<(String, FileState)> {
    let cache = Cache::at(&options.cache_dir);
    let look = |file: &LockedFile| (file.path.clone(), look(&cache, file, report).unwrap_or_else(unreadable));
    entry.files.iter().map(look).collect()
}

fn look(cache: &Cache, file: &LockedFile, report: &mut dyn FnMut(Progress)) -> io::Result<FileState> {
    let blob = cache.blob(file);
    if !blob.exists() {
        return Ok(FileState::Missing);
    }
    let _held = cache.hold(file, || report(Progress::Waiting { file: &file.path }))?;
    let total = file.size;
    let (got, size) =
        cache::hash(&blob, |done| report(Progress::Bytes { file: &file.path, source: "cache", done, total }))?;
    if got == file.hex() && size == file.size {
        cache.stamp(file)?;
        return Ok(FileState::Good);
    }
    cache.discard(file)?;
    Ok(FileState::Altered { expected: file.digest.clone(), got: format!("sha256:{got}") })
}

fn unreadable(e: io::Error) -> FileState {
    FileState::Unreadable(e.to_string())
}

/// An entry for the weights at `path`, a file or a folder: every file is hashed, hidden ones are left out, links to files
/// are followed, pickles are refused. `uri` says for the record where they come from.
pub fn lock_entry(name: &str, path: &Path, uri: &str, report: &mut dyn FnMut(Progress)) -> Result<Entry, PredictError> {
    let refuse =
        |path: &Path, why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", path.display()));
    let whole = path.canonicalize().map_err(|e| refuse(path, &e))?;
    let (root, mut found) = if whole.is_dir() {
        let mut found = Vec::new();
        walk(&whole, &mut found).map_err(|e| refuse(path, &e))?;
        (whole.as_path(), found)
    } else {
        (whole.parent().unwrap_or(Path::new("/")), vec![whole.clone()])
    };
    found.sort();
    let mut files = Vec::with_capacity(found.len());
    for at in &found {
        if is_pickle(at).map_err(|e| refuse(at, &e))? {
            return Err(refuse(
                at,
                &"is a Python pickle, which runs code when it is loaded; convert it to safetensors",
            ));
        }
        let relative = at.strip_prefix(root).map_err(|e| refuse(at, &e))?;
        let relative = relative.to_str().ok_or_else(|| refuse(at, &"its name is not UTF-8"))?.to_owned();
        let total = fs::metadata(at).map_err(|e| refuse(at, &e))?.len();
        let seen = |done| report(Progress::Bytes { file: &relative, source: "disk", done, total });
        let (hex, size) = cache::hash(at, seen).map_err(|e| refuse(at, &e))?;
        files.push(LockedFile { path: relative, size, digest: format!("sha256:{hex}"), layer: None });
    }
    let digest = set_digest(&files);
    let origin = Origin { uri: uri.to_owned(), fingerprint: digest.clone(), include: vec![], exclude: vec![] };
    let entry = Entry {
        name: name.to_owned(),
        sources: vec![origin],
        set_digest: digest,
        size: files.iter().map(|file| file.size).sum(),
        files,
        ..Entry::default()
    };
    entry.check()?;
    Ok(entry)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Links to folders are not followed: they may lead in a circle.
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), found)?;
        } else if entry.path().is_file() {
            found.push(entry.path());
        }
        if found.len() > MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files")));
        }
    }
    Ok(())
}
