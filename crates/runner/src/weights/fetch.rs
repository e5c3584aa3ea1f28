//! Gets a set of weights here, whatever it takes: the cache, a local folder, then each mirror in the order given.
//!
//! Knows the order and when to try again; what a source speaks is in `http` and `pip`, what a cache is in `cache`.

use std::fs::File;
use std::path::{Path, PathBuf};

use prediction::PredictError;

use super::cache::{self, Blob, Cache};
use super::http::Net;
use super::lock::{Entry, LockedFile};
use super::mirror::{Place, Source};
use super::sink::{Fault, Sink};
use super::{Options, Progress, hub, pip, refuse_pickle};

/// A source that is cut again and again is given up, even while every attempt gets a little further.
const MAX_ATTEMPTS_PER_SOURCE: u32 = 5;

/// The folder that holds the entry's files, every one of them verified. Blocks while it fetches what is missing.
pub fn ensure(
    entry: &Entry,
    mirrors: &[Source],
    options: &Options,
    report: &mut dyn FnMut(Progress),
) -> Result<PathBuf, PredictError> {
    entry.check()?;
    let cache = Cache::at(&options.cache_dir);
    if let Some(folder) = cache.ready(entry) {
        return Ok(folder);
    }
    let mut net = Net::new(options);
    for file in &entry.files {
        Fetch { entry, file, cache: &cache, options }.bring(mirrors, &mut net, report)?;
    }
    Ok(cache.set(entry))
}

struct Fetch<'a> {
    entry: &'a Entry,
    file: &'a LockedFile,
    cache: &'a Cache,
    options: &'a Options,
}

impl Fetch<'_> {
    fn bring(&self, mirrors: &[Source], net: &mut Net, report: &mut dyn FnMut(Progress)) -> Result<(), PredictError> {
        let path = self.file.path.as_str();
        let _held =
            self.cache.hold(self.file, || report(Progress::Waiting { file: path })).map_err(|e| self.disk(e))?;
        match self.cache.look(self.file) {
            Blob::Verified => {}
            Blob::Missing => self.download(mirrors, net, report)?,
            Blob::Unverified => {
                if !self.recheck(report)? {
                    self.download(mirrors, net, report)?;
                }
            }
        }
        if let Err(why) = refuse_pickle(path, &self.cache.blob(self.file)) {
            return Err(PredictError::Operator(format!("weights {}: {path}: {why}", self.entry.name)));
        }
        self.cache.link(self.entry, self.file).map_err(|e| self.disk(e))
    }

    /// Something changed the blob, or it came without a stamp. Right bytes get a stamp; others are thrown away.
    fn recheck(&self, report: &mut dyn FnMut(Progress)) -> Result<bool, PredictError> {
        let (file, total) = (self.file.path.as_str(), self.file.size);
        let blob = self.cache.blob(self.file);
        let hashed = cache::hash(&blob, |done| report(Progress::Bytes { file, source: "cache", done, total }));
        match hashed {
            Ok((hex, size)) if hex == self.file.hex() && size == total => {
                self.cache.stamp(self.file).map_err(|e| self.disk(e))?;
                return Ok(true);
            }
            Ok((hex, _)) => {
                let why = format!("was altered: expected sha256 {}, got {hex}; it is thrown away", self.file.hex());
                tracing::info!("{file}: the copy in the cache {why}");
                report(Progress::Failed { file, source: "cache", why: &why });
            }
            Err(e) => tracing::warn!("{file}: the copy in the cache cannot be read: {e}"),
        }
        self.cache.discard(self.file).map_err(|e| self.disk(e))?;
        Ok(false)
    }

    fn download(
        &self,
        mirrors: &[Source],
        net: &mut Net,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), PredictError> {
        let mut failures = Vec::new();
        self.cache.room(self.file).map_err(|e| self.disk(e))?;
        for source in self.sources(mirrors) {
            let name = source.to_string();
            let file = self.file.path.as_str();
            if self.options.offline && !source.is_local() {
                continue;
            }
            report(Progress::Trying { file, source: &name });
            match self.insist(&source, &name, net, report) {
                Ok(()) => return Ok(()),
                Err(Fault::Disk(why)) => return Err(self.disk(std::io::Error::other(why))),
                Err(fault) => {
                    let why = fault.why();
                    // Whoever waits is told by `report`.
                    tracing::info!("{file}: {name}: {why}");
                    report(Progress::Failed { file, source: &name, why: &why });
                    failures.push(format!("{name}: {why}"));
                }
            }
        }
        Err(self.nowhere(&failures))
    }

    fn sources(&self, mirrors: &[Source]) -> Vec<Source> {
        let folder = self.options.weights_dir.as_ref();
        let local = folder.map(|folder| Source { place: Place::Path(folder.clone()), only: None });
        let listed = mirrors.iter().filter(|source| source.serves(self.entry, self.file));
        let listed = listed.flat_map(|source| [self.kept_by_the_hubs_tools(source), Some(source.clone())]);
        local.into_iter().chain(listed.flatten()).collect()
    }

    /// What the hub's own tools have fetched already need not be fetched again.
    fn kept_by_the_hubs_tools(&self, source: &Source) -> Option<Source> {
        let Place::Hub { repo, commit, file } = &source.place else { return None };
        let folder = self.options.hub_cache.as_ref()?;
        let path = hub::kept(folder, repo, commit, file.as_deref().unwrap_or(&self.file.path))?;
        Some(Source { place: Place::Path(path), only: None })
    }

    /// Asks one source until it has delivered, or has shown that it will not.
    fn insist(
        &self,
        source: &Source,
        name: &str,
        net: &mut Net,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), Fault> {
        let disk = |e: std::io::Error| Fault::Disk(e.to_string());
        for attempt in 1.. {
            let mut sink = Sink::open(self.cache, self.file, name).map_err(disk)?;
            let before = sink.done();
            let inherited = sink.inherited();
            let read = if before == self.file.size { Ok(()) } else { self.read(source, &mut sink, net, report) };
            // A source that ignored what was there and began again has not inherited anything.
            let blameless = inherited > 0 && sink.inherited() > 0;
            let (further, empty) = (sink.done() > before, sink.done() == 0);
            match read.and_then(|()| sink.finish()) {
                Ok(()) => return Ok(()),
                Err(Fault::Wrong(why)) => {
                    Sink::forget(self.cache, self.file).map_err(disk)?;
                    if !blameless {
                        return Err(Fault::Wrong(why));
                    }
                    tracing::info!(
                        "{}: what an earlier attempt left was wrong; {name} is read from the start",
                        self.file.path
                    );
                }
                Err(Fault::Cut(why)) if further && attempt < MAX_ATTEMPTS_PER_SOURCE => {
                    tracing::info!("{}: {name}: {why}; going on from there", self.file.path);
                }
                Err(fault) => {
                    if empty {
                        Sink::forget(self.cache, self.file).map_err(disk)?;
                    }
                    return Err(fault);
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    fn read(
        &self,
        source: &Source,
        sink: &mut Sink,
        net: &mut Net,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), Fault> {
        match &source.place {
            Place::Hub { repo, commit, file } => {
                net.hub(repo, commit, file.as_deref().unwrap_or(&self.file.path), sink, report)
            }
            Place::Https(url) => net.https(url, sink, report),
            Place::Path(path) => copy(path, sink, report),
            Place::Pip { requirement, inner } => pip::download(requirement, inner, self.cache, sink, report),
        }
    }

    fn disk(&self, e: std::io::Error) -> PredictError {
        let Self { entry, file, .. } = self;
        let root = self.cache.root().display();
        PredictError::Operator(format!("weights {}: {}: the cache at {root}: {e}", entry.name, file.path))
    }

    fn nowhere(&self, failures: &[String]) -> PredictError {
        let Self { entry, file, .. } = self;
        let what = format!("weights {}: {} ({} bytes, {})", entry.name, file.path, file.size, file.digest);
        let tried: String = failures.iter().map(|failure| format!("\n  {failure}")).collect();
        let root = self.cache.root().display();
        let why = if self.options.offline {
            format!(
                "is not in the cache at {root}, and the network may not be used. Fetch it with `pinion weights pull {}` \
                 without offline mode, or put the file into the folder that PINION_WEIGHTS_DIR names{tried}",
                entry.name
            )
        } else if failures.is_empty() {
            format!(
                "is not in the cache at {root}, and no mirror lists it; put it into the folder that PINION_WEIGHTS_DIR names"
            )
        } else {
            format!("could not be fetched from any source:{tried}")
        };
        PredictError::Operator(format!("{what} {why}"))
    }
}

/// From a local file, or from a folder that holds the file under its path in the set, or under its bare name.
fn copy(path: &Path, sink: &mut Sink, report: &mut dyn FnMut(Progress)) -> Result<(), Fault> {
    let wanted = Path::new(&sink.file().path);
    let inside = [Some(wanted), wanted.file_name().map(Path::new)].into_iter().flatten().map(|name| path.join(name));
    let from = if path.is_dir() { inside.into_iter().find(|path| path.is_file()) } else { Some(path.to_owned()) };
    let refuse = |why: String| Fault::Refused(why);
    let from = from.ok_or_else(|| refuse(format!("the folder has no {}", wanted.display())))?;
    let file = File::open(&from).map_err(|e| refuse(format!("{}: {e}", from.display())))?;
    let size = file.metadata().map_err(|e| refuse(e.to_string()))?.len();
    if size != sink.file().size {
        return Err(refuse(format!("{} has {size} bytes; the lock says {}", from.display(), sink.file().size)));
    }
    sink.restart().map_err(|e| refuse(e.to_string()))?;
    sink.copy(file, report)
}

#[cfg(test)]
mod tests;
