//! The hosted service's tutorial, unchanged, with the official clients and real weights. Knows the scripts' names.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::shelf::{Answer, Shelf};
use crate::support::{PATIENCE, Server, clients, http, output_of, recordings, tests_folder};

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

/// Node looks for packages beside the script, so it runs a copy beside the installed client.
fn node(script: &str, server: &Server) -> Command {
    let copy = clients().join("node").join(script);
    std::fs::copy(tests_folder().join("tutorial").join(script), &copy).unwrap();
    let mut command = Command::new("node");
    command.arg(copy).env("BASE_URL", format!("{}/v1", server.base)).env("REPLICATE_API_TOKEN", "r8_anything");
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
    let out = output_of(&mut node("text.mjs", &server));
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

/// jfk.wav on this machine, and behind a URL.
struct Speech {
    url: String,
    file: PathBuf,
    _shelf: Shelf,
}

impl Speech {
    fn ready() -> Self {
        let file = recordings().join("jfk.wav");
        let bytes = std::fs::read(&file).unwrap();
        let shelf = Shelf::open(move |path| match path {
            "/jfk.wav" => Answer::File("audio/wav", bytes.clone()),
            _ => Answer::Missing,
        });
        Self { url: format!("{}/jfk.wav", shelf.base), file, _shelf: shelf }
    }
}

/// Every line is what Kennedy said, as whisper-base hears it.
fn is_the_speech(lines: &[&str], times: usize, client: &str) {
    const SAID: &str =
        "And so my fellow Americans ask not what your country can do for you ask what you can do for your country.";
    let words = |line: &str| line.replace(',', "").trim().to_owned();
    assert_eq!(lines.iter().map(|line| words(line)).collect::<Vec<_>>(), vec![SAID; times], "{client}");
}

#[test]
fn python_hears_a_url_and_an_upload() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let speech = Speech::ready();
    let out = output_of(python("1.0.7", &server).arg("audio.py").arg(&speech.url).arg(&speech.file));
    is_the_speech(&out.lines().collect::<Vec<_>>(), 2, "1.0.7");
    let listed = server.get("/v1/files").1;
    assert_eq!(listed["results"].as_array().map(Vec::len), Some(1), "the file was uploaded: {listed}");
}

/// `import replicate` of 0.31.0 loads a module `replicate.files`, which has no `create`: the script takes it for the Files
/// API and stops before its second request, whatever the server. Without that name the same script goes on.
#[test]
fn the_tutorials_python_hears_a_url_and_a_data_uri() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let speech = Speech::ready();
    let stopped = python("0.31.0", &server).arg("audio.py").arg(&speech.url).arg(&speech.file).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&stopped.stdout), String::from_utf8_lossy(&stopped.stderr));
    is_the_speech(&out.lines().collect::<Vec<_>>(), 1, "0.31.0");
    let why = "AttributeError: module 'replicate.files' has no attribute 'create'";
    assert!(!stopped.status.success() && err.contains(why), "{err}");

    let unnamed = "import replicate, runpy; del replicate.files; runpy.run_path('audio.py', run_name='__main__')";
    let out = output_of(python("0.31.0", &server).args(["-c", unnamed, &speech.url]).arg(&speech.file));
    is_the_speech(&out.lines().collect::<Vec<_>>(), 2, "0.31.0, without the name");
}

#[test]
fn node_hears_an_upload() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let out = output_of(node("audio.mjs", &server).arg(Speech::ready().file));
    is_the_speech(&out.lines().collect::<Vec<_>>(), 1, "node");
}
