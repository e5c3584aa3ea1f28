//! How the program ends when it is told to, and what refuses to start.

use std::io::Read;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Inbox, PATIENCE, Server, pinion, signal};

const MODEL: &str = "/v1/models/meta/meta-llama-3-8b-instruct/predictions";

fn create(server: &Server, webhook: Option<&str>, tokens: u32) -> String {
    let input = json!({"prompt": "Count gears.", "max_tokens": tokens, "min_tokens": tokens, "temperature": 0});
    let mut body = json!({"input": input});
    if let Some(url) = webhook {
        body["webhook"] = url.into();
        body["webhook_events_filter"] = json!(["completed"]);
    }
    let (code, created) = server.post(MODEL, &body);
    assert_eq!(code, 201, "{created}");
    created["id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_stopped_server_finishes_what_runs_and_tells_it_before_it_goes() {
    let data = tempfile::tempdir().unwrap();
    let inbox = Inbox::open();
    let server = Server::start(data.path(), &[]);
    let id = create(&server, Some(&inbox.url), 48);
    while server.get(&format!("/v1/predictions/{id}")).1["status"] == "starting" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(server.stop().code(), Some(0));
    let told: Value = inbox.posted.try_recv().expect("told before the process was gone");
    assert_eq!((told["id"].as_str(), told["status"].as_str()), (Some(id.as_str()), Some("succeeded")));
}

#[test]
fn a_server_that_cannot_listen_leaves_what_waits_alone() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(here.path(), &[]);
    let address = server.base.strip_prefix("http://").unwrap();
    let other = Server::start(there.path(), &[]);
    let waiting: Vec<String> = (0..2).map(|_| create(&other, None, 4)).collect();
    other.kill();
    // More often than a prediction may be taken up by lives that die over it.
    for _ in 0..7 {
        let refused = pinion().args(["serve", "--listen", address, "--data"]).arg(there.path()).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("--listen {address}")), "{said}");
    }
    let other = Server::start(there.path(), &[]);
    for id in waiting {
        assert_eq!(other.finished(&id)["status"], "succeeded");
    }
}

#[test]
fn a_second_server_on_one_data_folder_is_refused_and_a_blocked_folder_is_named() {
    let data = tempfile::tempdir().unwrap();
    let _server = Server::start(data.path(), &[]);
    let file = data.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    for (folder, expected) in [(data.path(), "another `pinion serve` works on"), (&file, "a-file")] {
        let refused = pinion().args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(folder).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn ctrl_c_in_a_run_exits_with_130() {
    let words = ["run", "smollm2", "-i", "prompt=Count gears.", "-i", "max_tokens=1500", "-i", "min_tokens=1500"];
    let mut child = pinion().args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).expect("text comes as it is made");
    signal(&child, "INT");
    let began = std::time::Instant::now();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn a_reader_that_has_had_enough_is_no_panic() {
    let run: &[&str] = &["run", "smollm2", "-i", "prompt=Say OK", "-i", "max_tokens=4"];
    for words in [&["models"], &["doctor"], run] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = pinion().args(words).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(141), "{words:?}: {said}");
        assert!(!said.contains("panicked"), "{words:?}: {said}");
    }
}
