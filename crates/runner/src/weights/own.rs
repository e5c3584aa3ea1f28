//! Sets of somebody's own cog.yaml, and where they are read from: `sets/<set digest>/` of the cache, like every other set.
//! What comes from a folder of this machine is not copied: there are links to its files, which are checked against the
//! lock before each use. So nothing is read but what is locked, whatever else lies beside it.
//!
//! Beside the set's folder, `<set digest>.json` says what it is and where it may come from: a worker that is given the
//! folder's path needs to know neither cog.yaml nor lock, and a lock that is edited while a server runs changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use prediction::PredictError;
use serde::{Deserialize, Serialize};

use super::cache::{self, Cache};
use super::declared::{Uri, uri};
use super::known::{self, Kept};
use super::lock::{Entry, LockedFile};
use super::mirror::{Place, Source};
use super::verify::{Checked, verify_with};
use super::{Options, Progress, fetch, hub};

const REPIN: &str = "If that was meant, `pinion weights lock` pins what is there now";

/// A set and the folder that its paths are relative to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    pub entry: Entry,
    pub base: PathBuf,
}

impl Own {
    /// Where it is read from once it is ready: its only file, or the folder of several.
    pub fn path(&self, options: &Options) -> PathBuf {
        let folder = Cache::at(&options.cache_dir).set(&self.entry);
        match self.entry.files.as_slice() {
            [only] => folder.join(&only.path),
            _ => folder,
        }
    }

    /// Notes what `path` is, for whoever is given it: `bring` makes it ready.
    pub fn note(&self, options: &Options) -> Result<PathBuf, PredictError> {
        let record = record(&options.cache_dir, self.entry.set_hex());
        let text = serde_json::to_string(self).map_err(|e| PredictError::Operator(e.to_string()))?;
        if !fs::read_to_string(&record).is_ok_and(|now| now == text) {
            let fresh = record.with_extension(format!("{}-new", std::process::id()));
            let folder = record.parent().unwrap_or(Path::new(""));
            let written = fs::create_dir_all(folder).and_then(|()| fs::write(&fresh, &text));
            written.and_then(|()| fs::rename(&fresh, &record)).map_err(|e| refuse(&options.cache_dir, &e))?;
        }
        Ok(self.path(options))
    }

    /// Fetched or linked, every file as locked. Costs a few system calls per file where nothing has changed.
    pub fn ensure(&self, options: &Options, report: &mut dyn FnMut(Progress)) -> Result<PathBuf, PredictError> {
        self.entry.check()?;
        let cache = Cache::at(&options.cache_dir);
        if cache.ready(&self.entry).is_none() {
            match self.roots() {
                Some(roots) => self.link(&cache, &roots, options, report)?,
                None => drop(fetch::ensure(&self.entry, &self.mirrors(), options, report)?),
            }
        }
        Ok(self.path(options))
    }

    /// Every byte again.
    pub fn verify(&self, options: &Options, report: &mut dyn FnMut(Progress)) -> Result<Vec<Checked>, PredictError> {
        let Some(roots) = self.roots() else { return verify_with(&self.entry, options, report) };
        let mut look = |file: &LockedFile| {
            let Some(path) = find(&roots, file) else { return (file.path.clone(), Err("is not there".to_owned())) };
            let (name, total) = (file.path.as_str(), file.size);
            let hashed = cache::hash(&path, |done| {
                report(Progress::Bytes { file: name, source: "folder", done: done.min(total), total });
            });
            (
                file.path.clone(),
                hashed.map_err(|e| format!("cannot be read: {e}")).and_then(|got| as_locked(file, &got)),
            )
        };
        Ok(self.entry.files.iter().map(&mut look).collect())
    }

    /// Refuses what can be seen to be altered without reading a file: one that is not there, has another size, or was read
    /// since it changed and has other bytes. The others that changed since they were read are noted: a load reads them.
    pub fn glance(&self, options: &Options) -> Result<Vec<String>, PredictError> {
        let mut notes = Vec::new();
        let Some(roots) = self.roots() else { return Ok(notes) };
        for file in &self.entry.files {
            let path = self.found(&roots, file)?;
            let size = fs::metadata(&path).map_err(|e| self.refuse(file, &e))?.len();
            if size != file.size {
                let why = format!("was altered: {} bytes are locked, {size} are there", file.size);
                return Err(self.refuse(file, &format!("{why}. {REPIN}")));
            }
            match known::look(&options.cache_dir, &path).map_err(|e| self.refuse(file, &e))? {
                Kept::Same(hex) => self.as_locked(file, &(hex, size))?,
                Kept::Changed => notes.push(format!(
                    "weights {}: {} changed since its bytes were compared with the lock; they are compared when it is loaded",
                    self.entry.name, file.path
                )),
                Kept::Nothing => {}
            }
        }
        Ok(notes)
    }

    /// The folders and files of this machine that all of it comes from; none where something else is needed too, or
    /// where they are not here (an imported bundle lies in the cache).
    fn roots(&self) -> Option<Vec<PathBuf>> {
        let there = |path: PathBuf| path.exists().then_some(path);
        let roots = self.entry.sources.iter().map(|source| uri(&source.uri).ok()?.at(&self.base).and_then(there));
        roots.collect::<Option<Vec<_>>>().filter(|roots| !roots.is_empty())
    }

    /// The places to try, from what the lock says of the sources.
    fn mirrors(&self) -> Vec<Source> {
        let place = |origin: &super::lock::Origin| {
            let commit = origin.fingerprint.strip_prefix("commit:").filter(|commit| hub::is_commit(commit));
            match (uri(&origin.uri).ok()?, commit) {
                (Uri::Path(path), _) => Some(Source { place: Place::Path(self.base.join(path)), only: None }),
                (Uri::Https(url), _) => {
                    let name = url.path_segments().and_then(|mut parts| parts.next_back()).map(str::to_owned);
                    Some(Source { place: Place::Https(url), only: name })
                }
                (Uri::Hub { repo, .. }, Some(commit)) => {
                    let commit = commit.to_owned();
                    Some(Source { place: Place::Hub { repo, commit, file: None }, only: None })
                }
                (Uri::Hub { .. }, None) => None,
            }
        };
        self.entry.sources.iter().filter_map(place).collect()
    }

    fn link(
        &self,
        cache: &Cache,
        roots: &[PathBuf],
        options: &Options,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), PredictError> {
        let refuse = |file: &LockedFile, why: &dyn std::fmt::Display| self.refuse(file, why);
        for file in &self.entry.files {
            let path = self.found(roots, file)?;
            let (name, total) = (file.path.as_str(), file.size);
            let mut seen = |done: u64| {
                report(Progress::Bytes { file: name, source: "folder", done: done.min(total), total });
            };
            let got = known::hash(&options.cache_dir, &path, &mut seen).map_err(|e| refuse(file, &e))?;
            self.as_locked(file, &got)?;
            super::refuse_pickle(&file.path, &path).map_err(|why| refuse(file, &why))?;
            let path = path.canonicalize().map_err(|e| refuse(file, &e))?;
            cache.link_to(&self.entry, file, &path).map_err(|e| refuse(file, &e))?;
        }
        Ok(())
    }

    fn found(&self, roots: &[PathBuf], file: &LockedFile) -> Result<PathBuf, PredictError> {
        find(roots, file).ok_or_else(|| self.refuse(file, &"is locked, and is not there"))
    }

    fn as_locked(&self, file: &LockedFile, got: &(String, u64)) -> Result<(), PredictError> {
        as_locked(file, got).map_err(|why| self.refuse(file, &format!("{why}. {REPIN}")))
    }

    fn refuse(&self, file: &LockedFile, why: &dyn std::fmt::Display) -> PredictError {
        PredictError::Operator(format!("weights {}: {} {why}", self.entry.name, file.path))
    }
}

/// Makes ready what `path` leads to, if that is a set of somebody's own. Any other path is its owner's business.
pub fn bring(path: &Path, options: &Options, report: &mut dyn FnMut(Progress)) -> Result<(), PredictError> {
    let sets = options.cache_dir.join("sets");
    let Some(set) = path.strip_prefix(&sets).ok().and_then(|path| path.components().next()) else { return Ok(()) };
    let Ok(text) = fs::read_to_string(record(&options.cache_dir, &set.as_os_str().to_string_lossy())) else {
        return Ok(());
    };
    let own: Own = serde_json::from_str(&text).map_err(|e| refuse(path, &e))?;
    own.ensure(options, report).map(drop)
}

fn record(cache: &Path, set_hex: &str) -> PathBuf {
    cache.join("sets").join(format!("{set_hex}.json"))
}

/// A root is a folder that holds the file under its path, or the file itself.
fn find(roots: &[PathBuf], file: &LockedFile) -> Option<PathBuf> {
    let candidate = |root: &PathBuf| match root.is_dir() {
        true => root.join(&file.path),
        false => root.clone(),
    };
    roots.iter().map(candidate).find(|path| path.is_file() && path.ends_with(&file.path))
}

fn as_locked(file: &LockedFile, (hex, size): &(String, u64)) -> Result<(), String> {
    match hex == file.hex() && *size == file.size {
        true => Ok(()),
        false => Err(format!(
            "was altered: {} bytes and {} are locked, {size} bytes and sha256:{hex} are there",
            file.size, file.digest
        )),
    }
}

fn refuse(path: &Path, why: &dyn std::fmt::Display) -> PredictError {
    PredictError::Operator(format!("{}: {why}", path.display()))
}
