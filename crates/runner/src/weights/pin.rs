//! From a declared set to an entry of the lock: every source asked what it holds, every file with its size and digest.
//!
//! Knows folders, the hub and single files behind https; refuses pickles, and two sources that both have a path.

use std::fs::File;
use std::path::Path;

use prediction::{PredictError, Timestamp};

use super::cache::{self, Cache};
use super::declared::{Asked, Declared, Uri, uri};
use super::http::{Address, Net};
use super::lock::{Entry, LockedFile, Origin, set_digest};
use super::{Options, Progress, hub, verify};

/// What a source holds, and what says that it has not changed.
struct Held {
    files: Vec<LockedFile>,
    fingerprint: String,
}

/// The entry for a declared set as its sources are now. `base` is the folder of the cog.yaml. An entry that says the same
/// as `before` keeps its time.
pub fn pin(
    declared: &Declared,
    base: &Path,
    before: Option<&Entry>,
    options: &Options,
    report: &mut dyn FnMut(Progress),
) -> Result<Entry, PredictError> {
    let refuse = |why: String| PredictError::Operator(format!("weights {}: {why}", declared.name));
    let mut net = Net::new(options);
    let (mut files, mut sources) = (Vec::<LockedFile>::new(), Vec::new());
    for asked in &declared.sources {
        let held =
            hold(asked, base, &mut net, options, report).map_err(|why| refuse(format!("{}: {why}", asked.uri)))?;
        for file in held.files {
            if files.iter().any(|other| other.path == file.path) {
                return Err(refuse(format!("{}: another source has {} too", asked.uri, file.path)));
            }
            files.push(file);
        }
        let Asked { uri, include, exclude } = asked.clone();
        sources.push(Origin { uri, fingerprint: held.fingerprint, include, exclude });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let entry = Entry {
        name: declared.name.clone(),
        target: declared.target.clone(),
        sources,
        imported_at: Some(Timestamp::now().rfc3339()),
        set_digest: set_digest(&files),
        size: files.iter().map(|file| file.size).sum(),
        files,
        ..Entry::default()
    };
    entry.check()?;
    let timeless = |entry: &Entry| Entry { imported_at: None, ..entry.clone() };
    Ok(match before.filter(|before| timeless(before) == timeless(&entry)) {
        Some(before) => before.clone(),
        None => entry,
    })
}

fn hold(
    asked: &Asked,
    base: &Path,
    net: &mut Net,
    options: &Options,
    report: &mut dyn FnMut(Progress),
) -> Result<Held, String> {
    match uri(&asked.uri)? {
        Uri::Path(path) => in_folder(asked, &base.join(path), report),
        Uri::Https(_) | Uri::Hub { .. } if options.offline => Err("the network may not be used".into()),
        Uri::Hub { repo, revision } => at_hub(asked, &repo, &revision, net, report),
        Uri::Https(url) => {
            let name = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().to_owned();
            if name.is_empty() {
                return Err("the address names no file".into());
            }
            behind(&Address { url, repo: None, token: None }, name, net, options, report)
        }
    }
}

fn in_folder(asked: &Asked, path: &Path, report: &mut dyn FnMut(Progress)) -> Result<Held, String> {
    let hash = &mut |at: &Path, name: &str, total: u64| {
        cache::hash(at, |done| report(Progress::Bytes { file: name, source: "folder", done, total }))
    };
    let files = verify::files(path, &|name| asked.wants(name), hash).map_err(|e| e.text().to_owned())?;
    let fingerprint = set_digest(&files);
    Ok(Held { files, fingerprint })
}

fn at_hub(
    asked: &Asked,
    repo: &str,
    revision: &str,
    net: &mut Net,
    report: &mut dyn FnMut(Progress),
) -> Result<Held, String> {
    let commit = hub::commit(net, repo, revision).map_err(|fault| fault.why())?;
    let listed = hub::list(net, repo, &commit).map_err(|fault| fault.why())?;
    let wanted = |path: &str| asked.wants(path) && !path.split('/').any(|part| part.starts_with('.'));
    let mut files = Vec::new();
    for file in listed.into_iter().filter(|file| wanted(&file.path)) {
        let path = file.path.as_str();
        report(Progress::Trying { file: path, source: "hub" });
        if hub::is_pickle(net, repo, &commit, path).map_err(|fault| fault.why())? {
            return Err(verify::a_pickle(path));
        }
        let (hex, size) = match &file.digest {
            Some(hex) => (hex.clone(), file.size),
            None => hub::digest(net, repo, &commit, &file).map_err(|fault| fault.why())?,
        };
        files.push(LockedFile { path: file.path, size, digest: format!("sha256:{hex}"), layer: None });
    }
    match files.is_empty() {
        true => Err(format!("no file of {repo}@{commit} fits include and exclude")),
        false => Ok(Held { files, fingerprint: format!("commit:{commit}") }),
    }
}

/// One file behind an address: nobody says its digest, so it is fetched for it, and stays in the cache.
fn behind(
    address: &Address,
    name: String,
    net: &mut Net,
    options: &Options,
    report: &mut dyn FnMut(Progress),
) -> Result<Held, String> {
    let cache = Cache::at(&options.cache_dir);
    let disk = |e: std::io::Error| format!("the cache at {}: {e}", cache.root().display());
    let scratch = cache.scratch().map_err(disk)?;
    let path = scratch.path().join(&name);
    let mut file = File::options().create_new(true).read(true).write(true).open(&path).map_err(disk)?;
    let tag = net.save(address, &mut file, &name, report).map_err(|fault| fault.why())?;
    if crate::weights::is_pickle(&path).map_err(disk)? {
        return Err(verify::a_pickle(&name));
    }
    let (hex, size) = cache::hash(&path, |_| {}).map_err(disk)?;
    let locked = LockedFile { path: name, size, digest: format!("sha256:{hex}"), layer: None };
    let _held = cache.hold(&locked, || {}).map_err(disk)?;
    std::fs::rename(&path, cache.partial(&locked)).and_then(|()| cache.keep(&locked, &file)).map_err(disk)?;
    let fingerprint = tag.map_or_else(|| format!("sha256:{hex}"), |tag| format!("etag:{tag}"));
    Ok(Held { files: vec![locked], fingerprint })
}
