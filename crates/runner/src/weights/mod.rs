//! Pinned weights: what they are (`lock`), where they may come from (`mirror`), how they get here (`fetch`, `http`,
//! `ranges`, `pip`, `bundle`), where they lie (`cache`), and whether they still are what they were (`verify`, `known`).
//! Sets of somebody's own: what a cog.yaml declares (`declared`), how that becomes a lock (`pin`, `hub`) and a folder that
//! a model is loaded from (`own`).
//!
//! The digest in the lock decides: a source is only a place to try. Everything here blocks, and belongs on a thread of
//! its own, not on an async runtime's. Opening the files is the business of `gguf` and `safetensors`.

mod bundle;
mod cache;
mod declared;
mod fetch;
mod http;
mod hub;
mod known;
pub mod lock;
mod mirror;
mod own;
mod pickle;
mod pin;
mod pip;
mod ranges;
mod sink;
mod token;
mod verify;

use std::path::{Path, PathBuf};

pub use bundle::{Bundle, Imported, import};
pub use declared::{Declared, Drift, declared, drift};
pub use fetch::ensure;
pub use lock::{Entry, Lock, LockedFile};
pub use mirror::{Place, Source, mirrors};
pub use own::{Own, bring};
pub(crate) use pickle::{begins_like_one as begins_like_pickle, is_pickle};
pub use pin::pin;
pub use token::Token;
pub use verify::{Checked, lock_known, lock_path, names, pickles, verify, verify_with};

/// How weights are fetched and where they are kept.
#[derive(Clone)]
pub struct Options {
    /// Use what is here; never the network.
    pub offline: bool,
    pub cache_dir: PathBuf,
    /// A folder that is looked into, by file name, before any mirror.
    pub weights_dir: Option<PathBuf>,
    /// The hub that `hub:` mirrors mean.
    pub hub_endpoint: String,
    /// Sent to the hub, and to no other host.
    pub hub_token: Option<Token>,
    /// Where the hub's own tools keep what they fetched: looked into before the hub is asked.
    pub hub_cache: Option<PathBuf>,
}

impl Options {
    /// As the environment says: `PINION_CACHE` (else `$XDG_CACHE_HOME/pinion`, else `~/.cache/pinion`),
    /// `PINION_WEIGHTS_DIR`, `PINION_OFFLINE`; and as for the hub's own tools `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HOME`, `HF_HUB_CACHE`.
    pub fn from_env() -> Self {
        Self::from(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn from(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let text = |name: &str| variable(name)?.into_string().ok();
        let under = |name: &str, rest: &str| Some(PathBuf::from(variable(name)?).join(rest));
        let cache_dir = variable("PINION_CACHE")
            .map(PathBuf::from)
            .or_else(|| under("XDG_CACHE_HOME", "pinion"))
            .or_else(|| under("HOME", ".cache/pinion"))
            .unwrap_or_else(|| PathBuf::from(".pinion-cache"));
        Self {
            offline: text("PINION_OFFLINE").is_some_and(|value| value != "0"),
            cache_dir,
            weights_dir: variable("PINION_WEIGHTS_DIR").map(PathBuf::from),
            hub_endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            hub_token: Token::find(&variable),
            hub_cache: variable("HF_HUB_CACHE")
                .map(PathBuf::from)
                .or_else(|| Some(token::hub_home(&variable)?.join("hub"))),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::from_env()
    }
}

/// `name` is the file's path in its set, `content` where its bytes lie.
fn refuse_pickle(name: &str, content: &Path) -> Result<(), String> {
    use std::io::Read;
    if !pickle::may_be_one(Path::new(name)) {
        return Ok(());
    }
    let mut first = Vec::new();
    let read = std::fs::File::open(content).and_then(|file| file.take(pickle::MARK_BYTES).read_to_end(&mut first));
    read.map_err(|e| e.to_string())?;
    match pickle::begins_like_one(&first) {
        true => Err("is a Python pickle, which runs code when it is loaded; it is not used".to_owned()),
        false => Ok(()),
    }
}

/// Why weights that are declared and not pinned cannot be used, and what to do.
pub fn unpinned(name: &str) -> prediction::PredictError {
    prediction::PredictError::Operator(format!(
        "weights {name} are not pinned yet: run `pinion weights lock {name}` on a machine that reaches the hub, or name a \
         folder with `path:` in cog.yaml or `--weights DIR`"
    ))
}

/// Where the cache lies, as the environment names it.
pub fn cache_folder() -> PathBuf {
    Options::from_env().cache_dir
}

/// What happens while weights are fetched or checked. The caller draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Another process is fetching this file; it is waited for.
    Waiting { file: &'a str },
    /// A source is about to be asked.
    Trying { file: &'a str, source: &'a str },
    /// `done` of `total` bytes of this file were read from the source (`cache`: they are being checked).
    Bytes { file: &'a str, source: &'a str, done: u64, total: u64 },
    /// The source did not do; the next one is tried.
    Failed { file: &'a str, source: &'a str, why: &'a str },
}

/// Progress as lines for people: who is asked, what did not do, and every tenth of a file.
pub fn lines(report: &mut dyn FnMut(&str)) -> impl FnMut(Progress) {
    let mut tenths = 0;
    move |progress| match progress {
        Progress::Waiting { file } => report(&format!("{file}: another process is fetching it")),
        Progress::Trying { file, source } => report(&format!("{file}: asking {source}")),
        Progress::Failed { file, source, why } => report(&format!("{file}: {source}: {why}")),
        Progress::Bytes { file, source, done, total } => {
            let now = done * 10 / total.max(1);
            if now != tenths {
                tenths = now;
                report(&format!("{file}: {} of {} MB from {source}", done / 1_000_000, total / 1_000_000));
            }
        }
    }
}

/// Where a set's files are read from, once they are there.
pub fn folder(entry: &Entry, options: &Options) -> PathBuf {
    cache::Cache::at(&options.cache_dir).set(entry)
}

/// The folder with the entry's files, if they are all in the cache (as the environment names it) and were verified.
pub fn cached(entry: &Entry) -> Option<PathBuf> {
    entry.check().ok()?;
    cache::Cache::at(&cache_folder()).ready(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &'static [(&str, &str)]) -> Options {
        Options::from(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_lies_where_the_environment_says() {
        let all = [("PINION_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(Options::from(|n| all.iter().find(|v| v.0 == n).map(|v| v.1.into())).cache_dir, PathBuf::from("/a"));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]).cache_dir, PathBuf::from("/b/pinion"));
        assert_eq!(with(&[("HOME", "/c")]).cache_dir, PathBuf::from("/c/.cache/pinion"));
        assert_eq!(with(&[]).cache_dir, PathBuf::from(".pinion-cache"));
    }

    #[test]
    fn offline_is_off_unless_it_is_switched_on() {
        assert!(!with(&[]).offline && !with(&[("PINION_OFFLINE", "0")]).offline);
        assert!(with(&[("PINION_OFFLINE", "1")]).offline);
    }
}
