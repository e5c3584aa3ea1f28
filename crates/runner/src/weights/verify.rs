//! Reads every byte again: is a set still what the lock says, and what would a lock of this folder say?
//!
//! Knows nothing of networks. A file that was altered loses its place in the cache, so that the next start fetches it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prediction::PredictError;

use super::cache::{self, Cache};
use super::lock::{Entry, LockedFile, Origin, set_digest};
use super::{Options, Progress, is_pickle, known};

const MAX_FILES: usize = 10_000;
/// What stands beside weights in a folder that is served, and says what they are: never a part of them.
const OUR_FILES: [&str; 2] = ["cog.yaml", "weights.lock"];

/// A file's path in the set, and what is wrong with it.
pub type Checked = (String, Result<(), String>);

/// Re-hashes every file of the entry in the cache that the environment names. In the lock's order.
pub fn verify(entry: &Entry) -> Result<Vec<Checked>, PredictError> {
    verify_with(entry, &Options::from_env(), &mut |_| {})
}

pub fn verify_with(
    entry: &Entry,
    options: &Options,
    report: &mut dyn FnMut(Progress),
) -> Result<Vec<Checked>, PredictError> {
    entry.check()?;
    let cache = Cache::at(&options.cache_dir);
    let look = |file: &LockedFile| {
        let found = look(&cache, file, report).unwrap_or_else(|e| Err(format!("cannot be read: {e}")));
        (file.path.clone(), found)
    };
    Ok(entry.files.iter().map(look).collect())
}

fn look(cache: &Cache, file: &LockedFile, report: &mut dyn FnMut(Progress)) -> io::Result<Result<(), String>> {
    let blob = cache.blob(file);
    if !blob.exists() {
        return Ok(Err(format!("is not in the cache at {}", cache.root().display())));
    }
    let (path, total) = (file.path.as_str(), file.size);
    let _held = cache.hold(file, || report(Progress::Waiting { file: path }))?;
    let seen = |done| report(Progress::Bytes { file: path, source: "cache", done, total });
    let (got, size) = cache::hash(&blob, seen)?;
    if got == file.hex() && size == file.size {
        cache.stamp(file)?;
        return Ok(Ok(()));
    }
    cache.discard(file)?;
    Ok(Err(format!("was altered: expected {}, got sha256:{got}; the cache has forgotten it", file.digest)))
}

/// An entry for the weights at `path`, a file or a folder: every file is hashed, hidden ones are left out, links to files
/// are followed, pickles are refused.
pub fn lock_path(name: &str, path: &Path) -> Result<Entry, PredictError> {
    lock_by(name, path, &mut |file, _, _| cache::hash(file, |_| {}))
}

/// The same, but a file that is as it was when it was hashed last is not read again: `known` has the conditions. `report`
/// hears of those that are read.
pub fn lock_known(
    name: &str,
    path: &Path,
    options: &Options,
    report: &mut dyn FnMut(Progress),
) -> Result<Entry, PredictError> {
    lock_by(name, path, &mut |at, file, total| {
        let mut seen = |done: u64| report(Progress::Bytes { file, source: "folder", done: done.min(total), total });
        known::hash(&options.cache_dir, at, &mut seen)
    })
}

/// Hashes a file: where it lies, its path in the set, its size.
pub(super) type Hash<'a> = &'a mut dyn FnMut(&Path, &str, u64) -> io::Result<(String, u64)>;

fn lock_by(name: &str, path: &Path, hash: Hash) -> Result<Entry, PredictError> {
    let files = files(path, &|_| true, hash)?;
    let digest = set_digest(&files);
    let uri = format!("file://{}", path.file_name().unwrap_or_default().to_string_lossy());
    let entry = Entry {
        name: name.to_owned(),
        sources: vec![Origin { uri, fingerprint: digest.clone(), include: vec![], exclude: vec![] }],
        set_digest: digest,
        size: files.iter().map(|file| file.size).sum(),
        files,
        ..Entry::default()
    };
    entry.check()?;
    Ok(entry)
}

/// The files at `path`, a file or a folder, whose paths are wanted.
pub(super) fn files(path: &Path, wanted: &dyn Fn(&str) -> bool, hash: Hash) -> Result<Vec<LockedFile>, PredictError> {
    let refuse =
        |path: &Path, why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", path.display()));
    let mut found = Vec::new();
    let root = if path.is_dir() {
        walk(path, &mut found).map_err(|e| refuse(path, &e))?;
        found.retain(|at| !OUR_FILES.iter().any(|name| *at == path.join(name)));
        path
    } else {
        found.push(path.to_owned());
        path.parent().unwrap_or(Path::new(""))
    };
    found.sort();
    let mut files = Vec::with_capacity(found.len());
    for at in &found {
        let relative = at.strip_prefix(root).map_err(|e| refuse(at, &e))?;
        let relative = relative.to_str().ok_or_else(|| refuse(at, &"its name is not UTF-8"))?.to_owned();
        if !wanted(&relative) {
            continue;
        }
        if is_pickle(at).map_err(|e| refuse(at, &e))? {
            return Err(PredictError::Operator(a_pickle(&at.display().to_string())));
        }
        let size = fs::metadata(at).map_err(|e| refuse(at, &e))?.len();
        let (hex, size) = hash(at, &relative, size).map_err(|e| refuse(at, &e))?;
        files.push(LockedFile { path: relative, size, digest: format!("sha256:{hex}"), layer: None });
    }
    Ok(files)
}

/// Every file of a folder, by its path in it; hidden ones are left out.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    walk(folder, &mut found)?;
    let relative = |path: &PathBuf| path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
    let mut names: Vec<String> = found.iter().map(relative).collect();
    names.sort();
    Ok(names)
}

/// Those that are pickles.
pub fn pickles(folder: &Path) -> io::Result<Vec<String>> {
    let names = names(folder)?.into_iter();
    names.filter_map(|name| is_pickle(&folder.join(&name)).map(|is| is.then_some(name)).transpose()).collect()
}

pub(super) fn a_pickle(path: &str) -> String {
    format!(
        "{path}: is a Python pickle, which runs code when it is loaded; convert it to safetensors, or leave it out (exclude)"
    )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Lock;

    #[test]
    fn a_folder_is_locked_file_by_file_without_what_is_hidden() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        write("config.json", b"{}");
        write("unet/model.safetensors", b"abc");
        write(".git/HEAD", b"x");
        write("cog.yaml", b"native: {}");
        write("weights.lock", b"{}");
        std::os::unix::fs::symlink("config.json", folder.path().join("linked.json")).unwrap();
        let entry = lock_path("tiny", folder.path()).unwrap();
        let files: Vec<_> = entry.files.iter().map(|file| (file.path.as_str(), file.size)).collect();
        assert_eq!(files, [("config.json", 2), ("linked.json", 2), ("unet/model.safetensors", 3)]);
        // sha256 of "abc", from the standard that defines it.
        assert_eq!(entry.files[2].hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Lock::parse(&Lock::new(vec![entry.clone()]).to_json()).unwrap().weights, [entry]);

        let one = lock_path("one", &folder.path().join("config.json")).unwrap();
        assert_eq!((one.files[0].path.as_str(), one.size), ("config.json", 2));
    }

    #[test]
    fn a_pickle_an_empty_folder_and_nothing_are_not_locked() {
        let folder = tempfile::tempdir().unwrap();
        let said = |path: &Path| lock_path("x", path).unwrap_err().to_string();
        assert!(said(folder.path()).contains("it has no files"));
        fs::write(folder.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
        assert!(said(folder.path()).contains("pytorch_model.bin: is a Python pickle"));
        assert!(said(&folder.path().join("absent")).contains("absent: No such file"));
    }
}
