//! What pulling and importing weights costs beside copying and hashing the same 100 MB, in turn, in one run: from a hub on
//! this machine, from a bundle, and from the cache that has them. All of it ends on the same disk, synced. What the hub itself
//! costs stands beside it: the same bytes received through one buffer and thrown away.

#[path = "../tests/hub.rs"]
mod hub;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runner::weights::{Bundle, Options, Own, declared, folder, import, pin};
use sha2::{Digest, Sha256};

use crate::hub::{COMMIT, Hub};

const BYTES: usize = 100_000_000;
const RUNS: usize = 7;

fn options(cache: &Path, hub: &str) -> Options {
    let (hub_token, hub_cache, weights_dir) = (None, None, None);
    let (cache_dir, hub_endpoint) = (cache.to_owned(), hub.to_owned());
    Options { offline: false, cache_dir, weights_dir, hub_endpoint, hub_token, hub_cache }
}

/// How long it took, and how much of all processors: the second hangs less on what else they do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Took {
    wall: Duration,
    busy: Duration,
}

fn timed(work: impl FnOnce()) -> Took {
    let (began, busy) = (Instant::now(), busy());
    work();
    Took { wall: began.elapsed(), busy: self::busy() - busy }
}

/// Processor time of this process so far, the hub's threads included.
fn busy() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the structure is the system's to fill, and zeroes are valid for it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// As `cp` and `sha256sum` in one: read, hash, write, sync.
fn copy_and_hash(from: &Path, to: &Path) {
    let (mut from, mut to) = (File::open(from).expect("it is there"), File::create(to).expect("it can be made"));
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match from.read(&mut buffer).expect("it can be read") {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                to.write_all(&buffer[..read]).expect("there is room");
            }
        }
    }
    std::hint::black_box(hasher.finalize());
    to.sync_all().expect("it is on the disk");
}

/// From the hub's blob store on one connection, as it sends them.
fn receive(url: &str) {
    let mut head = String::new();
    let (mut answer, mut left) = (ask(url, &mut head), BYTES);
    let place = head.lines().find_map(|line| line.strip_prefix("Location: "));
    if let Some(place) = place.map(str::to_owned) {
        answer = ask(&place, &mut head);
    }
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let read = answer.read(&mut buffer).expect("the hub sends");
        assert!(read > 0, "it ended {left} bytes early: {head}");
        left -= read;
    }
}

/// The answer's head; its body is still to be read.
fn ask(url: &str, head: &mut String) -> BufReader<TcpStream> {
    let (host, path) = url.trim_start_matches("http://").split_once('/').expect("an address with a path");
    let mut stream = TcpStream::connect(host).expect("the hub listens");
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("the hub reads");
    let mut answer = BufReader::new(stream);
    head.clear();
    while answer.read_line(head).expect("the hub answers") > 2 {}
    answer
}

fn main() {
    let home = tempfile::tempdir().expect("a temporary folder can be made");
    let content: Vec<u8> = (0..BYTES as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8).collect();
    let source = home.path().join("source");
    std::fs::write(&source, &content).expect("there is room");
    let hub = Hub::start(BTreeMap::from([("w.safetensors".to_owned(), Arc::new(content))]), |_| {});
    let set =
        declared("weights: [{ name: w, source: { uri: hf://org/repo@main } }]").expect("it is in order").remove(0);
    let first = options(&home.path().join("first"), &hub.url);
    let entry = pin(&set, home.path(), None, &first, &mut |_| {}).expect("the hub answers");
    let own = Own { entry: entry.clone(), base: home.path().to_owned() };
    own.ensure(&first, &mut |_| {}).expect("the hub answers");
    let bundle = home.path().join("bundle");
    let packed = Bundle { sets: vec![(entry.clone(), folder(&entry, &first))], manifest: None };
    packed.write(&bundle, &mut |_| {}).expect("there is room");

    let file = format!("{}/org/repo/resolve/{COMMIT}/w.safetensors", hub.url);
    let mut times: [Vec<Took>; 5] = Default::default();
    for run in 0..RUNS {
        let at = home.path().join(format!("run-{run}"));
        std::fs::create_dir(&at).expect("there is room");
        let (pulled, imported) =
            (options(&at.join("pulled"), &hub.url), options(&at.join("imported"), "http://[::1]:9"));
        times[0].push(timed(|| copy_and_hash(&source, &at.join("copy"))));
        times[1].push(timed(|| drop(own.ensure(&pulled, &mut |_| {}).expect("the hub answers"))));
        times[2].push(timed(|| {
            import(File::open(&bundle).expect("it is there"), "bundle", &imported, &mut |_| {}).expect("it is whole");
        }));
        times[3].push(timed(|| drop(own.ensure(&pulled, &mut |_| {}).expect("it is here"))));
        times[4].push(timed(|| receive(&file)));
        std::fs::remove_dir_all(&at).expect("it is ours");
    }
    // The first pull, those that were timed, and as many that were thrown away.
    let parts = (hub.asked().len() - RUNS) / (RUNS + 1);
    let [copied, pulled, imported, here, received] = times.map(|mut times| {
        times.sort_unstable();
        times[RUNS / 2]
    });
    println!("{BYTES} bytes, median of {RUNS}, in turn: time, and that of all processors");
    let say = |what: &str, took: Took| {
        let ratio = copied.wall.as_secs_f64() / took.wall.as_secs_f64();
        let [wall, busy] = [took.wall, took.busy].map(|time| time.as_secs_f64() * 1e3);
        println!("{what:26} {wall:7.1} ms {busy:7.1} ms, {ratio:.2} of the speed of copying and hashing");
    };
    say("copied and hashed", copied);
    say(&format!("pulled ({parts} ranges)"), pulled);
    say("imported from a bundle", imported);
    say("received and thrown away", received);
    println!("here and verified before   {:7.3} ms", here.wall.as_secs_f64() * 1e3);
}
