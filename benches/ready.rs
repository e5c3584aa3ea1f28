//! From the start of `pinion cog` to READY beside reading the same weights, in turn, in one run, all of it in the page cache;
//! and how long `/health-check` takes to answer meanwhile, in turn with a bare echo of eight bytes that says what the machine itself
//! takes. SmolLM2 and a Llama of 2.5 GB of random weights, each by `path:`.
//!
//! Before each of them as much memory as the weights take is written and given back. A virtual machine whose host takes free memory away
//! (free page reporting) gets it again at 0.5 to 1 GB/s when it is written first, and whoever came behind a pause would be measured with
//! that. In starts right behind it single answers of health came up to a second late, with that host as the likely and not the proven cause:
//! so health is also asked in starts before which nobody has freed memory for a while.

#[path = "common/read.rs"]
mod read;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};
use support::{http, output_of, pinion};

use crate::read::{median, through_a_buffer};

/// Starts behind each median.
const RUNS: usize = 7;
/// Starts that only health is asked in, at least; and so often it is asked, at least.
const STARTS: usize = 5;
const HEALTH_REQUESTS: usize = 1000;
/// Longer than a host takes to have back what was freed.
const TAKEN_BACK: Duration = Duration::from_secs(8);
/// Between two questions: whoever asks without a pause takes the processor from the load.
const PAUSE: Duration = Duration::from_millis(1);
/// A digest is remembered of files that have been as they are for longer than this.
const SETTLED: Duration = Duration::from_secs(3);
const ECHO_BYTES: usize = 8;
const LARGE: &str = "llama-3.2-1b";

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = PathBuf::from(output_of(pinion().args(["weights", "pull", "smollm2", "--print-path"])).trim());
    let large = folder.path().join(LARGE);
    output_of(pinion().args(["weights", "synth", LARGE, "-o"]).arg(&large));
    std::thread::sleep(SETTLED);
    let echo = echo().expect("a port");
    for (name, weights) in [("small", &small), ("large", &large)] {
        let home = measure(folder.path(), name, weights, echo);
        let (mut answers, mut starts) = (Answers::default(), 0);
        while starts < STARTS || answers.health.len() < HEALTH_REQUESTS {
            std::thread::sleep(TAKEN_BACK);
            start(&home, &mut answers, echo);
            starts += 1;
        }
        print(&format!("{starts} more starts, {} s after anybody freed memory", TAKEN_BACK.as_secs()), &mut answers);
    }
}

fn print(when: &str, answers: &mut Answers) {
    println!("  {when}:");
    println!("    health while it loads       {}", latencies(&mut answers.health));
    println!("    a bare echo, asked in turn  {}", latencies(&mut answers.echo));
}

/// How long answers took.
#[derive(Default)]
struct Answers {
    health: Vec<Duration>,
    echo: Vec<Duration>,
}

/// Says what it hears, a connection each.
fn echo() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = [0; ECHO_BYTES];
            // Whoever asks sees that nothing came back.
            let _ = stream.read_exact(&mut bytes).and_then(|()| stream.write_all(&bytes));
        }
    });
    Ok(address)
}

fn ask(echo: SocketAddr) -> Duration {
    let asked = Instant::now();
    let mut stream = TcpStream::connect(echo).expect("it listens");
    stream.write_all(&[7; ECHO_BYTES]).expect("it reads");
    let mut answer = [0; ECHO_BYTES];
    stream.read_exact(&mut answer).expect("it answers");
    asked.elapsed()
}

/// Starts and readings in turn; where the program was started.
fn measure(folder: &Path, name: &str, weights: &Path, echo: SocketAddr) -> PathBuf {
    let home = folder.join(name);
    fs::create_dir(&home).expect("a folder");
    fs::write(home.join("cog.yaml"), format!("native: {{ model: llama, path: {} }}\n", weights.display()))
        .expect("written");
    let files = files(weights);
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).expect("it is there").len()).sum();
    let mut all = Answers::default();
    let first = start(&home, &mut all, echo);
    let (mut read, mut taken, mut huge, mut ready) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut worst = Vec::new();
    while ready.len() < RUNS {
        read.push(files.iter().map(|file| through_a_buffer(file)).sum());
        write_and_give_back(bytes);
        taken.push(timed(|| drop(files.iter().map(|file| fs::read(file).expect("readable")).collect::<Vec<_>>())));
        write_and_give_back(bytes);
        huge.push(files.iter().map(|file| into_huge_pages(file)).sum());
        write_and_give_back(bytes);
        let mut answers = Answers::default();
        let took = start(&home, &mut answers, echo);
        ready.push(took);
        let slowest = [&answers.health, &answers.echo].map(|of| of.iter().max().copied().unwrap_or_default());
        worst.push((took, slowest));
        all.health.append(&mut answers.health);
        all.echo.append(&mut answers.echo);
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
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let each =
        worst.iter().map(|(ready, [health, echo])| format!("{ready:.2} s ({:.0} {:.0})", ms(*health), ms(*echo)));
    println!("  each start (slowest answers, ms: health, echo): {}", each.collect::<Vec<_>>().join(", "));
    println!("  the first start, with the weights' digest still unknown  {first:.3} s");
    print("these starts, memory being freed before each", &mut all);
    home
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
fn start(home: &Path, answers: &mut Answers, echo: SocketAddr) -> f64 {
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
            Some("STARTING") => answers.health.push(asked.elapsed()),
            _ => panic!("{answer}"),
        }
        answers.echo.push(ask(echo));
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
