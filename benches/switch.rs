//! What changing models costs: two copies of SmolLM2 in the page cache, room for one, asked in turn; and what a killed worker
//! costs until the next has answered. On a machine with a GPU also there, from the files and from host memory. The program as users
//! start it, beside reading the same file in the same run.

#[path = "common/read.rs"]
mod read;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::processes::{signal, worker_of};
use support::{Server, http_bytes, output_of, pinion};

use crate::read::{median, through_a_buffer};

/// Changes behind each median.
const ROUNDS: usize = 20;
/// Kills behind each median.
const KILLS: usize = 5;
/// Between two kills: a worker that lived this long is replaced without a pause.
const LIVED_WELL: Duration = Duration::from_secs(11);
/// Room for copies of both.
const HOST_CACHE_GB: u64 = 1;
/// More than one of the two needs, less than both.
const BUDGET_BYTES: u64 = 180_000_000;

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let a = PathBuf::from(output_of(pinion().args(["weights", "pull", "smollm2", "--print-path"])).trim());
    let b = folder.path().join("b.gguf");
    fs::copy(&a, &b).expect("a copy");
    let weights = [a, b];
    let devices = format!("devices: [{{ device: cpu, memory_bytes: {BUDGET_BYTES} }}],");
    let mut server = serve(&folder.path().join("cpu"), &devices, &weights);
    changes("the processor", &mut server, &weights);

    let (mut respawns, mut loads) = (Vec::new(), Vec::new());
    for _ in 0..KILLS {
        std::thread::sleep(LIVED_WELL);
        signal(worker_of(&server), libc::SIGKILL);
        respawns.push(one_token(&server, "b").0);
        loads.push(load_seconds(&mut server));
    }
    let (respawn, load) = (median(&mut respawns), median(&mut loads));
    println!("a worker killed while idle, medians of {KILLS}:");
    println!("  kill to one token from the next worker  {:.1} ms", respawn * 1e3);
    println!("  of it loading  {:.1} ms; above loading  {:.1} ms", load * 1e3, (respawn - load) * 1e3);

    drop(server);
    let Some((gpu, bytes)) = gpu(folder.path(), &weights) else {
        return println!("no GPU works here: models that come back from host memory are not shown");
    };
    for (from, gigabytes) in [("its files", 0), ("host memory", HOST_CACHE_GB)] {
        let devices = format!("devices: [{{ device: '{gpu}', memory_bytes: {} }}],", bytes * 3 / 2);
        let config = format!("{devices} host_cache_gb: {gigabytes},");
        let mut server = serve(&folder.path().join(from), &config, &weights);
        changes(&format!("{gpu}, each from {from}"), &mut server, &weights);
        let kept = server.get("/pinion/status").1["devices"][0]["host_cache_bytes"].as_u64();
        assert_eq!(kept.is_some_and(|bytes| bytes > 0), gigabytes > 0, "{kept:?} bytes in host memory");
    }
}

/// The two models in turn, with room for one; prints the medians.
fn changes(on: &str, server: &mut Server, weights: &[PathBuf; 2]) {
    let first = ["a", "b"].map(|model| {
        let (_, said) = one_token(server, model);
        server.wait_for_log(" loaded ");
        said
    });
    let (mut reads, mut changes, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (model, path) = (["a", "b"][round % 2], &weights[round % 2]);
        reads.push(through_a_buffer(path));
        let (seconds, said) = one_token(server, model);
        assert_eq!(said, first[round % 2], "it says what it said before it left");
        changes.push(seconds);
        loads.push(load_seconds(server));
        let status = server.get("/pinion/status").1;
        let there = status["devices"][0]["models"].as_array().map(Vec::len);
        assert_eq!(there, Some(1), "the other one left: {status}");
    }
    let (read, change, load) = (median(&mut reads), median(&mut changes), median(&mut loads));
    let bytes = fs::metadata(&weights[1]).expect("it is there").len();
    println!("a change of models on {on}, {bytes} bytes of weights, medians of {ROUNDS}:");
    println!("  reading the file  {:.1} ms", read * 1e3);
    println!("  request to one token, the other model leaving  {:.1} ms", change * 1e3);
    println!("  of it loading  {:.1} ms", load * 1e3);
    println!("  above reading  {:.1} ms, {:.2} times reading", (change - read) * 1e3, change / read);
}

/// The first GPU that works, and what one of the models takes there.
fn gpu(folder: &Path, weights: &[PathBuf; 2]) -> Option<(String, u64)> {
    let server = serve(&folder.join("found"), "", weights);
    one_token(&server, "a");
    let status = server.get("/pinion/status").1;
    let devices = status["devices"].as_array()?.iter();
    let mut held =
        devices.filter_map(|device| Some((device["device"].as_str()?, device["models"][0]["bytes"].as_u64()?)));
    held.find(|(device, _)| device.starts_with("cuda")).map(|(device, bytes)| (device.to_owned(), bytes))
}

/// With further keys of `native`.
fn serve(folder: &Path, native: &str, weights: &[PathBuf; 2]) -> Server {
    let model = |name: &str, path: &Path| {
        format!("{{ name: {name}, model: llama, path: {}, context_tokens: 512, concurrency: 1 }}", path.display())
    };
    let [a, b] = weights;
    fs::create_dir_all(folder).expect("a folder");
    let config = folder.join("cog.yaml");
    let text = format!("native: {{ {native} models: [{}, {}] }}\n", model("a", a), model("b", b));
    fs::write(&config, text).expect("written");
    Server::start(&folder.join("data"), &["--config", config.to_str().expect("a path of letters")])
}

/// From the request to its answer: one token, durable, and the token.
fn one_token(server: &Server, model: &str) -> (f64, Value) {
    let url = format!("{}/v1/models/pinion/{model}/predictions", server.base);
    let body = br#"{"input":{"prompt":"Say OK","max_tokens":1,"temperature":0}}"#;
    let began = Instant::now();
    let (code, answer) = http_bytes("POST", &url, "Prefer: wait\r\nContent-Type: application/json\r\n", body);
    let seconds = began.elapsed().as_secs_f64();
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!((code, answer["status"].as_str()), (201, Some("succeeded")), "{answer}");
    (seconds, answer["output"].clone())
}

/// As the server's log says.
fn load_seconds(server: &mut Server) -> f64 {
    let line = server.wait_for_log(" loaded ");
    let seconds = line.split("seconds=").nth(1).and_then(|rest| rest.split_whitespace().next());
    seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("no seconds in {line:?}"))
}
