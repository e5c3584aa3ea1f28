//! From the start of `pinion cog` to READY beside reading the same weights, in turn, in one run, all of it in the page cache;
//! and how long `/health-check` takes to answer meanwhile. SmolLM2 and a Llama of 2.5 GB of random weights, each by `path:`.
//!
//! Before each of them as much memory as the weights take is written and given back. A virtual machine whose host takes free memory away
//! (free page reporting) gets it again at 0.5 to 1 GB/s when it is written first, and whoever came behind a pause would be measured with
//! that; so would what the processor answers meanwhile, which stands still until the host has found a page.

#[path = "common/read.rs"]
mod read;

use std::fs::{self, File};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};
use support::{http, output_of, pinion};

use crate::read::{median, through_a_buffer};

/// Starts behind each median.
const RUNS: usize = 7;
/// Asked at least so often while the large one loads.
const HEALTH_REQUESTS: usize = 1000;
/// Between two questions: whoever asks without a pause takes the processor from the load.
const PAUSE: Duration = Duration::from_millis(1);
/// A digest is remembered of files that have been as they are for longer than this.
const SETTLED: Duration = Duration::from_secs(3);
const LARGE: &str = "llama-3.2-1b";

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = PathBuf::from(output_of(pinion().args(["weights", "pull", "smollm2", "--print-path"])).trim());
    let large = folder.path().join(LARGE);
    output_of(pinion().args(["weights", "synth", LARGE, "-o"]).arg(&large));
    std::thread::sleep(SETTLED);
    let mut health = measure(folder.path(), "small", &small, 0);
    println!("  health while it loads: {}", latencies(&mut health));
    let mut health = measure(folder.path(), "large", &large, HEALTH_REQUESTS);
    println!("  health while it loads: {}", latencies(&mut health));
}

/// Starts and readings in turn; what health took while the model was loaded, at least so many times.
fn measure(folder: &Path, name: &str, weights: &Path, requests: usize) -> Vec<Duration> {
    let home = folder.join(name);
    fs::create_dir(&home).expect("a folder");
    fs::write(home.join("cog.yaml"), format!("native: {{ model: llama, path: {} }}\n", weights.display()))
        .expect("written");
    let files = files(weights);
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).expect("it is there").len()).sum();
    let mut health = Vec::new();
    let first = start(&home, &mut health);
    let (mut read, mut taken, mut huge, mut ready) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut worst = Vec::new();
    while ready.len() < RUNS || health.len() < requests {
        read.push(files.iter().map(|file| through_a_buffer(file)).sum());
        write_and_give_back(bytes);
        taken.push(timed(|| drop(files.iter().map(|file| fs::read(file).expect("readable")).collect::<Vec<_>>())));
        write_and_give_back(bytes);
        huge.push(files.iter().map(|file| into_huge_pages(file)).sum());
        write_and_give_back(bytes);
        let mut answers = Vec::new();
        ready.push(start(&home, &mut answers));
        worst.push((ready[ready.len() - 1], answers.iter().max().copied().unwrap_or_default()));
        health.append(&mut answers);
    }
    worst.sort_by(|a, b| a.0.total_cmp(&b.0));
    let runs = ready.len();
    let (read, taken, huge, ready) = (median(&mut read), median(&mut taken), median(&mut huge), median(&mut ready));
    println!("{name}: {bytes} bytes, medians of {runs}");
    println!("  reading through one buffer  {read:.3} s");
    println!("  reading into memory         {taken:.3} s, as `fs::read` does");
    println!("  reading into huge pages     {huge:.3} s");
    println!(
        "  start to READY              {ready:.3} s: {:.2}, {:.2} and {:.2} times, {:.3}, {:.3} and {:.3} s above",
        ready / read,
        ready / taken,
        ready / huge,
        ready - read,
        ready - taken,
        ready - huge
    );
    let each = worst.iter().map(|(ready, worst)| format!("{ready:.2} s {:.1} ms", worst.as_secs_f64() * 1e3));
    println!("  each start and its slowest answer of health: {}", each.collect::<Vec<_>>().join(", "));
    println!("  the first start, with the weights' digest still unknown  {first:.3} s");
    health
}

fn files(weights: &Path) -> Vec<PathBuf> {
    match weights.is_dir() {
        false => vec![weights.to_owned()],
        true => fs::read_dir(weights).expect("a folder").map(|entry| entry.expect("readable").path()).collect(),
    }
}

/// Memory in huge pages, zeros that nobody has touched.
struct Huge(MmapMut);

impl Huge {
    fn new(bytes: usize) -> Self {
        let map = MmapMut::map_anon(bytes).expect("so much memory");
        #[cfg(target_os = "linux")]
        map.advise(Advice::HugePage).expect("the kernel knows of huge pages");
        Self(map)
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Seconds of every byte into memory of its own that costs as little as memory can.
fn into_huge_pages(path: &Path) -> f64 {
    let began = Instant::now();
    let mut file = File::open(path).expect("it is there");
    let length = file.metadata().expect("it is there").len() as usize;
    let mut room = Huge::new(length);
    file.read_exact(room.bytes()).expect("readable");
    drop(room);
    began.elapsed().as_secs_f64()
}

/// So much memory is written and given back, in huge pages and on both threads: the system has it at hand then.
fn write_and_give_back(bytes: u64) {
    let mut room = Huge::new(bytes as usize);
    let half = room.bytes().len() / 2;
    let (first, second) = room.bytes().split_at_mut(half);
    std::thread::scope(|scope| {
        for part in [first, second] {
            scope.spawn(|| part.fill(1));
        }
    });
}

/// From the start of the process to READY; what each answer took until then.
fn start(home: &Path, health: &mut Vec<Duration>) -> f64 {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let began = Instant::now();
    let mut command = pinion();
    command.args(["cog", "--host", "127.0.0.1"]).current_dir(home).env("PORT", port.to_string());
    command.env("PINION_CACHE", home.join("cache")).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Killed(command.spawn().expect("the program starts"));
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(PAUSE);
    }
    let url = format!("http://127.0.0.1:{port}/health-check");
    loop {
        let asked = Instant::now();
        let (_, answer) = http("GET", &url, "");
        match answer["status"].as_str() {
            Some("READY") => return began.elapsed().as_secs_f64(),
            Some("STARTING") => health.push(asked.elapsed()),
            _ => panic!("{answer}"),
        }
        std::thread::sleep(PAUSE);
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

fn latencies(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)].as_secs_f64() * 1e3;
    format!(
        "median {:.2} ms, p99.9 {:.2} ms, at most {:.2} ms of {} requests",
        at(0.5),
        at(0.999),
        at(1.0),
        times.len()
    )
}
