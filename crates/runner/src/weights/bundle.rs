//! A set in one file, for machines without a network: a plain tar of the lock and of each content once, named by its digest.
//! One file, since one is easier to carry and to sign than a folder; not compressed, since weights do not shrink; and
//! without times or owners, so that the same weights always make the same bundle.
//!
//! Reading one believes nothing: other names than these are refused, a content is written only if the lock lists it with
//! that size, and takes its place in the cache only once its digest is right.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use prediction::PredictError;
use sha2::{Digest, Sha256};

use super::cache::{Blob, Cache};
use super::lock::{Entry, Lock, LockedFile};
use super::sink::{Fault, Sink};
use super::{Options, Progress};

const LOCK: &str = "weights.lock";
const MANIFEST: &str = "cog.yaml";
const BLOBS: &str = "blobs/sha256/";
/// Of the lock and of the cog.yaml in a bundle.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// What goes into one.
pub struct Bundle {
    /// Each with the folder that holds its files.
    pub sets: Vec<(Entry, PathBuf)>,
    /// The cog.yaml that serves them, where it is somebody's own.
    pub manifest: Option<String>,
}

/// What came out of one.
#[derive(Debug)]
pub struct Imported {
    pub lock: Lock,
    pub manifest: Option<String>,
}

impl Bundle {
    /// Writes it, hashing what is read: altered files make no bundle. It has its name once it is whole.
    pub fn write(&self, to: &Path, report: &mut dyn FnMut(Progress)) -> Result<(), PredictError> {
        let fresh = to.with_added_extension(format!("{}-new", std::process::id()));
        let written = File::options().create_new(true).write(true).open(&fresh).and_then(|file| {
            let mut tar = tar::Builder::new(file);
            self.fill(&mut tar, report)?;
            tar.into_inner()?.sync_all()?;
            fs::rename(&fresh, to)
        });
        written.map_err(|e| {
            // What is unfinished is of no use; the first error is the one to tell.
            let _ = fs::remove_file(&fresh);
            PredictError::Operator(format!("{}: {e}", to.display()))
        })
    }

    fn fill(&self, tar: &mut tar::Builder<File>, report: &mut dyn FnMut(Progress)) -> io::Result<()> {
        let lock = Lock::new(self.sets.iter().map(|(entry, _)| entry.clone()).collect());
        let text = lock.to_json();
        add(tar, LOCK, text.len() as u64, text.as_bytes())?;
        if let Some(manifest) = &self.manifest {
            add(tar, MANIFEST, manifest.len() as u64, manifest.as_bytes())?;
        }
        // By digest: in order, and once.
        let files = self.sets.iter().flat_map(|(entry, folder)| {
            entry.files.iter().map(move |file| (file.hex(), (file, folder.join(&file.path))))
        });
        for (hex, (file, path)) in files.collect::<BTreeMap<_, _>>() {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            let from = File::open(&path).map_err(named)?;
            let (name, total) = (file.path.as_str(), file.size);
            let tell =
                |done: u64| report(Progress::Bytes { file: name, source: "bundle", done: done.min(total), total });
            let mut seen = Seen { from, hasher: Sha256::new(), done: 0, tell };
            add(tar, &format!("{BLOBS}{hex}"), file.size, &mut seen)?;
            let got = hex::encode(seen.hasher.finalize());
            if got != hex {
                return Err(io::Error::other(format!("{} was altered: sha256:{got}, locked is {hex}", path.display())));
            }
        }
        Ok(())
    }
}

fn add(tar: &mut tar::Builder<File>, name: &str, size: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o444);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, content)
}

/// Hashes what is read through it, and tells how much that is.
struct Seen<R, F> {
    from: R,
    hasher: Sha256,
    done: u64,
    tell: F,
}

impl<R: Read, F: FnMut(u64)> Read for Seen<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.done += read as u64;
        (self.tell)(self.done);
        Ok(read)
    }
}

/// Takes a bundle's contents into the cache; its sets are ready then.
pub fn import(
    from: impl Read,
    name: &str,
    options: &Options,
    report: &mut dyn FnMut(Progress),
) -> Result<Imported, PredictError> {
    let refuse = |why: String| PredictError::Operator(format!("{name}: {why}"));
    let cache = Cache::at(&options.cache_dir);
    let mut tar = tar::Archive::new(from);
    let mut entries = tar.entries().map_err(|e| refuse(e.to_string()))?.map(|entry| {
        let entry = entry.map_err(|e| refuse(format!("not a usable bundle: {e}")))?;
        let path = entry.path().map_err(|e| refuse(e.to_string()))?.to_string_lossy().into_owned();
        match entry.header().entry_type() {
            tar::EntryType::Regular => Ok((path, entry)),
            other => Err(refuse(format!("{path:?} is a {other:?}; a bundle has plain files only"))),
        }
    });
    let first = entries.next().transpose()?.filter(|(path, _)| path == LOCK);
    let (_, first) = first.ok_or_else(|| refuse(format!("not a bundle: its first file is not {LOCK}")))?;
    let lock = Lock::parse(&text(first).map_err(|e| refuse(format!("{LOCK}: {e}")))?)?;
    let wanted: BTreeMap<&str, &LockedFile> =
        lock.weights.iter().flat_map(|entry| &entry.files).map(|file| (file.hex(), file)).collect();
    let mut manifest = None;
    for entry in entries {
        let (path, entry) = entry?;
        if path == MANIFEST {
            manifest = Some(text(entry).map_err(|e| refuse(format!("{MANIFEST}: {e}")))?);
            continue;
        }
        let file = path.strip_prefix(BLOBS).and_then(|hex| wanted.get(hex));
        let file = file.ok_or_else(|| refuse(format!("{path:?} is in no set of its lock")))?;
        if entry.size() != file.size {
            let (size, locked) = (entry.size(), file.size);
            return Err(refuse(format!("{} has {size} bytes; the lock says {locked}", file.path)));
        }
        take(&cache, file, entry, name, report).map_err(|why| refuse(format!("{}: {why}", file.path)))?;
    }
    for (entry, file) in lock.weights.iter().flat_map(|entry| entry.files.iter().map(move |file| (entry, file))) {
        if cache.look(file) != Blob::Verified {
            return Err(refuse(format!("{} is locked, and is not in it (was it cut?)", file.path)));
        }
        super::refuse_pickle(&file.path, &cache.blob(file)).map_err(|why| refuse(format!("{}: {why}", file.path)))?;
        cache.link(entry, file).map_err(|e| refuse(format!("the cache at {}: {e}", cache.root().display())))?;
    }
    Ok(Imported { lock, manifest })
}

fn take(
    cache: &Cache,
    file: &LockedFile,
    from: impl Read,
    name: &str,
    report: &mut dyn FnMut(Progress),
) -> Result<(), String> {
    let disk = |e: io::Error| format!("the cache at {}: {e}", cache.root().display());
    let _held = cache.hold(file, || report(Progress::Waiting { file: &file.path })).map_err(disk)?;
    match cache.look(file) {
        Blob::Verified => return Ok(()),
        Blob::Unverified => cache.discard(file).map_err(disk)?,
        Blob::Missing => {}
    }
    cache.room(file).map_err(disk)?;
    let mut sink = Sink::open(cache, file, name).map_err(disk)?;
    let taken = sink.restart().map_err(|e| Fault::Disk(e.to_string()));
    taken.and_then(|()| sink.copy(from, report)).and_then(|()| sink.finish()).map_err(|fault| {
        // What came of it is not to be gone on with: the next import begins again.
        let _ = Sink::forget(cache, file);
        fault.why()
    })
}

fn text(entry: impl Read) -> io::Result<String> {
    let mut text = String::new();
    entry.take(MAX_TEXT_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_TEXT_BYTES {
        true => Err(io::Error::other(format!("more than {MAX_TEXT_BYTES} bytes"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests;
