//! `pinion cog` when something goes wrong: setups and workers that fail, and SIGTERM while something runs; and what it does
//! beyond the real server. Upload targets are tested beside the API, callers who leave and the other states beside the real
//! server.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::container::{Container, Start};
use super::wire::{self, Receiver, Request};
use crate::processes::{is_gone, signal, until, worker_of_pid};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const STREAM: (&str, &str) = ("Accept", "text/event-stream");
const ASYNC: (&str, &str) = ("Prefer", "respond-async");

/// Of the compatible surface: health answers within it, whatever else goes on.
const HEALTH_LIMIT: Duration = Duration::from_millis(250);

fn kill_worker(container: &Container) {
    let worker = worker_of_pid(container.pid());
    signal(worker, libc::SIGKILL);
    until("its end", || is_gone(worker).then_some(()));
}

fn ready(start: Start) -> Container {
    let container = Container::ours(start);
    container.wait_for("READY");
    container
}

fn async_held(container: &Container, id: &str, more: &Value) {
    let mut body = json!({ "id": id, "input": { "text": "ab", "pieces": 2, "hold": true } });
    body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    assert_eq!(container.post("/predictions", &[ASYNC], &body), (202, json!({ "id": id, "status": "starting" })));
}

#[test]
fn a_setup_that_fails_is_shown_with_its_log_and_the_server_stays() {
    let container = Container::ours(Start { load_fails: Some("torn weights"), ..Start::default() });
    container.wait_for("SETUP_FAILED");
    let setup = &container.get("/health-check")["setup"];
    assert_eq!((&setup["status"], &setup["logs"]), (&json!("failed"), &json!("warming up\ntorn weights\n")));
    assert!(setup["completed_at"].is_string(), "{setup}");
    assert_eq!(container.post("/predictions", &[], &json!({ "input": { "text": "x" } })).0, 503);
    assert_eq!(wire::open(&container.base, &Request::new("GET", "/readyz")).code, 503);
    assert_eq!(container.stop().code(), Some(0));
}

#[test]
fn weights_at_a_path_are_read_once_for_their_digest_and_the_setup_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("weights");
    crate::support::output_of(crate::support::pinion().args(["weights", "synth", "tiny", "-o"]).arg(&weights));
    // As of an hour ago: of a file that may still be changing nothing is remembered.
    for file in std::fs::read_dir(&weights).unwrap() {
        let file = std::fs::File::options().write(true).open(file.unwrap().path()).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    }
    let yaml = format!("native: {{ model: llama, path: {} }}\n", weights.display());
    let cache = folder.path().join("cache").display().to_string();
    let env = [("PINION_CACHE", cache.as_str())];
    let logs = || {
        let container = Container::ours(Start { yaml: Some(&yaml), env: &env, ..Start::default() });
        container.wait_for("READY");
        container.get("/health-check")["setup"]["logs"].to_string()
    };
    let (first, second) = (logs(), logs());
    assert!(first.contains("read once for their digest") && first.contains("digest is known after"), "{first}");
    assert!(second.contains("of weights ready in") && !second.contains("digest"), "{second}");
}

#[test]
fn a_file_that_runs_python_is_refused_before_anything_listens() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cog.yaml"), "predict: predict.py:Predictor\n").unwrap();
    let refused = crate::support::pinion().current_dir(folder.path()).arg("cog").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("predict.py:Predictor is Python code") && said.contains("native: { model: llama"), "{said}");
}

#[test]
fn a_device_that_is_not_there_fails_the_setup_and_may_be_done_without() {
    let yaml = "build: { gpu: true }\nnative: { model: echo, synth: nothing }\n";
    let no_gpu = [("CUDA_VISIBLE_DEVICES", "")];
    let start = Start { yaml: Some(yaml), env: &no_gpu, ..Start::default() };
    let container = Container::ours(start);
    container.wait_for("SETUP_FAILED");
    let logs = container.get("/health-check")["setup"]["logs"].to_string();
    assert!(logs.contains("device cuda does not work here"), "{logs}");
    ready(Start { words: &["--allow-cpu"], ..start });
}

#[test]
fn a_worker_that_dies_in_setup_is_replaced_and_the_third_is_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    let container = Container::ours(Start { load_waits_for: Some(&there), ..Start::default() });
    for _ in 0..3 {
        assert_eq!(container.status(), "STARTING");
        kill_worker(&container);
    }
    container.wait_for("SETUP_FAILED");
    let logs = container.get("/health-check")["setup"]["logs"].to_string();
    assert!(logs.contains("3 workers in a row did not live to load the model"), "{logs}");
}

#[test]
fn a_worker_that_dies_in_a_prediction_fails_it_once_and_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    std::fs::write(&there, "").unwrap();
    let receiver = Receiver::open();
    let container = ready(Start { load_waits_for: Some(&there), ..Start::default() });
    async_held(&container, "a", &json!({ "webhook": receiver.url, "webhook_events_filter": ["completed"] }));
    std::fs::remove_file(&there).unwrap();
    kill_worker(&container);
    let told = receiver.next().json();
    assert_eq!((&told["status"], &told["error"]), (&json!("failed"), &json!("Worker crashed")), "{told}");
    // It is replaced, and until that has loaded the model nothing is taken.
    container.wait_for("STARTING");
    assert_eq!(container.post("/predictions", &[], &json!({ "input": { "text": "x" } })).0, 503);
    std::fs::write(&there, "").unwrap();
    container.wait_for("READY");
    assert_eq!(container.post("/predictions", &[], &json!({ "input": { "text": "x" } })).1["status"], "succeeded");
    // Three that do not live to load it are the end.
    std::fs::remove_file(&there).unwrap();
    (0..4).for_each(|_| kill_worker(&container));
    container.wait_for("DEFUNCT");
    assert_eq!(container.post("/predictions", &[], &json!({ "input": { "text": "x" } })).0, 503);
    assert_eq!(container.stop().code(), Some(0));
}

#[test]
fn a_model_that_breaks_is_loaded_again() {
    let container = ready(Start::default());
    for how in ["crash", "panic"] {
        let (code, broken) =
            container.post("/predictions", &[], &json!({ "input": { "text": "x", how: "on purpose" } }));
        assert_eq!((code, &broken["status"]), (200, &json!("failed")), "{broken}");
        assert!(broken["error"].as_str().unwrap_or_default().contains("on purpose"), "{broken}");
        container.wait_for("READY");
    }
    assert_eq!(container.post("/predictions", &[], &json!({ "input": { "text": "x" } })).1["status"], "succeeded");
}

#[test]
fn sigterm_lets_an_async_prediction_end_and_tells_its_receiver() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    let (receiver, container) = (Receiver::open(), ready(Start::default()));
    let body = json!({
        "input": { "text": "x", "until": there }, "webhook": receiver.url, "webhook_events_filter": ["completed"],
    });
    assert_eq!(container.post("/predictions", &[ASYNC], &body).0, 202);
    container.term();
    until("new connections are refused", || (!container.listens()).then_some(()));
    std::fs::write(&there, "").unwrap();
    assert_eq!(receiver.next().json()["status"], "succeeded");
    assert_eq!(container.exit().code(), Some(0));
}

#[test]
fn sigterm_lets_a_stream_end() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    let container = ready(Start::default());
    let mut stream =
        container.open("POST", "/predictions", &[JSON, STREAM], &json!({ "input": { "text": "x", "until": there } }));
    stream.until("\"index\":0");
    container.term();
    until("new connections are refused", || (!container.listens()).then_some(()));
    std::fs::write(&there, "").unwrap();
    assert!(stream.rest().contains("\"status\":\"succeeded\""));
    assert_eq!(container.exit().code(), Some(0));
}

#[test]
fn sigterm_ends_a_setup_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let never = folder.path().join("never");
    let container = Container::ours(Start { load_waits_for: Some(&never), ..Start::default() });
    container.wait_for("STARTING");
    let worker = worker_of_pid(container.pid());
    assert_eq!(container.stop().code(), Some(0));
    until("its end", || is_gone(worker).then_some(()));
}

#[test]
fn an_explicit_shutdown_is_awaited_when_asked_for() {
    let container = ready(Start { words: &["--await-explicit-shutdown", "true"], ..Start::default() });
    container.term();
    async_held(&container, "a", &json!({}));
    assert_eq!(container.post("/predictions/a/cancel", &[], &json!({})).0, 200);
    container.wait_for("READY");
    assert_eq!(container.post("/shutdown", &[], &json!({})), (200, json!({})));
    assert_eq!(container.exit().code(), Some(0));
}

#[test]
fn health_answers_at_once_from_the_start_and_while_weights_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let never = folder.path().join("never");
    let container = Container::ours(Start { load_waits_for: Some(&never), ..Start::default() });
    for _ in 0..50 {
        let asked = Instant::now();
        assert_eq!(container.status(), "STARTING");
        assert!(asked.elapsed() < HEALTH_LIMIT, "{:?}", asked.elapsed());
    }
}

#[test]
fn extras_are_there_when_asked_for() {
    let container = ready(Start { words: &["--keep", "60", "--queue"], ..Start::default() });
    async_held(&container, "first", &json!({}));
    // Waits for the slot in place of a 409.
    let body = json!({ "id": "second", "input": { "text": "x" } });
    assert_eq!(container.post("/predictions", &[ASYNC], &body).0, 202);
    assert_eq!(container.get("/predictions/second")["status"], "starting");
    assert_eq!(container.status(), "BUSY");
    assert_eq!(container.post("/predictions/first/cancel", &[], &json!({})).0, 200);
    until("the second's end", || (container.get("/predictions/second")["status"] == "succeeded").then_some(()));
    assert_eq!(container.get("/predictions/first")["status"], "canceled");
    assert_eq!(wire::open(&container.base, &Request::new("GET", "/predictions/third")).code, 404);
    let metrics = wire::open(&container.base, &Request::new("GET", "/metrics")).rest();
    assert!(metrics.contains("pinion_cog_predictions_total{outcome=\"succeeded\"} 1"), "{metrics}");
    assert_eq!(wire::open(&container.base, &Request::new("GET", "/readyz")).code, 200);
}

#[test]
fn slots_and_environment_are_what_the_file_says_and_the_environment_overrides() {
    let yaml = "concurrency: { max: 2 }\nenvironment: [COG_STREAM_HISTORY_CAPACITY=0]\n\
                native: { model: echo, synth: nothing }\n";
    let two = ready(Start { yaml: Some(yaml), ..Start::default() });
    async_held(&two, "a", &json!({}));
    assert_eq!(two.status(), "READY", "one of two slots");
    async_held(&two, "b", &json!({}));
    assert_eq!(two.status(), "BUSY");
    assert_eq!(two.post("/predictions", &[], &json!({ "input": { "text": "x" } })).0, 409);
    // Nothing is said again: the capacity is 0.
    let mut late = two.open("PUT", "/predictions/a", &[JSON, STREAM], &json!({}));
    assert_eq!(two.post("/predictions/a/cancel", &[], &json!({})).0, 200);
    assert!(late.rest().starts_with("event: completed\n"));
    let one = ready(Start { yaml: Some(yaml), env: &[("COG_MAX_CONCURRENCY", "1")], ..Start::default() });
    async_held(&one, "a", &json!({}));
    assert_eq!(one.status(), "BUSY");
}
