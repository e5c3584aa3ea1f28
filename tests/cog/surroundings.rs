//! What surrounds a container: the environment's words, the flags of whoever starts it, an image's own words. Each is a way in
//! which platforms set one up without a request.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::container::{Container, Start};
use super::wire::{self, Receiver, Request};
use crate::processes::until;
use crate::support::{output_of, pinion, tests_folder};

const ASYNC: (&str, &str) = ("Prefer", "respond-async");

fn ready(start: Start) -> Container {
    let container = Container::ours(start);
    container.wait_for("READY");
    container
}

fn text() -> Value {
    json!({ "input": { "text": "x" } })
}

#[test]
fn a_setup_that_takes_too_long_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    let env = [("COG_SETUP_TIMEOUT", "1")];
    let container = Container::ours(Start { load_waits_for: Some(&there), env: &env, ..Start::default() });
    container.wait_for("SETUP_FAILED");
    let logs = container.get("/health-check")["setup"]["logs"].to_string();
    assert!(logs.contains("setup took longer than 1 s (COG_SETUP_TIMEOUT)"), "{logs}");
    // Whoever loads it now is too late.
    fs::write(&there, "").unwrap();
    assert_eq!(container.post("/predictions", &[], &text()).0, 503);
    assert_eq!(container.stop().code(), Some(0));
}

#[test]
fn numbers_that_are_none_are_ignored_as_cog_ignores_them() {
    let names =
        ["COG_SETUP_TIMEOUT", "COG_MAX_CONCURRENCY", "COG_STREAM_HISTORY_CAPACITY", "COG_THROTTLE_RESPONSE_INTERVAL"];
    for name in names {
        let container = ready(Start { env: &[(name, "many")], ..Start::default() });
        assert_eq!(container.post("/predictions", &[], &text()).1["status"], "succeeded", "{name}");
    }
}

#[test]
fn logs_are_told_at_intervals_that_the_environment_sets() {
    for (interval, between) in [("0", true), ("3600", false)] {
        let folder = tempfile::tempdir().unwrap();
        let (lines, there) = (folder.path().join("lines"), folder.path().join("there"));
        let env = [("COG_THROTTLE_RESPONSE_INTERVAL", interval)];
        let (receiver, container) = (Receiver::open(), ready(Start { env: &env, ..Start::default() }));
        let body = json!({
            "id": "p", "input": { "text": "x", "until": there, "follows": lines },
            "webhook": receiver.url, "webhook_events_filter": ["logs", "completed"],
        });
        assert_eq!(container.post("/predictions", &[ASYNC], &body).0, 202);
        let told = |logs: &str, status: &str| {
            let told = receiver.next().json();
            assert_eq!((&told["logs"], &told["status"]), (&json!(logs), &json!(status)), "{interval}: {told}");
        };
        fs::write(&lines, "a\n").unwrap();
        told("a\n", "processing");
        fs::write(&lines, "a\nb\n").unwrap();
        if between {
            told("a\nb\n", "processing");
        }
        let said =
            || container.open("PUT", "/predictions/p", &[("Content-Type", "application/json")], &json!({})).rest();
        until("it has said both", || said().contains(r"a\nb\n").then_some(()));
        fs::write(&there, "").unwrap();
        told("a\nb\n", "succeeded");
    }
}

#[test]
fn webhooks_name_their_sender_as_the_environment_says() {
    let (receiver, container) =
        (Receiver::open(), ready(Start { env: &[("COG_USER_AGENT", "ours/1")], ..Start::default() }));
    let body = json!({ "input": { "text": "x" }, "webhook": receiver.url, "webhook_events_filter": ["completed"] });
    assert_eq!(container.post("/predictions", &[], &body).0, 200);
    assert_eq!(receiver.next().headers["user-agent"], "ours/1");
}

#[test]
fn with_public_only_nothing_of_this_machine_is_read_or_told() {
    let served = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = format!("http://{}/file", served.local_addr().unwrap());
    let receiver = Receiver::open();
    let container = ready(Start { words: &["--public-only"], ..Start::default() });
    let body = json!({ "input": { "text": "x", "file": local } });
    let (code, refused) = container.post("/predictions", &[], &body);
    let error = refused["error"].as_str().unwrap_or_default();
    assert_eq!((code, &refused["status"]), (200, &json!("failed")), "{refused}");
    assert!(error.contains(&local) && error.contains("this machine"), "{error}");
    let body = json!({ "input": { "text": "x" }, "webhook": receiver.url, "webhook_events_filter": ["completed"] });
    assert_eq!(container.post("/predictions", &[], &body).1["status"], "succeeded");
    // What it has to tell it tells before it ends.
    assert_eq!(container.stop().code(), Some(0));
    assert!(receiver.posted.try_recv().is_err(), "a webhook came to this machine");
}

#[test]
fn without_it_this_machine_is_reached_and_clouds_metadata_is_not() {
    let receiver = Receiver::open();
    let container = ready(Start::default());
    let body = json!({ "input": { "text": "x" }, "webhook": receiver.url, "webhook_events_filter": ["completed"] });
    assert_eq!(container.post("/predictions", &[], &body).0, 200);
    assert_eq!(receiver.next().json()["status"], "succeeded");
    let metadata = json!({ "input": { "text": "x", "file": "http://169.254.169.254/latest/meta-data" } });
    let refused = container.post("/predictions", &[], &metadata).1;
    let error = refused["error"].as_str().unwrap_or_default();
    assert!(error.contains("an address that is never called"), "{refused}");
}

#[test]
fn health_is_an_exit_code_for_health_checks() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    let asked = |container: &Container, words: &[&str]| {
        let asked = pinion().args(["health", "--server", &container.base]).args(words).output().unwrap();
        let said = [asked.stdout, asked.stderr].concat();
        (asked.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
    };
    let container = Container::ours(Start { load_waits_for: Some(&there), ..Start::default() });
    let (code, said) = asked(&container, &[]);
    assert!(code == 1 && said.contains("/readyz has status 503") && said.contains("STARTING"), "{said}");
    assert_eq!(asked(&container, &["--live"]).0, 0);
    fs::write(&there, "").unwrap();
    container.wait_for("READY");
    assert_eq!(asked(&container, &[]), (0, "{\"status\":\"READY\"}\n".to_owned()));
    let port = container.base.rsplit(':').next().unwrap();
    assert!(output_of(pinion().arg("health").env("PORT", port)).contains("READY"));

    let failed = Container::ours(Start { load_fails: Some("torn weights"), ..Start::default() });
    failed.wait_for("SETUP_FAILED");
    for words in [&[][..], &["--live"]] {
        let (code, said) = asked(&failed, words);
        assert!(code == 1 && said.contains("SETUP_FAILED"), "{said}");
    }
    let nobody = pinion().args(["health", "--server", "http://127.0.0.1:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
}

/// Platforms that set a Cog image's command say `python -m cog.server.http`: an image of ours has a program of that name.
#[test]
fn the_command_of_a_cog_image_starts_ours() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("cog.yaml"), "native: { model: echo, synth: nothing }\n").unwrap();
    let python = |words: &[&str]| {
        let program = pinion();
        let beside = Path::new(program.get_program()).parent().unwrap();
        let path = format!("{}:{}", beside.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.arg(tests_folder().join("../deploy/python")).args(words).env("PATH", path).current_dir(folder.path());
        command
    };
    let words = ["-u", "-m", "cog.server.http", "--host", "127.0.0.1", "--threads=3", "--await-explicit-shutdown=true"];
    let container = Container::from(python(&words));
    container.wait_for("READY");
    assert_eq!(wire::open(&container.base, &Request::new("GET", "/health-check")).code, 200);
    assert_eq!(container.post("/shutdown", &[], &json!({})).0, 200);
    assert_eq!(container.exit().code(), Some(0));
    let version = python(&["-m", "cog.server.http", "--version"]).output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("pinion "), "{version:?}");
    let other = python(&["predict.py"]).output().unwrap();
    assert_eq!(other.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&other.stderr).contains("no Python"), "{other:?}");
}
