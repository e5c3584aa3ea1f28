//! `kill -9` of the whole program at unkind moments: nothing accepted is lost, every webhook arrives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Inbox, PATIENCE, Server};

/// Creates one prediction and returns its id; the server answered 201, so it is accepted.
fn create(server: &Server, inbox: &Inbox, max_tokens: u32) -> String {
    let (code, body) = server.post(
        "/v1/models/meta/meta-llama-3-8b-instruct/predictions",
        &json!({
            "input": {"prompt": "Count gears.", "max_tokens": max_tokens, "temperature": 0, "min_tokens": max_tokens},
            "webhook": inbox.url,
            "webhook_events_filter": ["completed"],
        }),
    );
    assert_eq!(code, 201, "{body}");
    body["id"].as_str().expect("an id").to_owned()
}

fn wait_until_processing(server: &Server, id: &str) {
    let until = Instant::now() + PATIENCE;
    while server.get(&format!("/v1/predictions/{id}")).1["status"] == "starting" {
        assert!(Instant::now() < until, "{id} never started");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_server_loses_nothing_it_accepted() {
    let data = tempfile::tempdir().unwrap();
    let inbox = Inbox::open();
    let mut accepted = Vec::new();

    // Killed right after the last 201: most still wait.
    let server = Server::start(data.path(), &[]);
    accepted.extend((0..6).map(|_| create(&server, &inbox, 4)));
    server.kill();

    // Killed while one runs and others wait.
    let server = Server::start(data.path(), &[]);
    let long = create(&server, &inbox, 400);
    accepted.push(long.clone());
    accepted.extend((0..3).map(|_| create(&server, &inbox, 8)));
    wait_until_processing(&server, &long);
    server.kill();

    // Killed while starting up over what is left.
    Server::start(data.path(), &[]).kill();

    let server = Server::start(data.path(), &[]);
    let ended: BTreeMap<String, Value> = accepted.iter().map(|id| (id.clone(), server.finished(id))).collect();
    for (id, prediction) in &ended {
        match prediction["status"].as_str() {
            Some("succeeded") => {
                assert!(prediction["output"].as_array().is_some_and(|o| !o.is_empty()), "{prediction}")
            }
            Some("failed") => {
                let error = prediction["error"].as_str().unwrap_or_default();
                assert_eq!(error, "Prediction interrupted; please retry (code: PA)", "{id}");
            }
            other => panic!("{id} ended as {other:?}"),
        }
    }
    let succeeded = ended.values().filter(|p| p["status"] == "succeeded").count();
    assert!(
        succeeded >= accepted.len() - 4,
        "only what had streamed may be interrupted: {succeeded} of {}",
        accepted.len()
    );

    // Each completed webhook arrives, and what it says is what stands in the store.
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let until = Instant::now() + PATIENCE;
    while told.len() < accepted.len() {
        let body = inbox.posted.recv_timeout(until.saturating_duration_since(Instant::now()));
        let body = body.unwrap_or_else(|_| panic!("webhooks for {} of {} arrived", told.len(), accepted.len()));
        let (id, status) = (body["id"].as_str().unwrap().to_owned(), body["status"].as_str().unwrap().to_owned());
        let before = told.insert(id.clone(), status.clone());
        assert!(before.is_none_or(|before| before == status), "{id} was told to have ended in two ways");
    }
    for (id, status) in told {
        assert_eq!(ended[&id]["status"], status.as_str(), "{id}");
    }
}

#[test]
fn history_and_tokens_survive_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let inbox = Inbox::open();
    let server = Server::start(data.path(), &[]);
    let id = create(&server, &inbox, 4);
    let before = server.finished(&id);
    server.kill();
    let server = Server::start(data.path(), &[]);
    let (code, after) = server.get(&format!("/v1/predictions/{id}"));
    assert_eq!(code, 200);
    for field in ["status", "output", "logs", "metrics", "created_at", "completed_at", "input"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    let (_, list) = server.get("/v1/predictions");
    assert_eq!(list["results"][0]["id"], id.as_str());
}
