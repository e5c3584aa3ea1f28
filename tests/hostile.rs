//! Files that lie: the fuzzing corpus and mutations of it, on stable and on every run of the tests. How many mutations is
//! `PINION_MUTATIONS` per format; docs/reliability.md has the figures of longer runs.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use crate::memory::peak_bytes;

#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Of each format on a usual run: some seconds.
const MUTATIONS: u64 = 400;
/// What reading a file may allocate: so many times its length, and this much besides.
const BYTES_PER_BYTE: usize = 64;
const BYTES_BESIDES: usize = 4 << 20;

/// Numbers that sit at the edges of what a header may claim.
const EDGES: [u64; 12] = [0, 1, 2, 7, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

/// The same numbers on every machine: splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], chance: &mut Chance) {
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len());
        let length = 1 + chance.below(16.min(bytes.len()));
        let end = (at + length).min(bytes.len());
        match chance.below(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
            1 if !bytes.is_empty() => bytes[at] = chance.next() as u8,
            2 => {
                let edge = EDGES[chance.below(EDGES.len())].wrapping_add(bytes.len() as u64 * (chance.next() & 1));
                let width = [1, 2, 4, 8][chance.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let piece = bytes[at..end].to_vec();
                let to = chance.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            6 if !other.is_empty() => {
                let from = chance.below(other.len());
                let until = (from + 1 + chance.below(64)).min(other.len());
                bytes.splice(at..end, other[from..until].iter().copied());
            }
            // A number in a text.
            7 => {
                if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                    let digits = EDGES[chance.below(EDGES.len())].to_string().into_bytes();
                    bytes.splice(at + digit..=at + digit, digits);
                }
            }
            _ => bytes.extend_from_slice(&chance.next().to_le_bytes()[..chance.below(9).min(8)]),
        }
    }
}

fn corpus(format: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(format);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 3, "{} has {} files", folder.display(), paths.len());
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Runs `target` over the corpus of its format and over mutations; what panics or takes too much is kept and named.
fn withstands(format: &str, slowness: u64, target: fn(&[u8])) {
    let corpus = corpus(format);
    let usual = (MUTATIONS / slowness).max(1);
    let count = std::env::var("PINION_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(usual);
    let begun = Cell::new(0);
    let run = |name: &dyn std::fmt::Display, bytes: &[u8]| {
        begun.set(begun.get() + 1);
        let outcome = std::panic::catch_unwind(|| peak_bytes(|| target(bytes)));
        let limit = BYTES_PER_BYTE * bytes.len() + BYTES_BESIDES;
        let why = match outcome {
            Ok(peak) if peak <= limit => return,
            Ok(peak) => format!("took {peak} bytes for {}; at most {limit}", bytes.len()),
            Err(_) => "panicked".to_owned(),
        };
        let kept = std::env::temp_dir().join(format!("pinion-hostile-{format}-{}", begun.get()));
        fs::write(&kept, bytes).unwrap();
        panic!("{format}: {name} {why}; the bytes are in {}", kept.display());
    };
    for (path, bytes) in &corpus {
        run(&path.display(), bytes);
    }
    for number in 0..count {
        let mut chance = Chance(number.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut bytes = corpus[chance.below(corpus.len())].1.clone();
        let other = &corpus[chance.below(corpus.len())].1;
        mutate(&mut bytes, other, &mut chance);
        run(&format_args!("mutation {number}"), &bytes);
    }
    eprintln!("{format}: {} files and {count} mutations", corpus.len());
}

#[test]
fn safetensors_that_lie_are_refused() {
    withstands("safetensors", 1, targets::safetensors);
}

#[test]
fn ggufs_that_lie_are_refused() {
    withstands("gguf", 1, targets::gguf);
}

#[test]
fn ctranslate2_files_that_lie_are_refused() {
    withstands("ct2", 1, targets::ct2);
}

#[test]
fn locks_and_manifests_that_lie_are_refused() {
    withstands("lock", 1, targets::lock);
}

#[test]
fn bundles_that_lie_are_refused() {
    withstands("bundle", 4, targets::bundle);
}

/// Each loads a model around it.
#[test]
fn tokenizers_that_lie_are_refused() {
    withstands("tokenizer", 10, targets::tokenizer);
}

/// Some are merged into a small net.
#[test]
fn loras_that_lie_are_refused() {
    // The net that they come to is not the file's doing.
    targets::lora(&[]);
    withstands("lora", 10, targets::lora);
}

/// Some are merged too.
#[test]
fn trainers_archives_that_lie_are_refused() {
    targets::trained(&[]);
    withstands("trained", 10, targets::trained);
}

/// The test of the tests: what it is there to find is found.
#[test]
fn a_panic_and_a_claim_that_is_believed_are_found() {
    let greedy: fn(&[u8]) = |_| drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 30)));
    let fearful: fn(&[u8]) = |bytes| assert!(bytes.is_empty(), "as meant");
    for (target, expected) in [(greedy, "took 1073741824 bytes"), (fearful, "panicked")] {
        let found = std::panic::catch_unwind(|| withstands("lock", 1, target)).unwrap_err();
        let said = found.downcast_ref::<String>().unwrap();
        assert!(said.contains(expected), "{said}");
        let kept = said.rsplit(' ').next().unwrap();
        fs::remove_file(kept).unwrap();
    }
}
