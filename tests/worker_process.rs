//! The worker is a process that may die, stop or be left behind: the server goes on, nothing accepted is lost, no process
//! stays.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use prediction::frame::{FromWorker, Hello, ToWorker};
use serde_json::{Value, json};
use worker::pipe::{Reader, Writer};

use crate::processes::{is_gone, signal, until, worker_of};
use crate::support::{Server, output_of, pinion};

const MODEL: &str = "/v1/models/pinion/smollm2/predictions";
const INTERRUPTED: &str = "Prediction interrupted; please retry (code: PA)";

/// One prediction at a time. A loaded machine may make a worker silent for a while: only the test of that is impatient.
fn config(folder: &Path, silence_seconds: u64) -> PathBuf {
    let path = folder.join("cog.yaml");
    let model = "{ name: smollm2, model: llama, weights: smollm2, concurrency: 1 }";
    let text = format!("native:\n  models: [{model}]\n  limits: {{ worker_silence_seconds: {silence_seconds} }}\n");
    fs::write(&path, text).unwrap();
    path
}

fn serve(folder: &Path) -> Server {
    serve_within(folder, 600)
}

fn serve_within(folder: &Path, silence_seconds: u64) -> Server {
    Server::start(folder, &["--config", config(folder, silence_seconds).to_str().unwrap()])
}

fn create(server: &Server, prompt: &str, tokens: u32) -> String {
    let input = json!({"prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0});
    let (code, body) = server.post(MODEL, &json!({ "input": input }));
    assert_eq!(code, 201, "{body}");
    body["id"].as_str().expect("an id").to_owned()
}

fn state(server: &Server, id: &str) -> Value {
    server.get(&format!("/v1/predictions/{id}")).1
}

/// It is being decoded: somebody may have read some of it.
fn wait_for_output(server: &Server, id: &str) {
    until("some output", || state(server, id)["output"].as_array().is_some_and(|o| !o.is_empty()).then_some(()));
}

fn succeeds(server: &Server, id: &str) -> Value {
    let ended = server.finished(id);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert!(ended["output"].as_array().is_some_and(|pieces| !pieces.is_empty()), "{ended}");
    ended
}

fn is_interrupted(server: &Server, id: &str, why: &str) {
    let ended = server.finished(id);
    assert_eq!((ended["status"].as_str(), ended["error"].as_str()), (Some("failed"), Some(INTERRUPTED)), "{ended}");
    assert!(ended["logs"].as_str().is_some_and(|logs| logs.contains(why)), "{ended}");
}

#[test]
fn a_worker_killed_while_it_decodes_costs_what_was_read_and_nothing_else() {
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path());
    let read = create(&server, "Count gears.", 2000);
    let waits = create(&server, "Say OK", 4);
    wait_for_output(&server, &read);
    let worker = worker_of(&server);
    signal(worker, libc::SIGKILL);
    is_interrupted(&server, &read, "the worker was lost\n");
    succeeds(&server, &waits);
    assert_ne!(worker_of(&server), worker);
    assert!(is_gone(worker), "it was reaped");
    assert_eq!(server.get("/readyz").0, 200);
    succeeds(&server, &create(&server, "Say OK", 4));
}

#[test]
fn a_worker_killed_while_it_reads_a_prompt_is_replaced_and_the_prompt_is_read_again() {
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path());
    succeeds(&server, &create(&server, "Say OK", 1));
    let id = create(&server, &"gear ".repeat(3000), 2);
    until("it runs", || (state(&server, &id)["status"] == "processing").then_some(()));
    signal(worker_of(&server), libc::SIGKILL);
    let ended = succeeds(&server, &id);
    let logs = ended["logs"].as_str().unwrap_or_default();
    assert!(logs.contains("the worker was lost; running again\n"), "{ended}");
}

/// The weights come from a named pipe that nobody writes to: the load hangs until the worker is killed.
#[test]
fn a_worker_killed_while_it_loads_is_replaced() {
    let data = tempfile::tempdir().unwrap();
    let real = output_of(pinion().args(["weights", "pull", "smollm2", "--print-path"]));
    let weights = data.path().join("weights.gguf");
    output_of(Command::new("mkfifo").arg(&weights));
    let mut command = pinion();
    command.env("PINION_CACHE", data.path().join("cache")).env("PINION_WEIGHTS_DIR", &weights);
    let server = Server::start_as(command, data.path(), &["--config", config(data.path(), 600).to_str().unwrap()]);
    let id = create(&server, "Say OK", 4);
    until("it waits for the load", || {
        state(&server, &id)["logs"].as_str().is_some_and(|logs| logs.contains("loading smollm2")).then_some(())
    });
    let worker = worker_of(&server);
    fs::copy(real.trim(), data.path().join("real.gguf")).unwrap();
    fs::rename(data.path().join("real.gguf"), &weights).unwrap();
    assert_eq!(state(&server, &id)["status"], "starting");
    signal(worker, libc::SIGKILL);
    succeeds(&server, &id);
    assert_ne!(worker_of(&server), worker);
}

#[test]
fn what_a_model_prints_or_reads_is_not_on_the_pipes_of_the_frames() {
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path());
    succeeds(&server, &create(&server, "Say OK", 1));
    let worker = worker_of(&server);
    let descriptor = |number: u32| fs::read_link(format!("/proc/{worker}/fd/{number}")).unwrap();
    assert_eq!(descriptor(0), Path::new("/dev/null"));
    assert_eq!(descriptor(1), descriptor(2), "stdout is the log");
}

#[test]
fn a_worker_that_stops_answering_is_killed_and_replaced() {
    let data = tempfile::tempdir().unwrap();
    let server = serve_within(data.path(), 6);
    let read = create(&server, "Count gears.", 2000);
    wait_for_output(&server, &read);
    let worker = worker_of(&server);
    signal(worker, libc::SIGSTOP);
    is_interrupted(&server, &read, "the worker stopped answering\n");
    until("the stopped one is gone", || is_gone(worker).then_some(()));
    succeeds(&server, &create(&server, "Say OK", 4));
}

#[test]
fn a_killed_server_leaves_no_worker_behind_not_even_a_stopped_one() {
    for stopped in [false, true] {
        let data = tempfile::tempdir().unwrap();
        let server = serve(data.path());
        let id = create(&server, "Count gears.", 2000);
        wait_for_output(&server, &id);
        let worker = worker_of(&server);
        if stopped {
            signal(worker, libc::SIGSTOP);
        }
        server.kill();
        until("the worker is gone", || is_gone(worker).then_some(()));
    }
}

#[test]
fn a_sigterm_to_server_and_worker_lets_what_runs_finish() {
    let data = tempfile::tempdir().unwrap();
    let mut server = serve(data.path());
    let id = create(&server, "Count gears.", 40);
    wait_for_output(&server, &id);
    let (server_pid, worker) = (server.pid(), worker_of(&server));
    signal(worker, libc::SIGTERM);
    signal(server_pid, libc::SIGTERM);
    server.wait_for_log("stopping");
    until("both are gone", || (is_gone(server_pid) && is_gone(worker)).then_some(()));
    drop(server);
    let server = serve(data.path());
    succeeds(&server, &id);
}

#[test]
fn a_worker_refuses_a_server_of_another_build_in_a_sentence() {
    let mut child = pinion();
    child.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut to = Writer::new(child.stdin.take().unwrap());
    to.put(&ToWorker::Hello(Hello { build: "0.0.0".into(), device: "cpu".into(), name: String::new(), memory: None }))
        .unwrap();
    to.flush().unwrap();
    let mut from = Reader::new(child.stdout.take().unwrap());
    assert!(matches!(from.receive().unwrap(), Some(FromWorker::Hello(hello)) if hello.build != "0.0.0"));
    assert_eq!(from.receive::<FromWorker>().unwrap(), None, "it leaves");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("the server is of another build; leaving"), "{said}");
    child.wait().unwrap();
}
