//! The real router over the in-memory store, the real dispatch and the echo model. Knows HTTP only as far as a test needs.

use std::{collections::BTreeMap, sync::Arc};

use ::files::{Fetching, Keeping, Limits};
use api::{Api, Auth, FileService, Served};
use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Method, Request},
};
use dispatch::{Dispatch, Gone, Launch, Link, Settings};
use egress::{Egress, Rules};
use http_body_util::BodyExt;
use prediction::{LoadSpec, Timestamp, Weights};
use schema::{
    ModelSchema, Output,
    config::{Account, OutputFiles},
};
use serde_json::{Value, json};
use store::{MemoryStore, Store, feed::Feed, files::Files};
use tempfile::TempDir;
use tower::ServiceExt;
use worker::echo::Echo;

schema::input! {
    /// What the echo model reads, and two fields that only the checks read.
    pub struct EchoInput {
        text: String { description: "What to say." }
        pieces: Option<i64> { description: "In how many pieces.", min: 1 }
        temperature: f64 { description: "Unused.", default: 0.7, min: 0.0, max: 5.0 }
        style: String { description: "Unused.", default: "plain", choices: &["plain", "loud"] }
        hold: Option<bool> { description: "Wait to be cancelled." }
        fail: Option<String> { description: "Fail so." }
    }
}

schema::input! {
    /// What the same model reads when it takes and gives files.
    pub struct FileInput {
        text: Option<String> { description: "What to write." }
        file: Option<schema::Uri> { description: "What to describe." }
        gives: Option<String> { description: "In which form." }
        mime: Option<String> { description: "Of which type." }
    }
}

/// The echo model once for every shape of output that holds files, and once for text about a file.
fn painters() -> impl Iterator<Item = (&'static str, ModelSchema)> + Clone {
    let text = json!({ "type": "string" });
    let uri = json!({ "type": "string", "format": "uri" });
    let object = json!({ "type": "object", "title": "Output", "properties": { "text": text, "text_file": uri } });
    let outputs = [
        ("ear", Output::TextIterator),
        ("one", Output::Uri),
        ("list", Output::UriList),
        ("each", Output::UriIterator),
        ("object", Output::Object(object)),
    ];
    outputs.into_iter().map(|(target, output)| (target, ModelSchema { input: FileInput::fields(), output }))
}

pub const VERSION: &str = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa";
pub const ALIAS: &str = "dp-cf05cc8e6e5b3c0bc6e1b6c9f5e4a2d8";
/// People paste ids that lost a digit.
pub const SHORT_ALIAS: &str = "7762fd07cf82c948538e41f63f77d685e02b063e37291ef63919ea9f8f6e9b5";
pub const BODY_BYTES: u64 = 64 << 10;
/// As far as the clients are concerned.
pub const HOST: &str = "gears.example:5000";

pub struct EchoThread;

impl Launch for EchoThread {
    fn launch(&self, _device: &str) -> std::io::Result<Link> {
        let (to, inbox) = std::sync::mpsc::channel();
        let (send, from) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let registry: worker::Registry = BTreeMap::from([("echo".to_owned(), Arc::new(Echo) as _)]);
            worker::run(registry, worker::Owned::cpu(), inbox, |frame| send.send(frame).is_ok());
        });
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

pub struct Server {
    router: Router,
    pub store: Arc<MemoryStore>,
    pub feed: Feed,
    /// Where files lie.
    _folder: TempDir,
}

pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Reply {
    /// Every body ends its line.
    pub fn json(&self) -> Value {
        assert_eq!(self.bytes.last(), Some(&b'\n'), "{}", self.text());
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn keys(&self) -> Vec<String> {
        keys(&self.json())
    }
}

pub fn keys(value: &Value) -> Vec<String> {
    value.as_object().expect("an object").keys().cloned().collect()
}

#[derive(Clone, Copy)]
pub struct Options {
    pub auth: Auth,
    pub waiting_limit: u64,
    pub models: usize,
    /// Predictions that the model takes at once.
    pub concurrency: u32,
    pub outputs: OutputFiles,
    pub file_bytes: u64,
    /// Of uploads and outputs.
    pub file_seconds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            auth: Auth::OpenUntilToken,
            waiting_limit: 256,
            models: 0,
            concurrency: 8,
            outputs: OutputFiles::Auto,
            file_bytes: 1 << 20,
            file_seconds: 60,
        }
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let memory = Arc::new(MemoryStore::new());
        let store: Arc<dyn Store> = memory.clone();
        let feed = Feed::new(store.clone());
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(memory.clone(), &folder.path().join("files")).await.unwrap();
        let spec = |target: &str| LoadSpec {
            concurrency: Some(options.concurrency),
            ..LoadSpec::new(target, "echo", Weights::Path("unused".into()))
        };
        let on = |target: &str| dispatch::Served { preload: true, ..dispatch::Served::new(spec(target)) };
        let targets = std::iter::once("echo").chain(painters().map(|(target, _)| target));
        let settings =
            Settings { waiting_limit: options.waiting_limit, ..Settings::new("test", targets.map(on).collect()) };
        let schemas = painters().map(|(target, schema)| (target.to_owned(), schema));
        let rules = Rules { allow_loopback: true, allow_private: false };
        let (egress, inputs) = (Egress::new(rules).unwrap(), folder.path().join("inputs"));
        let limits = Limits { bytes: 1 << 20, seconds: 60 };
        let inputs = Fetching::new(egress, Some(files.clone()), &inputs, limits, schemas.clone().collect()).unwrap();
        let launch = Arc::new(Keeping::new(Arc::new(EchoThread), files.clone(), options.file_seconds, schemas));
        let (inputs, its_feed) = (Arc::new(inputs), feed.clone());
        let dispatch = Dispatch::start_with(store.clone(), its_feed, launch, inputs, settings).await.unwrap();
        // Its worker has said hello: `/readyz` hangs on that.
        while !dispatch.health().devices.iter().any(|device| device.worker) {
            tokio::task::yield_now().await;
        }
        let served = |index: usize| Served {
            target: "echo".into(),
            names: vec![format!("more/m{index}")],
            description: format!("Filler number {index}"),
            version: format!("{index:064x}"),
            aliases: BTreeMap::new(),
            schema: schema(),
            created_at: Timestamp(index as i64 * 1_000_000),
        };
        let echo = Served {
            names: vec!["pinion/echo".into(), "meta/meta-llama-3-70b-instruct".into()],
            description: "Says back what it was told; stands in for Llama".into(),
            version: VERSION.into(),
            aliases: BTreeMap::from([
                (ALIAS.into(), "meta/meta-llama-3-70b-instruct".into()),
                (SHORT_ALIAS.into(), "pinion/echo".into()),
            ]),
            created_at: Timestamp(1_700_000_000_000_000),
            ..served(0)
        };
        let painters = painters().filter(|_| options.models == 0).map(|(target, schema)| Served {
            target: target.into(),
            names: vec![format!("files/{target}")],
            version: format!("{target:0>64}"),
            schema,
            ..served(0)
        });
        let router = api::router(Api {
            store,
            feed: feed.clone(),
            dispatch,
            served: std::iter::once(echo).chain((1..=options.models).map(served)).chain(painters).collect(),
            account: Account { username: "pinion".into(), name: "Pinion".into() },
            auth: options.auth,
            webhook_rules: rules,
            body_bytes: BODY_BYTES,
            files: FileService {
                files,
                file_bytes: options.file_bytes,
                retention_seconds: options.file_seconds,
                outputs: options.outputs,
            },
        });
        Self { router, store: memory, feed, _folder: folder }
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
        let response = self.open(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("the body arrives").to_bytes();
        Reply { status: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    /// The answer with its body still to come.
    pub async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> axum::response::Response {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = Request::builder().method(method).uri(path).header("host", HOST);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[("content-type", "application/json")], Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// Creates by model and waits for the end.
    pub async fn run(&self, input: Value) -> Value {
        let body = json!({ "input": input }).to_string();
        let reply = self.send("POST", "/v1/models/pinion/echo/predictions", &[("prefer", "wait=30")], body).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()
    }

    /// Creates one that runs until it is cancelled.
    pub async fn hold(&self, text: &str) -> Value {
        let input = json!({ "text": text, "hold": true });
        self.post("/v1/models/pinion/echo/predictions", json!({ "input": input })).await.json()
    }

    /// Reads the stream to its end: it closes when the prediction ends.
    pub async fn stream(&self, prediction: &Value, headers: &[(&str, &str)]) -> Reply {
        self.send("GET", path_of(prediction["urls"]["stream"].as_str().unwrap()), headers, Body::empty()).await
    }
}

fn schema() -> ModelSchema {
    ModelSchema { input: EchoInput::fields(), output: Output::TextIterator }
}

/// Of one of our absolute URLs.
pub fn path_of(url: &str) -> &str {
    url.strip_prefix(&format!("http://{HOST}")).unwrap_or_else(|| panic!("{url} is rooted elsewhere"))
}
