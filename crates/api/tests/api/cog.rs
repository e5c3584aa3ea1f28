//! The Cog face over the real dispatch and the echo model, where a model gives files: as data URIs, uploaded, and with an
//! upload target that is down; and what only shows inside one process.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use ::files::{Fetching, Limits};
use api::cog::{Cog, Engine, Settings};
use axum::{
    Router,
    body::{Body, Bytes},
    http::Request,
    response::Response,
    routing::{post, put},
};
use dispatch::{Dispatch, Lost};
use egress::{Egress, Rules};
use http_body_util::BodyExt;
use prediction::{LoadSpec, Weights};
use schema::{ModelSchema, Output};
use serde_json::{Value, json};
use store::{MemoryStore, Store, feed::Feed};
use tokio::sync::{Notify, mpsc};
use tower::ServiceExt;

use crate::harness::{EchoThread, FileInput};

schema::input! {
    /// What the echo model reads when it is to go on.
    struct HeldInput {
        text: String { description: "What to say." }
        hold: Option<bool> { description: "Wait to be cancelled." }
    }
}

schema::input! {
    /// What it reads when its logs grow.
    struct LoggedInput {
        text: String { description: "What to say." }
        after: Option<String> { description: "Say it when this is there." }
        follows: Option<String> { description: "What is logged." }
        until: Option<String> { description: "End when this is there." }
    }
}

struct Container {
    cog: Cog,
    store: Arc<MemoryStore>,
    _folder: tempfile::TempDir,
}

impl Container {
    /// Gives files, one after the other.
    async fn start(upload_url: Option<String>) -> Self {
        Self::serving(ModelSchema { input: FileInput::fields(), output: Output::UriIterator }, upload_url).await
    }

    async fn serving(schema: ModelSchema, upload_url: Option<String>) -> Self {
        Self::with(Settings { upload_url, ..settings(schema) }).await
    }

    async fn with(settings: Settings) -> Self {
        let (schema, cog) = (settings.schema.clone(), Cog::new(settings));
        let store = Arc::new(MemoryStore::new());
        let feed = Feed::new(store.clone());
        let folder = tempfile::tempdir().unwrap();
        let egress = Egress::new(Rules { allow_loopback: true, allow_private: true }).unwrap();
        let limits = Limits { bytes: 1 << 20, seconds: 60 };
        let schemas = [("echo".to_owned(), schema)].into();
        let inputs = Fetching::new(egress.clone(), None, &folder.path().join("inputs"), limits, schemas).unwrap();
        let spec = LoadSpec { concurrency: Some(1), ..LoadSpec::new("echo", "echo", Weights::Path("unused".into())) };
        let settings = dispatch::Settings {
            lost: Lost { runs: 1, ..Lost::default() },
            ..dispatch::Settings::new("cog", vec![dispatch::Served { pinned: true, ..dispatch::Served::new(spec) }])
        };
        let launch = cog.overhear(Arc::new(EchoThread));
        let dispatch =
            Dispatch::start_with(store.clone(), feed.clone(), launch, Arc::new(inputs), settings).await.unwrap();
        let version = "0".repeat(64);
        cog.started(Engine { store: store.clone(), feed, dispatch, egress, version, keep: Box::new(()) });
        cog.setup().settled().await;
        Self { cog, store, _folder: folder }
    }

    async fn create(&self, body: Value) -> Value {
        let answer = self.post("application/json", body).await;
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    async fn stream(&self, body: Value) -> Response {
        self.post("text/event-stream", body).await
    }

    /// To a stream that there is.
    async fn attach(&self, id: &str) -> Response {
        let request = Request::put(format!("/predictions/{id}")).header("accept", "text/event-stream");
        self.cog.router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn health(&self) -> Value {
        let answer =
            self.cog.router().oneshot(Request::get("/health-check").body(Body::empty()).unwrap()).await.unwrap();
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    async fn post(&self, accept: &str, body: Value) -> Response {
        let request = Request::post("/predictions").header("content-type", "application/json").header("accept", accept);
        self.cog.router().oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap()
    }
}

fn settings(schema: ModelSchema) -> Settings {
    Settings {
        target: "echo".into(),
        schema,
        slots: 1,
        queue: false,
        keep: None,
        upload_url: None,
        file_name: ::files::output_name,
        stream_history: 1024,
        throttle: Duration::from_millis(500),
        webhook_token: None,
        user_agent: None,
        body_bytes: 1 << 20,
        ready_file: None,
    }
}

fn two_files() -> Value {
    json!({ "id": "mine", "input": { "text": "words", "gives": "each", "mime": "text/plain" } })
}

/// A server that keeps what is put and says where it lies.
async fn shelf() -> (String, mpsc::UnboundedReceiver<(String, String, Bytes)>) {
    let (send, puts) = mpsc::unbounded_channel();
    let keep = move |request: Request<Body>| {
        let send = send.clone();
        async move {
            let (head, body) = request.into_parts();
            let header = |name| head.headers[name].to_str().unwrap().to_owned();
            let about = format!("{} {}", header("x-prediction-id"), header("content-type"));
            let path = head.uri.path().to_owned();
            let body = body.collect().await.unwrap().to_bytes();
            send.send((path, about, body)).unwrap();
            [("location", "http://cdn.example/there.txt?signature=1")]
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/kept", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/kept/{name}", put(keep))).await });
    (url, puts)
}

#[tokio::test]
async fn files_are_data_uris_unless_there_is_somewhere_to_put_them() {
    let inline = Container::start(None).await.create(two_files()).await;
    assert_eq!(inline["output"], json!(["data:text/plain,words", "data:text/plain,words"]));
    let (url, mut puts) = shelf().await;
    let put = Container::start(Some(url)).await.create(two_files()).await;
    let there = "http://cdn.example/there.txt";
    assert_eq!(
        (&put["status"], &put["output"]),
        (&json!("succeeded"), &json!([there, there])),
        "without its signature"
    );
    for name in ["/kept/out-0.txt", "/kept/out-1.txt"] {
        let (path, about, body) = puts.recv().await.unwrap();
        assert_eq!((path.as_str(), about.as_str()), (name, "mine text/plain"));
        assert_eq!(body, "words");
    }
}

#[tokio::test]
async fn an_upload_target_that_is_down_fails_the_prediction_and_not_the_server() {
    let container = Container::start(Some("http://127.0.0.1:1/kept".into())).await;
    for _ in 0..2 {
        let failed = container.create(two_files()).await;
        assert_eq!((&failed["status"], &failed["output"]), (&json!("failed"), &Value::Null), "{failed}");
        let error = failed["error"].as_str().unwrap();
        assert!(error.starts_with("Failed to upload output: upload request failed: "), "{error}");
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_prediction_that_has_ended() {
    let container = Container::start(None).await;
    for _ in 0..3 {
        container.create(two_files()).await;
    }
    let all = store::ListQuery { page_size: 10, ..store::ListQuery::default() };
    assert!(container.store.list(&all).await.unwrap().predictions.is_empty());
}

/// Everything that a stream says up to these words.
async fn read_to(body: &mut Body, words: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(words) {
        seen += std::str::from_utf8(body.frame().await.unwrap().unwrap().data_ref().unwrap()).unwrap();
    }
    seen
}

#[tokio::test]
async fn silence_on_a_stream_is_broken_by_a_comment() {
    let container =
        Container::serving(ModelSchema { input: HeldInput::fields(), output: Output::TextIterator }, None).await;
    let answer = container.stream(json!({ "input": { "text": "x", "hold": true } })).await;
    let mut body = answer.into_body();
    read_to(&mut body, "event: output").await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert_eq!(body.frame().await.unwrap().unwrap().data_ref().unwrap(), ":\n\n");
    assert!(began.elapsed() <= Duration::from_secs(16), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_model_whose_output_does_not_grow_has_no_stream() {
    let container = Container::serving(ModelSchema { input: FileInput::fields(), output: Output::UriList }, None).await;
    assert_eq!(container.stream(two_files()).await.status(), 406);
}

#[tokio::test]
async fn a_stream_has_1024_readers_at_most() {
    let container =
        Container::serving(ModelSchema { input: HeldInput::fields(), output: Output::TextIterator }, None).await;
    let mut readers = vec![container.stream(json!({ "id": "s", "input": { "text": "x", "hold": true } })).await];
    while readers.len() < 1024 {
        readers.push(container.attach("s").await);
        assert_eq!(readers.last().unwrap().status(), 200, "reader {}", readers.len());
    }
    let refused = container.attach("s").await;
    assert_eq!(refused.status(), 429);
    let body: Value = serde_json::from_slice(&refused.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(body, json!({ "error": "Too many stream subscribers" }));
    readers.pop();
    assert_eq!(container.attach("s").await.status(), 200, "one has left");
}

/// Takes webhooks one by one: the first is answered when it is told to.
async fn slow_receiver() -> (String, Arc<Notify>, mpsc::UnboundedReceiver<Value>) {
    let (send, posted) = mpsc::unbounded_channel();
    let go_on = Arc::new(Notify::new());
    let first = Arc::new(Mutex::new(Some(go_on.clone())));
    let take = move |body: Bytes| {
        send.send(serde_json::from_slice(&body).unwrap()).unwrap();
        let first = first.lock().unwrap().take();
        async move {
            if let Some(first) = first {
                first.notified().await;
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(take))).await });
    (url, go_on, posted)
}

#[tokio::test]
async fn an_output_is_told_however_many_logs_wait_behind_it() {
    let schema = ModelSchema { input: LoggedInput::fields(), output: Output::TextIterator };
    let container = Container::serving(schema, None).await;
    let (url, go_on, mut posted) = slow_receiver().await;
    let folder = tempfile::tempdir().unwrap();
    let [after, lines, until] = ["after", "lines", "until"].map(|name| folder.path().join(name));
    let input = json!({ "text": "a", "after": after, "follows": lines, "until": until });
    let events = ["start", "output", "completed"];
    let asked = json!({ "input": input, "webhook": url, "webhook_events_filter": events });
    let mut body = container.stream(asked).await.into_body();
    let mut told = vec![posted.recv().await.unwrap()];
    // While the receiver thinks about the start comes the output, and what it did not ask for.
    fs::write(after, "").unwrap();
    read_to(&mut body, "event: output").await;
    for number in 0..70 {
        let text: String = (0..=number).map(|number| format!("line {number}\n")).collect();
        fs::write(folder.path().join("new"), text).unwrap();
        fs::rename(folder.path().join("new"), &lines).unwrap();
        read_to(&mut body, &format!("line {number}\\n")).await;
    }
    fs::write(until, "").unwrap();
    read_to(&mut body, "event: completed").await;
    go_on.notify_one();
    while told.last().is_some_and(|state| state["status"] == "processing") {
        told.push(posted.recv().await.unwrap());
    }
    let told: Vec<_> = told.iter().map(|state| (state["status"].as_str().unwrap(), &state["output"])).collect();
    assert_eq!(told, [("processing", &Value::Null), ("processing", &json!(["a"])), ("succeeded", &json!(["a"]))]);
}

#[test]
fn the_first_ready_that_is_asked_for_leaves_a_file() {
    // One thread for work that blocks, so that what comes after it has waited for it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run/cog/ready");
        let schema = ModelSchema { input: HeldInput::fields(), output: Output::TextIterator };
        let container = Container::with(Settings { ready_file: Some(file.clone()), ..settings(schema) }).await;
        assert!(!file.exists(), "nobody has asked");
        let mut held = container.stream(json!({ "input": { "text": "x", "hold": true } })).await.into_body();
        read_to(&mut held, "event: start").await;
        assert_eq!(container.health().await["status"], "BUSY");
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert!(!file.exists(), "it was not ready");
        drop(held);
        while container.health().await["status"] != "READY" {
            tokio::task::yield_now().await;
        }
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert!(file.exists());
    });
}
