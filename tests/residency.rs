//! Several models on one device under a memory budget, through the HTTP API: who leaves, who stays, who waits for what, and
//! that nothing is lost and no memory is left behind. The weights are made up; only their size means something.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::models;
use crate::processes::{resident_bytes, until, worker_of};
use crate::support::{Server, output_of, pinion};

/// Weights of one model. Together with its cache it needs a little more.
const MODEL_MEGABYTES: usize = 40;
/// Room for one such model, not for two.
const BUDGET_OF_ONE: u64 = 80_000_000;
const BUDGET_OF_TWO: u64 = 120_000_000;
/// What memory may differ by, in percent.
const TOLERANCE: u64 = 5;
/// Longer than any of these tests.
const LONG_TOKENS: u32 = 4000;
/// Room for these and a prompt.
const LONG: &str = "context_tokens: 4096, concurrency: 1";

/// A cog.yaml with these models (a name and further keys) under a budget, none of them loaded at the start unless it says so.
fn config(folder: &Path, budget: u64, models: &[(&str, &str)]) -> PathBuf {
    let mut text = format!("native:\n  devices: [{{ device: cpu, memory_bytes: {budget} }}]\n  models:\n");
    for (name, keys) in models {
        let weights = models::write(folder, name, MODEL_MEGABYTES);
        let preload = if keys.contains("pinned") { "" } else { "preload: false, " };
        let context = if keys.contains("context_tokens") { "" } else { "context_tokens: 256, " };
        let size = format!("{context}{}", if keys.contains("concurrency") { "" } else { "concurrency: 4, " });
        text +=
            &format!("    - {{ name: {name}, model: llama, path: {}, {size}{preload}{keys} }}\n", weights.display());
    }
    let path = folder.join("cog.yaml");
    fs::write(&path, text).unwrap();
    path
}

fn serve(folder: &Path, budget: u64, models: &[(&str, &str)]) -> Server {
    Server::start(&folder.join("data"), &["--config", config(folder, budget, models).to_str().unwrap()])
}

fn create(server: &Server, model: &str, tokens: u32) -> String {
    let input = json!({"prompt": "turn", "max_tokens": tokens, "min_tokens": tokens, "seed": 1});
    let (code, body) = server.post(&format!("/v1/models/pinion/{model}/predictions"), &json!({ "input": input }));
    assert_eq!(code, 201, "{body}");
    body["id"].as_str().expect("an id").to_owned()
}

fn succeeds(server: &Server, id: &str) -> Value {
    let ended = server.finished(id);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(ended["metrics"]["output_token_count"], ended["input"]["max_tokens"], "{ended}");
    ended
}

fn cancel(server: &Server, id: &str) -> Value {
    let (code, body) = server.post(&format!("/v1/predictions/{id}/cancel"), &json!({}));
    assert_eq!(code, 200, "{body}");
    server.finished(id)
}

fn status(server: &Server) -> Value {
    let (code, status) = server.get("/pinion/status");
    assert_eq!(code, 200, "{status}");
    status
}

/// The one device's row for a model, if it is there in any state.
fn there(server: &Server, model: &str) -> Option<Value> {
    let status = status(server);
    let models = status["devices"][0]["models"].as_array().expect("a list").clone();
    models.into_iter().find(|row| row["target"] == model)
}

fn is_loaded(server: &Server, model: &str) -> bool {
    there(server, model).is_some_and(|row| row["state"] == "loaded")
}

fn log_of(server: &Server, id: &str) -> String {
    server.get(&format!("/v1/predictions/{id}")).1["logs"].as_str().unwrap_or_default().to_owned()
}

fn wait_for_log(server: &Server, id: &str, text: &str) -> String {
    until(text, || Some(log_of(server, id)).filter(|log| log.contains(text)))
}

fn wait_for_output(server: &Server, id: &str) {
    let output = || server.get(&format!("/v1/predictions/{id}")).1["output"].clone();
    until("some output", || output().as_array().is_some_and(|output| !output.is_empty()).then_some(()));
}

fn is_within(what: u64, of: u64) -> bool {
    what.abs_diff(of) * 100 <= of * TOLERANCE
}

#[test]
fn two_models_that_do_not_fit_together_take_turns_and_leave_no_memory_behind() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), BUDGET_OF_ONE, &[("a", ""), ("b", "")]);
    let worker = worker_of(&server);
    let mut resident = Vec::new();
    for turn in 0..50 {
        let (model, other) = if turn % 2 == 0 { ("a", "b") } else { ("b", "a") };
        succeeds(&server, &create(&server, model, 3));
        resident.push(resident_bytes(worker));
        assert!(is_loaded(&server, model), "turn {turn}");
        assert_eq!(there(&server, other), None, "turn {turn}: it made room");
    }
    assert_eq!(worker_of(&server), worker, "by unloading, not by starting anew");
    assert!(is_within(resident[49], resident[4]), "turn 5: {}, turn 50: {}: {resident:?}", resident[4], resident[49]);
}

#[test]
fn requests_for_both_at_once_are_all_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), BUDGET_OF_ONE, &[("a", "concurrency: 2"), ("b", "concurrency: 2")]);
    let ids: Vec<String> = (0..12).map(|index| create(&server, ["a", "b"][index % 2], 3)).collect();
    ids.iter().for_each(|id| drop(succeeds(&server, id)));
    assert_eq!(status(&server)["waiting"], 0);
}

#[test]
fn a_model_that_was_idle_for_its_keep_alive_leaves_and_its_memory_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), BUDGET_OF_TWO, &[("a", "keep_alive_seconds: 1"), ("b", "")]);
    let worker = worker_of(&server);
    succeeds(&server, &create(&server, "b", 3));
    let before = resident_bytes(worker);
    succeeds(&server, &create(&server, "a", 3));
    assert!(is_loaded(&server, "a"), "for a second");
    let with_both = resident_bytes(worker);
    assert!(with_both > before + 35_000_000, "{before} {with_both}");
    until("a leaves", || there(&server, "a").is_none().then_some(()));
    assert!(is_loaded(&server, "b"), "it has no limit");
    let after = resident_bytes(worker);
    assert!(is_within(after, before), "before {before}, with both {with_both}, after {after}");
    succeeds(&server, &create(&server, "a", 3));
}

#[test]
fn a_pinned_model_stays_while_others_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let models = [("a", ""), ("kept", "pinned: true"), ("b", "")];
    let server = serve(folder.path(), BUDGET_OF_TWO, &models);
    until("the pinned one is there", || is_loaded(&server, "kept").then_some(()));
    assert_eq!(server.get("/readyz").0, 200);
    for model in ["a", "b", "a", "b"] {
        succeeds(&server, &create(&server, model, 3));
        assert!(is_loaded(&server, model) && is_loaded(&server, "kept"), "{model}");
    }
    let logs = succeeds(&server, &create(&server, "kept", 3))["logs"].as_str().unwrap_or_default().to_owned();
    assert!(!logs.contains("loading"), "it was there: {logs}");
}

#[test]
fn a_model_larger_than_the_budget_is_refused_with_what_it_needs_and_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), 20_000_000, &[("a", "")]);
    let ended = server.finished(&create(&server, "a", 3));
    assert_eq!(ended["status"], "failed", "{ended}");
    let error = ended["error"].as_str().unwrap_or_default();
    let numbers: Vec<u64> = error.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    assert!(numbers.contains(&20_000_000), "the budget: {error}");
    let needed = (MODEL_MEGABYTES as u64 * 1_000_000)..BUDGET_OF_ONE;
    assert!(numbers.iter().any(|bytes| needed.contains(bytes)), "what it needs: {error}");
}

#[test]
fn who_waits_for_memory_says_so_and_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), BUDGET_OF_ONE, &[("a", LONG), ("b", "")]);
    let busy = create(&server, "a", LONG_TOKENS);
    wait_for_output(&server, &busy);
    let (waits, behind) = (create(&server, "b", 3), create(&server, "a", 3));
    wait_for_log(&server, &waits, "memory");
    let target = |name: &str| {
        let targets = status(&server)["targets"].as_array().expect("a list").clone();
        targets.into_iter().find(|target| target["target"] == name).expect("served")
    };
    let queue = target("b");
    assert_eq!((queue["queued"].as_u64(), queue["active"].as_u64()), (Some(1), Some(0)), "{queue}");
    assert!(queue["waits_for"].as_str().is_some_and(|what| what.starts_with("memory")), "{queue}");
    wait_for_log(&server, &behind, "waiting behind 1 other\n");

    let ended = cancel(&server, &waits);
    assert_eq!((ended["status"].as_str(), ended["output"].is_null()), (Some("canceled"), true), "{ended}");
    assert_eq!(target("b")["queued"], 0);
    let waits = create(&server, "b", 3);
    assert_eq!(cancel(&server, &behind)["status"], "canceled");
    assert_eq!(cancel(&server, &busy)["status"], "canceled");
    let logs = succeeds(&server, &waits)["logs"].as_str().unwrap_or_default().to_owned();
    assert!(logs.contains("loading b") && logs.contains("loaded b in"), "it had its room: {logs}");
}

/// The weights come from a named pipe that nobody writes to: the load goes on until the server is gone.
#[test]
fn who_waits_for_a_load_says_so_and_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("weights.gguf");
    output_of(Command::new("mkfifo").arg(&weights));
    let mut command = pinion();
    command.env("PINION_CACHE", folder.path().join("cache")).env("PINION_WEIGHTS_DIR", &weights);
    let server = Server::start_as(command, &folder.path().join("data"), &[]);
    let (cancelled, waits) = (create(&server, "smollm2", 3), create(&server, "smollm2", 3));
    wait_for_log(&server, &cancelled, "loading smollm2");
    let ended = cancel(&server, &cancelled);
    assert_eq!((ended["status"].as_str(), ended["output"].is_null()), (Some("canceled"), true), "{ended}");
    let row = there(&server, "smollm2").expect("it loads");
    assert_eq!(row["state"], "loading", "{row}");
    let status = status(&server);
    let target = status["targets"].as_array().unwrap().iter().find(|target| target["target"] == "smollm2").unwrap();
    assert!(target["waits_for"].as_str().is_some_and(|what| what.starts_with("loading")), "{status}");
    assert_eq!(server.get(&format!("/v1/predictions/{waits}")).1["status"], "starting", "the other goes on waiting");
}
