//! The hosted service's tutorial, unchanged, with the official clients and real weights. Knows the scripts' names.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{PATIENCE, Server, clients, http, output_of, tests_folder};

const PYTHON_CLIENTS: [&str; 2] = ["0.31.0", "1.0.7"];

fn python(version: &str, server: &Server) -> Command {
    let mut command = Command::new(clients().join(format!("python-{version}/bin/python")));
    command
        .current_dir(tests_folder().join("tutorial"))
        .env("REPLICATE_BASE_URL", &server.base)
        .env("REPLICATE_API_TOKEN", "r8_anything")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn each_python(script: &str, check: impl Fn(&str, &str)) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    for version in PYTHON_CLIENTS {
        check(version, &output_of(python(version, &server).arg(script)));
    }
}

#[test]
fn python_runs_and_streams_text() {
    each_python("text.py", |version, out| {
        let lines: Vec<&str> = out.trim().lines().filter(|line| !line.is_empty()).collect();
        assert!(lines.len() >= 2, "{version}: one answer joined, one streamed: {out:?}");
    });
}

#[test]
fn python_runs_a_pinned_version() {
    each_python("pinned.py", |version, out| assert!(!out.trim().is_empty(), "{version}"));
}

#[test]
fn python_creates_polls_and_cancels() {
    each_python("async_poll.py", |version, out| {
        assert!(out.contains("s of device time"), "{version}: {out}");
        assert!(out.lines().any(|line| line == "canceled"), "{version}: {out}");
        assert!(out.contains("predictions in the history"), "{version}: {out}");
    });
}

#[test]
fn python_receives_a_webhook_with_a_verified_signature() {
    each_python("webhook.py", |version, out| assert!(!out.trim().is_empty(), "{version}"));
}

#[test]
fn the_one_liner_prints_a_short_answer() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    for version in PYTHON_CLIENTS {
        let python = python(version, &server);
        let mut shell = Command::new("sh");
        shell.arg("one_liner.sh").current_dir(tests_folder().join("tutorial")).env("PYTHON", python.get_program());
        for (name, value) in python.get_envs() {
            shell.env(name, value.expect("set, not removed"));
        }
        let out = output_of(&mut shell);
        assert!(!out.trim().is_empty() && out.len() < 200, "{version}: {out:?}");
    }
}

#[test]
fn node_runs_streams_and_waits() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    // Node looks for packages beside the script, so it runs a copy beside the installed client.
    let script = clients().join("node/text.mjs");
    std::fs::copy(tests_folder().join("tutorial/text.mjs"), &script).unwrap();
    let out = output_of(
        Command::new("node")
            .arg(&script)
            .env("BASE_URL", format!("{}/v1", server.base))
            .env("REPLICATE_API_TOKEN", "r8_anything"),
    );
    let last = out.trim().lines().last().unwrap_or_default();
    let waited = out.lines().find(|line| line.starts_with("succeeded "));
    assert!(waited.is_some(), "the third answer ends with its status: {last:?} in {out:?}");
}

#[test]
fn a_web_service_answers_and_maps_errors() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    for version in PYTHON_CLIENTS {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let words = ["-m", "uvicorn", "service:app", "--log-level", "warning", "--port"];
        let mut service = python(version, &server).args(words).arg(port.to_string()).spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "uvicorn does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        let url = format!("http://127.0.0.1:{port}/infer");
        let good = http("POST", &url, &json!({"prompt": "Name one gear.", "max_tokens": 8}).to_string());
        let bad = http("POST", &url, &json!({"prompt": "Name one gear.", "max_tokens": 0}).to_string());
        service.kill().unwrap();
        service.wait().unwrap();
        assert_eq!(good.0, 200, "{version}: {}", good.1);
        assert_eq!(server.finished(good.1["prediction_id"].as_str().unwrap())["status"], "succeeded");
        assert_eq!(bad.0, 502, "{version}: {}", bad.1);
        let detail = bad.1["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("Must be greater than or equal to 1"), "{version}: {detail}");
    }
}
