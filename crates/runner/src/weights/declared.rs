//! The sets of weights that a cog.yaml of somebody's own declares, in Cog's key `weights:`, and whether a lock still fits.
//!
//! ```yaml
//! weights:
//!   - name: tiny
//!     target: /weights/tiny             # where stock Cog mounts it
//!     source:                           # one, or a list
//!       uri: hf://org/repo@main         # a branch, a tag or a commit; or file://FOLDER_OR_FILE, a path, https://FILE
//!       include: ["*.json", "unet/**"]  # left out: everything
//!       exclude: ["*.bin"]
//! ```
//! Reads text; touches neither network nor disk.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use prediction::PredictError;
use serde::Deserialize;
use url::Url;

use super::lock::{Lock, Origin};

/// One set, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// An absolute path.
    pub target: String,
    pub sources: Vec<Asked>,
}

/// One source of a set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    pub uri: String,
    #[serde(default)]
    pub include: Vec<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// What a URI means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Uri {
    Hub { repo: String, revision: String },
    Https(Url),
    Path(PathBuf),
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    weights: Option<Vec<Written>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default)]
    target: Option<String>,
    source: OneOrMore,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(Asked),
    More(Vec<Asked>),
}

/// The sets that a cog.yaml declares; none is an empty list.
pub fn declared(manifest: &str) -> Result<Vec<Declared>, PredictError> {
    let refuse = |why: String| PredictError::Operator(format!("cog.yaml: weights: {why}"));
    let manifest: Manifest = serde_norway::from_str(manifest).map_err(|e| refuse(e.to_string()))?;
    let mut names = BTreeSet::new();
    let read = |written: Written| {
        let Written { name, target, source } = written;
        if !is_name(&name) {
            return Err(refuse(format!("name {name:?}: small letters and digits, with `.`, `_` and `-` between")));
        }
        if !names.insert(name.clone()) {
            return Err(refuse(format!("the name {name} stands there twice")));
        }
        let target = target.unwrap_or_else(|| format!("/weights/{name}"));
        if !target.starts_with('/') {
            return Err(refuse(format!("{name}: target {target:?} is not an absolute path")));
        }
        let sources = match source {
            OneOrMore::One(source) => vec![source],
            OneOrMore::More(sources) => sources,
        };
        if sources.is_empty() {
            return Err(refuse(format!("{name}: source is an empty list")));
        }
        for source in &sources {
            uri(&source.uri).map_err(|why| refuse(format!("{name}: {why}")))?;
        }
        Ok(Declared { name, target, sources })
    };
    manifest.weights.unwrap_or_default().into_iter().map(read).collect()
}

pub(super) fn uri(text: &str) -> Result<Uri, String> {
    if let Some(rest) = text.strip_prefix("hf://") {
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let part = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain)
        };
        // A branch may have slashes.
        let is_revision = revision.split('/').all(part);
        return match repo.split('/').count() == 2 && repo.split('/').all(part) && is_revision {
            true => Ok(Uri::Hub { repo: repo.into(), revision: revision.into() }),
            false => Err(format!("uri {text:?}: hf://org/repo@revision is expected")),
        };
    }
    if text.starts_with("https://") || text.starts_with("http://") {
        return Url::parse(text).map(Uri::Https).map_err(|e| format!("uri {text:?}: {e}"));
    }
    match text.strip_prefix("file://").unwrap_or(text) {
        "" => Err(format!("uri {text:?} names nothing")),
        path if path.contains("://") => Err(format!("uri {text:?}: hf://, file://, https:// and paths are known")),
        path => Ok(Uri::Path(path.into())),
    }
}

impl Uri {
    /// Against the folder of the cog.yaml.
    pub(super) fn at(&self, base: &Path) -> Option<PathBuf> {
        match self {
            Self::Path(path) => Some(base.join(path)),
            _ => None,
        }
    }
}

impl Asked {
    pub(super) fn wants(&self, path: &str) -> bool {
        wants(&self.include, &self.exclude, path)
    }

    pub(super) fn is(&self, origin: &Origin) -> bool {
        self.uri == origin.uri && self.include == origin.include && self.exclude == origin.exclude
    }
}

fn wants(include: &[String], exclude: &[String], path: &str) -> bool {
    let any = |patterns: &[String]| patterns.iter().any(|pattern| fits(pattern, path));
    (include.is_empty() || any(include)) && !any(exclude)
}

/// `*` and `?` stay within one name, `**` does not. A pattern without `/` is about the file's own name.
fn fits(pattern: &str, path: &str) -> bool {
    let subject = match pattern.contains('/') {
        true => path,
        false => path.rsplit('/').next().unwrap_or(path),
    };
    glob(pattern.as_bytes(), subject.as_bytes())
}

/// Goes back to the last star only, and to the last double star: no pattern takes more than the product of the lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // Where the pattern goes on behind a star, and up to where the star reaches in the text so far.
    let mut star: Option<(usize, usize)> = None;
    // The same for `**`, or, true, for `**/`, which ends at the beginning of a name.
    let mut double: Option<(usize, usize, bool)> = None;
    loop {
        match (pattern.get(at), text.get(read)) {
            (Some(b'*'), _) if pattern.get(at + 1) == Some(&b'*') => {
                let whole = pattern.get(at + 2) == Some(&b'/');
                at += 2 + usize::from(whole);
                (double, star) = (Some((at, read, whole)), None);
            }
            (Some(b'*'), _) => {
                at += 1;
                star = Some((at, read));
            }
            (Some(b'?'), Some(&c)) if c != b'/' => (at, read) = (at + 1, read + 1),
            (Some(p), Some(c)) if p == c && *p != b'?' => (at, read) = (at + 1, read + 1),
            (None, None) => return true,
            _ => {
                let longer =
                    star.filter(|&(_, to)| text.get(to).is_some_and(|&c| c != b'/')).map(|(at, to)| (at, to + 1));
                let deeper = double.and_then(|(at, to, whole)| match whole {
                    true => text[to..].iter().position(|&c| c == b'/').map(|slash| (at, to + slash + 1, whole)),
                    false => (to < text.len()).then_some((at, to + 1, whole)),
                });
                match (longer, deeper) {
                    (Some((behind, to)), _) => (at, read, star) = (behind, to, longer),
                    (None, Some((behind, to, _))) => (at, read, star, double) = (behind, to, None, deeper),
                    (None, None) => return false,
                }
            }
        }
    }
}

/// `[a-z0-9]+([._-][a-z0-9]+)*`, as Cog has it.
fn is_name(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.split(['.', '_', '-']).all(part)
}

/// How a lock and what is declared differ, in Cog's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    Pending { name: String },
    Orphaned { name: String },
    ConfigChanged { name: String, what: String },
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending { name } => write!(f, "weights {name}: pending: cog.yaml declares it, weights.lock lacks it"),
            Self::Orphaned { name } => {
                write!(f, "weights {name}: orphaned: weights.lock has it, cog.yaml does not declare it")
            }
            Self::ConfigChanged { name, what } => write!(f, "weights {name}: config-changed: {what}"),
        }
    }
}

pub fn drift(declared: &[Declared], lock: &Lock) -> Vec<Drift> {
    let mut found = Vec::new();
    for Declared { name, target, sources } in declared {
        let Some(entry) = lock.weights.iter().find(|entry| entry.name == *name) else {
            found.push(Drift::Pending { name: name.clone() });
            continue;
        };
        let mut changed = |what: String| found.push(Drift::ConfigChanged { name: name.clone(), what });
        if *target != entry.target {
            changed(format!("target is {target:?} in cog.yaml and {:?} in weights.lock", entry.target));
        }
        if sources.len() != entry.sources.len() || !sources.iter().zip(&entry.sources).all(|(asked, was)| asked.is(was))
        {
            let asked: Vec<&str> = sources.iter().map(|source| source.uri.as_str()).collect();
            let was: Vec<&str> = entry.sources.iter().map(|source| source.uri.as_str()).collect();
            let what = match asked == was {
                true => "include or exclude are others".to_owned(),
                false => {
                    format!("the source is {} in cog.yaml and {} in weights.lock", asked.join(", "), was.join(", "))
                }
            };
            changed(what);
        }
    }
    let is_declared = |name: &String| declared.iter().any(|set| set.name == *name);
    let orphans = lock.weights.iter().map(|entry| &entry.name).filter(|name| !is_declared(name));
    found.extend(orphans.map(|name| Drift::Orphaned { name: name.clone() }));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Entry;

    #[test]
    fn sets_are_read_in_cogs_own_words() {
        let text = "build: {}\nweights:\n  - name: tiny\n    target: /src/w\n    source: { uri: hf://org/repo@v1/x, include: ['*.json'] }\n  - name: two\n    source: [{ uri: file://./w }, { uri: other }]\n";
        let sets = declared(text).unwrap();
        assert_eq!((sets[0].name.as_str(), sets[0].target.as_str()), ("tiny", "/src/w"));
        assert_eq!(sets[1].target, "/weights/two");
        assert_eq!(uri(&sets[0].sources[0].uri), Ok(Uri::Hub { repo: "org/repo".into(), revision: "v1/x".into() }));
        assert_eq!(uri("file://./w").unwrap().at(Path::new("/a")), Some(PathBuf::from("/a/./w")));
        assert_eq!(uri("/abs").unwrap().at(Path::new("/a")), Some(PathBuf::from("/abs")));
        assert_eq!(uri("hf://org/repo"), Ok(Uri::Hub { repo: "org/repo".into(), revision: "main".into() }));
        assert!(declared("native: {}\n").unwrap().is_empty());
    }

    #[test]
    fn what_is_written_wrongly_is_refused_by_name() {
        for (set, expected) in [
            ("{ name: 'A b', source: { uri: x } }", "name \"A b\""),
            ("{ name: a, target: rel, source: { uri: x } }", "target \"rel\" is not an absolute path"),
            ("{ name: a, source: [] }", "source is an empty list"),
            ("{ name: a, source: { uri: 'hf://x' } }", "hf://org/repo@revision is expected"),
            ("{ name: a, source: { uri: 'hf://../x' } }", "hf://org/repo@revision is expected"),
            ("{ name: a, source: { uri: 's3://x/y' } }", "hf://, file://, https:// and paths are known"),
            ("{ name: a, source: { uri: x } }, { name: a, source: { uri: x } }", "the name a stands there twice"),
            ("{ name: a, source: { uri: x }, sauce: 1 }", "unknown field `sauce`"),
        ] {
            let said = declared(&format!("weights: [{set}]\n")).unwrap_err();
            assert!(said.text().contains(expected), "{set}: {said}");
        }
    }

    #[test]
    fn patterns_choose_files() {
        for (pattern, path, expected) in [
            ("*.json", "config.json", true),
            ("*.json", "unet/config.json", true),
            ("*.json", "config.jsonx", false),
            ("unet/*", "unet/model.safetensors", true),
            ("unet/*", "unet/a/model", false),
            ("unet/**", "unet/a/model", true),
            ("**/model", "model", true),
            ("**/model", "a/b/model", true),
            ("a/**/b*", "a/x/y/bcd", true),
            ("a/**/b*", "a/x/y/cbd", false),
            ("model-?.bin", "model-1.bin", true),
            ("a/?", "a//", false),
            ("*a*b", "xaxxb", true),
            ("", "x", false),
        ] {
            assert_eq!(fits(pattern, path), expected, "{pattern} {path}");
        }
        let asked = Asked { uri: String::new(), include: vec!["*.json".into()], exclude: vec!["b.*".into()] };
        assert!(asked.wants("a.json") && !asked.wants("b.json") && !asked.wants("a.bin"));
    }

    #[test]
    fn every_drift_has_its_name() {
        let set = |name: &str, uri: &str, include: &[&str]| Declared {
            name: name.into(),
            target: format!("/weights/{name}"),
            sources: vec![Asked {
                uri: uri.into(),
                include: include.iter().map(|&i| i.into()).collect(),
                exclude: vec![],
            }],
        };
        let locked = |name: &str, uri: &str| Entry {
            name: name.into(),
            target: format!("/weights/{name}"),
            sources: vec![Origin { uri: uri.into(), fingerprint: String::new(), include: vec![], exclude: vec![] }],
            ..Entry::default()
        };
        let lock =
            Lock::new(vec![locked("same", "a"), locked("moved", "a"), locked("other", "a"), locked("gone", "a")]);
        let asked = [set("same", "a", &[]), set("moved", "b", &[]), set("other", "a", &["x"]), set("new", "a", &[])];
        let said: Vec<String> = drift(&asked, &lock).iter().map(Drift::to_string).collect();
        assert_eq!(said.len(), 4, "{said:#?}");
        assert!(
            said[0].contains("moved: config-changed: the source is b in cog.yaml and a in weights.lock"),
            "{said:#?}"
        );
        assert!(said[1].contains("other: config-changed: include or exclude are others"), "{said:#?}");
        assert!(said[2].contains("new: pending"), "{said:#?}");
        assert!(said[3].contains("gone: orphaned"), "{said:#?}");
        assert!(drift(&asked[..1], &Lock::new(vec![locked("same", "a")])).is_empty());
    }
}
