//! What is asked of a server, and what it answered, by name. The same words go to both servers; what is random or a time is
//! replaced by a word.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitStatus;

use serde_json::{Map, Value, json};

use super::container::Container;
use super::wire::{self, Open, Posted, Receiver, Request};
use crate::processes::{child_of, signal, until};

/// By name.
#[derive(Default)]
pub struct Scenes(pub BTreeMap<String, Value>);

/// Headers that say nothing of the API: the length follows the body.
const UNIMPORTANT: [&str; 5] = ["date", "content-length", "connection", "transfer-encoding", "host"];

const JSON: (&str, &str) = ("Content-Type", "application/json");
const STREAM: (&str, &str) = ("Accept", "text/event-stream");
const ASYNC: (&str, &str) = ("Prefer", "respond-async");

impl Scenes {
    pub fn put(&mut self, name: &str, answer: Value) {
        let before = self.0.insert(name.to_owned(), normal(answer));
        assert!(before.is_none(), "{name} was played already");
    }

    fn answer(&mut self, name: &str, mut answer: Open) {
        let body = answer.rest();
        let is_stream = answer.headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let body = if is_stream {
            wire::events(&body)
        } else {
            serde_json::from_str(&body).unwrap_or_else(|_| Value::from(body))
        };
        self.put(name, json!({ "status": answer.code, "headers": important(&answer.headers), "body": body }));
    }

    pub fn exit(&mut self, name: &str, status: ExitStatus) {
        self.put(name, json!({ "exit": status.code() }));
    }

    fn ask(&mut self, name: &str, container: &Container, request: Request) {
        self.answer(name, wire::open(&container.base, &request));
    }

    fn create(&mut self, name: &str, container: &Container, body: &Value) {
        self.create_with(name, container, &[], body);
    }

    /// When no slot is taken: the real server says how a prediction ended a moment before its slot is free.
    fn create_with(&mut self, name: &str, container: &Container, headers: &[(&str, &str)], body: &Value) {
        container.wait_for("READY");
        self.create_now(name, container, headers, body);
    }

    fn create_now(&mut self, name: &str, container: &Container, headers: &[(&str, &str)], body: &Value) {
        self.answer(name, container.open("POST", "/predictions", &with(headers), body));
    }

    fn posted(&mut self, name: &str, posted: Vec<Posted>) {
        let one = |posted: Posted| json!({ "method": posted.method, "path": posted.path, "headers": important(&posted.headers), "body": posted.json() });
        let mut all: Vec<Value> = posted.into_iter().map(one).collect();
        // The real server sends them side by side: they arrive in any order, and the output tells which is which.
        all.sort_by_key(|posted| {
            let body = &posted["body"];
            (body["status"] != "processing", body["output"].as_array().map_or(0, Vec::len))
        });
        self.put(name, all.into());
    }
}

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    std::iter::once(JSON).chain(more.iter().copied()).collect()
}

fn important(headers: &BTreeMap<String, String>) -> Value {
    headers
        .iter()
        .filter(|(name, _)| !UNIMPORTANT.contains(&name.as_str()))
        .map(|(k, v)| (k.clone(), json!(v)))
        .collect()
}

/// Random names and measured times become words.
fn normal(value: Value) -> Value {
    let normal_member = |(key, value): (String, Value)| {
        let value = match (key.as_str(), &value) {
            ("predict_time", Value::Number(_)) => "SECONDS".into(),
            ("id", Value::String(id)) if is_generated(id) => "GENERATED".into(),
            ("started_at" | "completed_at" | "created_at", Value::String(_)) => "TIME".into(),
            _ => normal(value),
        };
        (key, value)
    };
    match value {
        Value::Object(members) => members.into_iter().map(normal_member).collect::<Map<_, _>>().into(),
        Value::Array(items) => items.into_iter().map(normal).collect(),
        other => other,
    }
}

fn is_generated(id: &str) -> bool {
    id.strip_prefix("pred_").is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

pub fn describes(container: &Container, scenes: &mut Scenes) {
    for (name, method, path) in [
        ("the root", "GET", "/"),
        ("health", "GET", "/health-check"),
        ("the schema", "GET", "/openapi.json"),
        ("a HEAD of health", "HEAD", "/health-check"),
        ("a path that is none", "GET", "/nothing"),
        ("docs", "GET", "/docs"),
        ("reading a prediction", "GET", "/predictions/p"),
        ("listing predictions", "GET", "/predictions"),
        ("deleting health", "DELETE", "/health-check"),
        ("a GET of a cancel", "GET", "/predictions/p/cancel"),
        ("a PUT without an id", "PUT", "/predictions"),
    ] {
        scenes.ask(name, container, Request::new(method, path));
    }
}

pub fn answers(container: &Container, scenes: &mut Scenes) {
    let input = json!({ "text": "hello world", "pieces": 3, "log": "a line", "unknown": 1 });
    scenes.create("a prediction", container, &json!({ "input": input }));
    scenes.create("with an id", container, &json!({ "id": "mine", "input": { "text": "x" }, "colour": "red" }));
    scenes.create("again with the id", container, &json!({ "id": "mine", "input": { "text": "y" } }));
    scenes.create(
        "a failure",
        container,
        &json!({ "input": { "text": "ab", "pieces": 2, "log": "before", "fail": "boom" } }),
    );
    scenes.create("an integer with a point", container, &json!({ "input": { "text": "ab", "pieces": 2.0 } }));
    scenes.create("a null for what may be null", container, &json!({ "input": { "text": "x", "log": null } }));
    scenes.create(
        "a data URI",
        container,
        &json!({ "input": { "text": "x", "file": "data:text/plain;base64,aGVsbG8=" } }),
    );
    scenes.create(
        "a file that cannot be fetched",
        container,
        &json!({ "input": { "text": "x", "file": "http://127.0.0.1:1/f" } }),
    );
    scenes.create("a path for a file", container, &json!({ "input": { "text": "x", "file": "/etc/hostname" } }));
    scenes.create(
        "a prefix for output files",
        container,
        &json!({ "output_file_prefix": "http://x/", "input": { "text": "x" } }),
    );
    scenes.create_with("wait is sync", container, &[("Prefer", "wait")], &json!({ "input": { "text": "x" } }));
    let both = [("Prefer", "respond-async, wait=5")];
    scenes.create_with("async and wait is sync", container, &both, &json!({ "input": { "text": "x" } }));
    container.wait_for("READY");
    let training = container.open("POST", "/trainings", &[JSON], &json!({ "input": { "text": "x" } }));
    scenes.answer("a training", training);
    container.wait_for("READY");
    let training = container.open("PUT", "/trainings/t", &[JSON], &json!({ "input": { "text": "x" } }));
    scenes.answer("a training by PUT", training);
}

pub fn refuses(container: &Container, scenes: &mut Scenes) {
    let long = "x".repeat(60);
    let wrong = json!({ "text": 1, "pieces": 9999, "style": "zz", "temperature": -1, "hold": 3, "log": long });
    scenes.create("everything wrong at once", container, &json!({ "input": wrong }));
    scenes.create("nothing in the body", container, &json!({}));
    scenes.create("a null for what has a default", container, &json!({ "input": { "text": "x", "pieces": null } }));
    scenes.create("a text for a number", container, &json!({ "input": { "text": "x", "pieces": "2" } }));
    scenes.create("a fraction for an integer", container, &json!({ "input": { "text": "x", "pieces": 1.5 } }));
    scenes.create("a list for the input", container, &json!({ "input": [1] }));
    scenes.create("a null for the input", container, &json!({ "input": null }));
    scenes.create("a number for the id", container, &json!({ "id": 7 }));
    scenes.create(
        "an unknown event",
        container,
        &json!({ "webhook_events_filter": ["nope"], "input": { "text": "x" } }),
    );
    scenes.create(
        "a null for the events",
        container,
        &json!({ "webhook_events_filter": null, "input": { "text": "x" } }),
    );
    scenes.create("a null for the context", container, &json!({ "context": null, "input": { "text": "x" } }));
    scenes.create("a webhook that is no URL", container, &json!({ "webhook": "nonsense", "input": { "text": "x" } }));
    scenes.create("a list for the body", container, &json!([1]));
    let raw = |headers, body| Request { method: "POST", path: "/predictions", headers, body };
    scenes.ask("no body", container, raw(&[], ""));
    scenes.ask("no body that is called JSON", container, raw(&[JSON], ""));
    scenes.ask("a body without a type", container, raw(&[("X-A", "b")], r#"{"input":{"text":"x"}}"#));
    scenes.ask("a body of another type", container, raw(&[("Content-Type", "text/plain")], "{}"));
    scenes.ask("broken JSON", container, raw(&[JSON], r#"{"input":"#));
    let other = container.open("PUT", "/predictions/p1", &[JSON], &json!({ "id": "p2", "input": { "text": "x" } }));
    scenes.answer("another id than the path's", other);
    scenes.answer("a cancel of nobody", container.open("POST", "/predictions/nobody/cancel", &[], &json!({})));
    scenes.answer("a cancel of no training", container.open("POST", "/trainings/nobody/cancel", &[], &json!({})));
    let stream = container.open("POST", "/trainings", &[JSON, STREAM], &json!({ "input": { "text": "x" } }));
    scenes.answer("a stream of a training", stream);
}

pub fn streams(container: &Container, scenes: &mut Scenes) {
    let input = json!({ "text": "hello world", "pieces": 3, "log": "a line" });
    scenes.create_with("a stream", container, &[STREAM], &json!({ "id": "s1", "input": input }));
    let input = json!({ "text": "ab", "pieces": 2, "fail": "boom" });
    scenes.create_with("a stream of a failure", container, &[STREAM], &json!({ "id": "s2", "input": input }));
    scenes.create_with("a stream of a bad input", container, &[STREAM], &json!({ "input": {} }));
    let input = json!({ "text": "ab", "pieces": 2, "hold": true });
    container.wait_for("READY");
    let mut open = container.open("POST", "/predictions", &with(&[STREAM]), &json!({ "id": "s3", "input": input }));
    let begun = open.until("\"index\":1");
    assert_eq!(container.post("/predictions/s3/cancel", &[], &json!({})).0, 200);
    scenes.put("a stream that was canceled", wire::events(&(begun + &open.rest())));
    container.wait_for("READY");
    for (name, pieces) in [("the longest history", 1023), ("a history that is too long", 1024)] {
        let input = json!({ "text": "x".repeat(pieces), "pieces": pieces, "hold": true });
        let begun = container.post("/predictions", &[ASYNC], &json!({ "id": "h", "input": input }));
        assert_eq!(begun.0, 202);
        has_said(container, "h", pieces);
        let mut open = container.open("PUT", "/predictions/h", &with(&[STREAM]), &json!({}));
        let end = if pieces == 1023 { "\"index\":1022" } else { "skipped" };
        let seen = wire::events(&open.until(end));
        let count = seen.as_array().map_or(0, Vec::len);
        scenes.put(
            name,
            json!({ "status": open.code, "headers": important(&open.headers), "count": count, "first": seen[0] }),
        );
        drop(open);
        container.post("/predictions/h/cancel", &[], &json!({}));
        container.wait_for("READY");
    }
}

/// Waits until so many pieces of its output are there.
fn has_said(container: &Container, id: &str, pieces: usize) {
    let look = || {
        let said = container.open("PUT", &format!("/predictions/{id}"), &[JSON], &json!({})).rest();
        let snapshot: Value = serde_json::from_str(&said).ok()?;
        (snapshot["output"].as_array()?.len() == pieces).then_some(())
    };
    until("it has said all", look);
}

pub fn runs_once(container: &Container, scenes: &mut Scenes) {
    container.wait_for("READY");
    let new = container.open("PUT", "/predictions/p", &[JSON], &json!({ "id": "p", "input": { "text": "x" } }));
    scenes.answer("a PUT", new);
    container.wait_for("READY");
    let again = container.open("PUT", "/predictions/p", &[JSON], &json!({ "input": { "text": "y" } }));
    scenes.answer("a PUT after the end", again);
    let receiver = Receiver::open();
    let hook = format!("{}/hook", receiver.url);
    let input = json!({ "text": "hello world", "pieces": 2, "hold": true });
    let body = json!({ "input": input, "webhook": hook, "webhook_events_filter": ["completed"] });
    container.wait_for("READY");
    scenes.answer("an async PUT", container.open("PUT", "/predictions/p", &with(&[ASYNC]), &body));
    has_said(container, "p", 2);
    scenes.put("busy", json!({ "status": container.status() }));
    scenes.create_now("one more than there are slots", container, &[], &json!({ "input": { "text": "x" } }));
    scenes.create_now("a stream more than there are slots", container, &[STREAM], &json!({ "input": { "text": "x" } }));
    scenes.create_now("a bad input while it is busy", container, &[], &json!({ "input": {} }));
    for (name, body) in [
        ("a PUT of what runs", body.clone()),
        ("a PUT of what runs with another body", json!({ "input": { "text": "other" } })),
        ("a PUT of what runs with a bad body", json!({ "input": { "text": 3 } })),
        ("a PUT of what runs with another id", json!({ "id": "q" })),
    ] {
        scenes.answer(name, container.open("PUT", "/predictions/p", &[JSON], &body));
    }
    let async_again = container.open("PUT", "/predictions/p", &with(&[ASYNC]), &json!({}));
    scenes.answer("an async PUT of what runs", async_again);
    let mut viewer = container.open("PUT", "/predictions/p", &with(&[STREAM]), &json!({}));
    scenes.put("a stream of what runs", wire::events(&viewer.until("\"index\":1")));
    drop(viewer);
    // Its viewer has gone, and it runs on.
    scenes.put("busy without its viewer", json!({ "status": container.status() }));
    scenes.answer("a cancel", container.open("POST", "/predictions/p/cancel", &[], &json!({})));
    scenes.posted("the webhook of a cancel", vec![receiver.next()]);
    container.wait_for("READY");
}

pub fn tells(container: &Container, scenes: &mut Scenes) {
    let receiver = Receiver::open();
    let hook = |path: &str| format!("{}{path}", receiver.url);
    let input = json!({ "text": "hello world", "pieces": 2 });
    let body =
        json!({ "id": "w1", "input": input, "webhook": hook("/all"), "webhook_events_filter": ["start", "output"] });
    scenes.create("with webhooks", container, &body);
    scenes.posted("webhooks before the end", (0..3).map(|_| receiver.next()).collect());
    let body = json!({ "id": "w2", "input": input, "webhook": hook("/end"), "webhook_events_filter": ["completed"] });
    scenes.create_with("async with a webhook", container, &[ASYNC], &body);
    scenes.posted("the webhook of the end", vec![receiver.next()]);
    let failing = json!({ "text": "x", "fail": "boom" });
    let body = json!({ "id": "w3", "input": failing, "webhook": hook("/end"), "webhook_events_filter": ["completed"] });
    scenes.create("a failure with a webhook", container, &body);
    scenes.posted("the webhook of a failure", vec![receiver.next()]);
    let body =
        json!({ "id": "w4", "input": input, "webhook": hook("/no/2/end"), "webhook_events_filter": ["completed"] });
    scenes.create("with a receiver that refuses twice", container, &body);
    scenes.posted("three tries", (0..3).map(|_| receiver.next()).collect());
    container.wait_for("READY");
}

pub fn tells_with_a_token(container: &Container, scenes: &mut Scenes) {
    let receiver = Receiver::open();
    let traced = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", "a=b")];
    let body = json!({ "input": { "text": "x" }, "webhook": receiver.url, "webhook_events_filter": ["completed"] });
    scenes.create_with("traced", container, &traced, &body);
    scenes.posted("a traced webhook with a token", vec![receiver.next()]);
}

pub fn ends_with_its_caller(container: &Container, scenes: &mut Scenes) {
    let receiver = Receiver::open();
    for (name, headers) in [("the webhook of a caller who left", &[][..]), ("of a reader who left", &[STREAM])] {
        let input = json!({ "text": "hello", "hold": true });
        let body = json!({ "id": "gone", "input": input, "webhook": receiver.url, "webhook_events_filter": ["output", "completed"] });
        let text = body.to_string();
        let request = Request { method: "POST", path: "/predictions", headers: &with(headers), body: &text };
        let caller = wire::send(&container.base, &request);
        let mut posted = vec![receiver.next()];
        drop(caller);
        posted.push(receiver.next());
        scenes.posted(name, posted);
        container.wait_for("READY");
    }
}

pub fn loses_its_worker(container: &Container, scenes: &mut Scenes) {
    let receiver = Receiver::open();
    let input = json!({ "text": "hello", "hold": true });
    let body = json!({ "id": "lost", "input": input, "webhook": receiver.url, "webhook_events_filter": ["output"] });
    let text = body.to_string();
    let request = Request { method: "POST", path: "/predictions", headers: &[JSON], body: &text };
    let caller = wire::send(&container.base, &request);
    receiver.next();
    signal(until("its worker", || child_of(container.pid())), 9);
    scenes.answer("a worker that is lost", caller.answer());
    // The real one has lost it for good.
    let later =
        until("another state", || Some(container.status()).filter(|status| status != "BUSY" && status != "STARTING"));
    scenes.put("after a worker was lost", json!({ "status": later }));
    scenes.create_now("a prediction after that", container, &[], &json!({ "input": { "text": "x" } }));
}

pub fn is_not_ready(container: &Container, scenes: &mut Scenes, state: &str) {
    let name = |what: &str| format!("{state}: {what}");
    scenes.create_now(&name("a prediction"), container, &[], &json!({ "input": { "text": "x" } }));
    scenes.create_now(&name("a bad input"), container, &[], &json!({ "input": {} }));
    scenes.create_now(&name("a stream"), container, &[STREAM], &json!({ "input": { "text": "x" } }));
    scenes.answer(&name("a cancel"), container.open("POST", "/predictions/p/cancel", &[], &json!({})));
    scenes.ask(&name("health"), container, Request::new("GET", "/health-check"));
    scenes.ask(&name("the schema"), container, Request::new("GET", "/openapi.json"));
    scenes.ask(&name("the root"), container, Request::new("GET", "/"));
}

pub fn is_loaded_within(container: &Container, scenes: &mut Scenes, seconds: &str) {
    scenes.ask(&format!("{seconds} s for the setup: health"), container, Request::new("GET", "/health-check"));
}

/// SIGTERM with a prediction inside that ends when `there` is there.
pub fn stops_when_busy(container: Container, there: &Path, scenes: &mut Scenes) {
    let receiver = Receiver::open();
    let input = json!({ "text": "hello", "until": there });
    let body = json!({ "id": "last", "input": input, "webhook": receiver.url, "webhook_events_filter": ["output"] });
    let text = body.to_string();
    let request = Request { method: "POST", path: "/predictions", headers: &[JSON], body: &text };
    let caller = wire::send(&container.base, &request);
    receiver.next();
    container.term();
    until("new connections are refused", || (!container.listens()).then_some(()));
    std::fs::write(there, "").unwrap();
    scenes.answer("SIGTERM while busy", caller.answer());
    scenes.exit("the end of the busy one", container.exit());
}
