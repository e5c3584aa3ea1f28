//! What tests of real weights need: it is there, or they say loudly that they were skipped; where somebody relies on them,
//! they fail. No test reaches for the network. Knows where things lie; refuses to know models.

use std::io::Write;
use std::path::PathBuf;

use runner::weights::{Lock, cached};

/// Whoever sets one of these has brought everything (`cargo xtask test` does) and wants nothing skipped.
const NOTHING_SKIPPED: [&str; 2] = ["PINION_TEST_ALL", "CI"];

/// Pinned weights, from the cache.
pub fn weights(entry: &crate::Entry, name: &str) -> Option<PathBuf> {
    let lock = Lock::parse(entry.lock).unwrap();
    let found = cached(lock.entry(name).unwrap());
    or_skip(found, &format!("{name} is not in the cache; `pinion weights pull {name}` fetches it"))
}

/// The folder with jfk.wav and clips/: the one that `PINION_RECORDINGS` names, else where `cargo xtask test` puts it.
pub fn recordings() -> Option<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.ancestors().nth(3)?.join("recordings"));
    let found = std::env::var_os("PINION_RECORDINGS").map(PathBuf::from).or_else(beside);
    let missing = "PINION_RECORDINGS names no folder with jfk.wav; models/whisper/golden/recordings.py fetches one";
    or_skip(found.filter(|path| path.join("jfk.wav").is_file()), missing)
}

/// CLIP's vocabulary as OpenAI published it: the file that `PINION_CLIP_VOCABULARY` names.
pub fn clip_vocabulary() -> Option<PathBuf> {
    let found = std::env::var_os("PINION_CLIP_VOCABULARY").map(PathBuf::from);
    let missing = "PINION_CLIP_VOCABULARY names no file; models/sdxl/golden/vocabulary.py fetches it";
    or_skip(found.filter(|path| path.is_file()), missing)
}

/// What is not there fails the test or, said past the harness that hides what passing tests print, ends it early.
fn or_skip<T>(found: Option<T>, missing: &str) -> Option<T> {
    if found.is_none() {
        let relied_on =
            NOTHING_SKIPPED.iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        assert!(relied_on.is_none(), "{missing} ({} is set: nothing may be skipped)", relied_on.unwrap_or(&""));
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {missing}");
    }
    found
}
