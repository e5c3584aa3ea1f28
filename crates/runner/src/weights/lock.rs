//! `weights.lock`, in Cog's format (JSON, version 1): which files a model's weights are, to the byte.
//!
//! Knows nothing of where files come from or lie. A lock is refused unless it agrees with itself: safe and distinct
//! paths, proper digests, and a set digest that is the digest of its files.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use prediction::PredictError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub const VERSION: u32 = 1;
const MAX_PATH_BYTES: usize = 1_024;

/// The whole file. Keys that are not listed here are ignored when reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lock {
    pub version: u32,
    /// Cog's word for how it wraps files into layers. Ours have none, and the key is then left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope_format: Option<String>,
    #[serde(default)]
    pub weights: Vec<Entry>,
}

/// One set of weights. Layers and the manifest digest belong to Cog's registry artifact: kept when they are there, left
/// out when they are not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub name: String,
    /// Where Cog mounts the set in a container.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub sources: Vec<Origin>,
    /// For people; nothing depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    pub set_digest: String,
    /// Bytes of all files together.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_compressed: Option<u64>,
    pub files: Vec<LockedFile>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub layers: Vec<Layer>,
}

/// Where a set came from when it was locked: a record, not an instruction (that is a mirror).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub uri: String,
    #[serde(default)]
    pub fingerprint: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub include: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub exclude: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedFile {
    /// Relative, `/` between its parts.
    pub path: String,
    pub size: u64,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    pub digest: String,
    pub media_type: String,
    pub size: u64,
    pub size_uncompressed: u64,
}

impl LockedFile {
    /// The digest without its algorithm.
    pub fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }
}

impl Entry {
    pub fn set_hex(&self) -> &str {
        self.set_digest.strip_prefix("sha256:").unwrap_or(&self.set_digest)
    }

    /// Does the entry agree with itself? Whoever builds one by hand asks this before trusting its paths.
    pub fn check(&self) -> Result<(), PredictError> {
        self.faults().map_err(|why| PredictError::Operator(format!("weights {}: {why}", self.name)))
    }

    fn faults(&self) -> Result<(), String> {
        if self.files.is_empty() {
            return Err("it has no files".into());
        }
        let mut seen = BTreeSet::new();
        let mut total = 0u64;
        for file in &self.files {
            check_path(&file.path)?;
            check_digest(&format!("digest of {}", file.path), &file.digest)?;
            if !seen.insert(file.path.as_str()) {
                return Err(format!("path {} appears twice", file.path));
            }
            let sum = total.checked_add(file.size);
            total = sum.ok_or_else(|| format!("size of {} is {}: the sum overflows", file.path, file.size))?;
        }
        for path in &seen {
            let inside =
                Path::new(path).ancestors().skip(1).filter_map(Path::to_str).find(|above| seen.contains(above));
            if let Some(above) = inside {
                return Err(format!("path {above} is a file and, in {path}, a folder"));
            }
        }
        if total != self.size {
            return Err(format!("size is {}, but its files have {total} bytes", self.size));
        }
        check_digest("setDigest", &self.set_digest)?;
        let computed = set_digest(&self.files);
        if computed != self.set_digest {
            return Err(format!(
                "setDigest is {}, but its files give {computed}: the lock was edited",
                self.set_digest
            ));
        }
        Ok(())
    }
}

impl Lock {
    pub fn new(weights: Vec<Entry>) -> Self {
        Self { version: VERSION, envelope_format: None, weights }
    }

    /// Reads and checks a lock; what is refused is named by entry, field and value.
    pub fn parse(text: &str) -> Result<Self, PredictError> {
        let refuse = |why: String| PredictError::Operator(format!("weights.lock: {why}"));
        let lock: Self = serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?;
        if lock.version != VERSION {
            return Err(refuse(format!("version is {}; {VERSION} is read", lock.version)));
        }
        let mut names = BTreeSet::new();
        for entry in &lock.weights {
            entry.faults().map_err(|why| refuse(format!("weights {}: {why}", entry.name)))?;
            if !names.insert(entry.name.as_str()) {
                return Err(refuse(format!("the name {} appears twice", entry.name)));
            }
        }
        Ok(lock)
    }

    pub fn entry(&self, name: &str) -> Result<&Entry, PredictError> {
        self.weights.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.weights.iter().map(|entry| entry.name.as_str()).collect();
            PredictError::Operator(format!("weights.lock has no weights {name}; it has {}", names.join(", ")))
        })
    }

    /// The file's text, as it is kept in a repository.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers always serialise")
    }
}

/// The digest of a set: that of its lines `<hex>  <path>`, the LINES sorted, a newline between them and none at the end.
pub fn set_digest(files: &[LockedFile]) -> String {
    let mut lines: Vec<String> = files.iter().map(|file| format!("{}  {}", file.hex(), file.path)).collect();
    lines.sort_unstable();
    format!("sha256:{}", hex::encode(Sha256::digest(lines.join("\n"))))
}

fn check_digest(field: &str, digest: &str) -> Result<(), String> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Ok(());
    }
    Err(format!("{field} is {digest:?}, expected sha256: and 64 lower-case hexadecimal digits"))
}

/// A path that stays inside its folder, spelt the one way it can be spelt.
fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() || path.len() > MAX_PATH_BYTES {
        return Err(format!("path {path:?} has {} bytes; 1 to {MAX_PATH_BYTES}", path.len()));
    }
    if path.bytes().any(|b| b.is_ascii_control() || b == b'\\') {
        return Err(format!("path {path:?} has a control character or a backslash"));
    }
    if path.starts_with('/') {
        return Err(format!("path {path:?} is absolute; paths are relative to the set's folder"));
    }
    let plain = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    let parsed = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if plain && parsed {
        Ok(())
    } else {
        Err(format!("path {path:?} leaves the set's folder or is not in its plain form"))
    }
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn file(path: &str, hex: &str, size: u64) -> LockedFile {
        LockedFile { path: path.into(), size, digest: format!("sha256:{hex}"), layer: None }
    }

    fn entry(files: Vec<LockedFile>) -> Entry {
        Entry {
            name: "tiny".into(),
            target: String::new(),
            sources: vec![],
            imported_at: None,
            digest: None,
            set_digest: set_digest(&files),
            size: files.iter().map(|file| file.size).sum(),
            size_compressed: None,
            files,
            layers: vec![],
        }
    }

    #[test]
    fn the_set_digest_sorts_whole_lines_and_so_by_digest() {
        // By path, `a` would be first; by line it is second. The value is that of
        // printf 'aaaa…  b\nbbbb…  a' | sha256sum
        let files = [file("a", B, 1), file("b", A, 1)];
        let by_hand = hex::encode(Sha256::digest(format!("{A}  b\n{B}  a")));
        assert_eq!(set_digest(&files), format!("sha256:{by_hand}"));
        let turned = [files[1].clone(), files[0].clone()];
        assert_eq!(set_digest(&turned), set_digest(&files));
    }

    #[test]
    fn a_lock_survives_being_written_and_read() {
        let lock = Lock::new(vec![entry(vec![file("unet/model.safetensors", A, 7), file("config.json", B, 2)])]);
        assert_eq!(Lock::parse(&lock.to_json()).unwrap(), lock);
    }

    #[test]
    fn a_lock_written_by_cog_is_read_with_its_layers_and_kept() {
        let digest = set_digest(&[file("config.json", A, 5)]);
        let text = format!(
            r#"{{"version": 1, "envelopeFormat": "sha256:{B}", "weights": [{{"name": "z-image", "target": "/src/weights",
            "sources": [{{"uri": "hf://org/repo@main", "fingerprint": "commit:0123", "include": ["*.json"], "exclude": null}}],
            "importedAt": "2026-05-01T00:00:00Z", "digest": "sha256:{B}", "setDigest": "{digest}", "size": 5,
            "sizeCompressed": 4, "files": [{{"path": "config.json", "size": 5, "digest": "sha256:{A}", "layer": "sha256:{B}"}}],
            "layers": [{{"digest": "sha256:{B}", "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 4,
            "sizeUncompressed": 9}}], "aKeyOfTomorrow": 1}}]}}"#
        );
        let lock = Lock::parse(&text).unwrap();
        let weights = lock.entry("z-image").unwrap();
        assert_eq!(weights.layers[0].size_uncompressed, 9);
        assert_eq!(weights.sources[0].include, ["*.json"]);
        assert_eq!(Lock::parse(&lock.to_json()).unwrap(), lock);
        assert!(lock.entry("other").unwrap_err().text().contains("no weights other; it has z-image"));
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/.", "a/", "", "a\\b", "a\nb", ".."] {
            let said = entry(vec![file(path, A, 1)]).check().unwrap_err();
            assert!(said.text().contains(&format!("path {path:?}")), "{path:?}: {said}");
        }
        assert!(entry(vec![file("unet/..model", A, 1)]).check().is_ok());
    }

    #[test]
    fn a_lock_that_does_not_agree_with_itself_is_refused() {
        let refuse = |change: &dyn Fn(&mut Entry), expected: &str| {
            let mut entry = entry(vec![file("a", A, 1), file("b", B, 2)]);
            change(&mut entry);
            let said = Lock::parse(&Lock::new(vec![entry]).to_json()).unwrap_err();
            assert!(said.text().starts_with("weights.lock: weights tiny: "), "{said}");
            assert!(said.text().contains(expected), "{said}\n  should contain: {expected}");
        };
        refuse(&|e| e.files[0].digest = format!("sha256:{}c", &A[1..]), "the lock was edited");
        refuse(&|e| e.files[0].path = "c".into(), "the lock was edited");
        refuse(&|e| e.files[1] = e.files[0].clone(), "path a appears twice");
        refuse(&|e| e.files[1].path = "a/b".into(), "path a is a file and, in a/b, a folder");
        refuse(&|e| e.size = 4, "size is 4, but its files have 3 bytes");
        refuse(&|e| e.files[0].size = u64::MAX, "the sum overflows");
        refuse(&|e| e.files[0].digest = "md5:1".into(), "digest of a is \"md5:1\"");
        refuse(&|e| e.files[0].digest = format!("sha256:{}", A.to_uppercase()), "lower-case");
        refuse(&|e| e.set_digest = "sha256:zz".into(), "setDigest is \"sha256:zz\"");
        refuse(&|e| e.files.clear(), "it has no files");
    }

    #[test]
    fn what_is_not_a_lock_is_refused_with_the_place() {
        for (text, expected) in [
            ("", "weights.lock: EOF"),
            ("[]", "weights.lock: invalid length 0"),
            (r#"{"version": 2, "weights": []}"#, "version is 2; 1 is read"),
            (r#"{"version": 1, "weights": [{"name": "x"}]}"#, "missing field `setDigest` at line 1"),
        ] {
            let said = Lock::parse(text).unwrap_err();
            assert!(said.text().contains(expected), "{said}");
        }
        let twice = Lock::new(vec![entry(vec![file("a", A, 1)]), entry(vec![file("a", A, 1)])]);
        assert!(Lock::parse(&twice.to_json()).unwrap_err().text().contains("the name tiny appears twice"));
    }
}
