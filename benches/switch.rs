//! What changing models costs: two copies of SmolLM2 in the page cache, room for one, asked in turn; and what a killed worker
//! costs until the next has answered. The program as users start it, beside reading the same file in the same run.

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
/// More than one of the two needs, less than both.
const BUDGET_BYTES: u64 = 180_000_000;

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let a = PathBuf::from(output_of(pinion().args(["weights", "pull", "smollm2", "--print-path"])).trim());
    let b = folder.path().join("b.gguf");
    fs::copy(&a, &b).expect("a copy");
    let mut server = serve(folder.path(), [&a, &b]);
    for model in ["a", "b"] {
        one_token(&server, model);
        server.wait_for_log(" loaded ");
    }

    let (mut reads, mut changes, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (model, path) = [("a", &a), ("b", &b)][round % 2];
        reads.push(through_a_buffer(path));
        changes.push(one_token(&server, model));
        loads.push(load_seconds(&mut server));
        let status = server.get("/pinion/status").1;
        let there = status["devices"][0]["models"].as_array().map(Vec::len);
        assert_eq!(there, Some(1), "the other one left: {status}");
    }
    let (read, change, load) = (median(&mut reads), median(&mut changes), median(&mut loads));
    let bytes = fs::metadata(&b).expect("it is there").len();
    println!("a change of models, {bytes} bytes of weights, medians of {ROUNDS}:");
    println!("  reading the file  {:.1} ms", read * 1e3);
    println!("  request to one token, the other model leaving  {:.1} ms", change * 1e3);
    println!("  of it loading  {:.1} ms", load * 1e3);
    println!("  above reading  {:.1} ms, {:.2} times reading", (change - read) * 1e3, change / read);

    let (mut respawns, mut loads) = (Vec::new(), Vec::new());
    for _ in 0..KILLS {
        std::thread::sleep(LIVED_WELL);
        signal(worker_of(&server), libc::SIGKILL);
        respawns.push(one_token(&server, "b"));
        loads.push(load_seconds(&mut server));
    }
    let (respawn, load) = (median(&mut respawns), median(&mut loads));
    println!("a worker killed while idle, medians of {KILLS}:");
    println!("  kill to one token from the next worker  {:.1} ms", respawn * 1e3);
    println!("  of it loading  {:.1} ms; above loading  {:.1} ms", load * 1e3, (respawn - load) * 1e3);
}

fn serve(folder: &Path, weights: [&PathBuf; 2]) -> Server {
    let model = |name: &str, path: &Path| {
        format!("{{ name: {name}, model: llama, path: {}, context_tokens: 512, concurrency: 1 }}", path.display())
    };
    let [a, b] = weights;
    let config = folder.join("cog.yaml");
    let devices = format!("[{{ device: cpu, memory_bytes: {BUDGET_BYTES} }}]");
    let text = format!("native: {{ devices: {devices}, models: [{}, {}] }}\n", model("a", a), model("b", b));
    fs::write(&config, text).expect("written");
    Server::start(&folder.join("data"), &["--config", config.to_str().expect("a path of letters")])
}

/// From the request to its answer: one token, durable.
fn one_token(server: &Server, model: &str) -> f64 {
    let url = format!("{}/v1/models/pinion/{model}/predictions", server.base);
    let body = br#"{"input":{"prompt":"Say OK","max_tokens":1,"temperature":0}}"#;
    let began = Instant::now();
    let (code, answer) = http_bytes("POST", &url, "Prefer: wait\r\nContent-Type: application/json\r\n", body);
    let seconds = began.elapsed().as_secs_f64();
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!((code, answer["status"].as_str()), (201, Some("succeeded")), "{answer}");
    seconds
}

/// As the server's log says.
fn load_seconds(server: &mut Server) -> f64 {
    let line = server.wait_for_log(" loaded ");
    let seconds = line.split("seconds=").nth(1).and_then(|rest| rest.split_whitespace().next());
    seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("no seconds in {line:?}"))
}
