//! Files that a model gives: how answers name them, and what is behind the names.

use schema::config::OutputFiles;
use serde_json::{Value, json};

use crate::harness::{HOST, Options, Server, path_of};

const WAIT: (&str, &str) = ("prefer", "wait=30");
const SECURE: (&str, &str) = ("x-forwarded-proto", "https");
const DATA: &str = "data:image/png;base64,aGVsbG8=";

impl Server {
    async fn paint(&self, how: &str, headers: &[(&str, &str)]) -> Value {
        let body = json!({ "input": { "text": "hello", "gives": how, "mime": "image/png" } }).to_string();
        let reply = self.send("POST", &format!("/v1/models/files/{how}/predictions"), headers, body).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()
    }

    async fn polled(&self, prediction: &Value, headers: &[(&str, &str)]) -> Value {
        let path = format!("/v1/predictions/{}", prediction["id"].as_str().unwrap());
        self.send("GET", &path, headers, "").await.json()
    }

    /// The path of a file behind https.
    async fn painted_path(&self) -> String {
        let painted = self.paint("one", &[WAIT, SECURE]).await;
        path_of(&painted["output"].as_str().unwrap().replacen("https:", "http:", 1)).to_owned()
    }
}

fn is_https(url: &Value, name: &str) -> bool {
    let text = url.as_str().unwrap();
    text.starts_with(&format!("https://{HOST}/v1/outputs/")) && text.ends_with(&format!("/{name}"))
}

#[tokio::test]
async fn over_http_a_waiting_and_a_polling_caller_read_the_files_themselves() {
    let server = Server::start().await;
    for (how, output) in [
        ("one", json!(DATA)),
        ("list", json!([DATA, DATA])),
        ("each", json!([DATA, DATA])),
        ("object", json!({ "text": "hello", "text_file": DATA })),
    ] {
        let waited = server.paint(how, &[WAIT]).await;
        assert_eq!((&waited["status"], &waited["output"]), (&json!("succeeded"), &output), "{how}");
        assert_eq!(server.polled(&waited, &[]).await["output"], output, "{how}");
    }
}

#[tokio::test]
async fn over_https_everybody_reads_urls() {
    let server = Server::start().await;
    for (how, places) in [
        ("one", vec![("", "output.png")]),
        ("list", vec![("/0", "out-0.png"), ("/1", "out-1.png")]),
        ("each", vec![("/0", "output.png"), ("/1", "output.png")]),
        ("object", vec![("/text_file", "text_file.png")]),
    ] {
        let waited = server.paint(how, &[WAIT, SECURE]).await;
        let polled = server.polled(&waited, &[SECURE]).await;
        assert_eq!(waited["output"], polled["output"], "{how}");
        for (place, name) in places {
            assert!(is_https(waited["output"].pointer(place).unwrap(), name), "{how}: {}", waited["output"]);
        }
    }
}

#[tokio::test]
async fn cog_yaml_may_ask_for_urls_or_for_data_and_a_waiting_caller_over_http_gets_data_all_the_same() {
    let server = Server::with(Options { outputs: OutputFiles::Url, ..Options::default() }).await;
    let waited = server.paint("one", &[WAIT]).await;
    assert_eq!(waited["output"], DATA);
    let polled = server.polled(&waited, &[]).await["output"].as_str().unwrap().to_owned();
    assert!(polled.starts_with(&format!("http://{HOST}/v1/outputs/")), "{polled}");
    assert_eq!(server.get(path_of(&polled)).await.text(), "hello");
    let server = Server::with(Options { outputs: OutputFiles::Data, ..Options::default() }).await;
    assert_eq!(server.paint("one", &[WAIT, SECURE]).await["output"], DATA);
}

#[tokio::test]
async fn lists_and_webhooks_hold_urls() {
    let server = Server::start().await;
    let painted = server.paint("one", &[WAIT]).await;
    let is_url = |value: &Value| value.as_str().unwrap().starts_with(&format!("http://{HOST}/v1/outputs/"));
    assert!(is_url(&server.get("/v1/predictions").await.json()["results"][0]["output"]));
    let id = painted["id"].as_str().unwrap();
    let prediction = server.feed.snapshot(&id.into()).await.unwrap().unwrap();
    let webhook: Value = serde_json::from_slice(&api::body(&prediction)).unwrap();
    assert!(is_url(&webhook["output"]), "{webhook}");
}

#[tokio::test]
async fn an_output_is_served_without_a_token_with_its_type_its_length_and_to_pages() {
    let server = Server::start().await;
    let path = server.painted_path().await;
    let reply = server.get(&path).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
    for (name, value) in [
        ("content-type", "image/png"),
        ("content-length", "5"),
        ("accept-ranges", "bytes"),
        ("etag", "\"5d41402abc4b2a76b9719d911017c592\""),
        ("access-control-allow-origin", "*"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "sandbox"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    let head = server.send("HEAD", &path, &[], "").await;
    assert_eq!((head.status, head.bytes.len(), head.header("content-length")), (200, 0, Some("5")));
    let asked = server.send("OPTIONS", &path, &[("origin", "https://gears.example")], "").await;
    assert_eq!((asked.status, asked.header("access-control-allow-origin")), (204, Some("*")));
    assert_eq!(asked.header("access-control-allow-headers"), Some("*"));
    let foreign = [("origin", "https://gears.example")];
    assert_eq!(server.send("GET", &path, &foreign, "").await.status, 200, "a page of another site too");
}

#[tokio::test]
async fn a_part_of_an_output_is_a_206_and_one_outside_of_it_a_416() {
    let server = Server::start().await;
    let path = server.painted_path().await;
    let part = server.send("GET", &path, &[("range", "bytes=1-3")], "").await;
    assert_eq!((part.status, part.text().as_str()), (206, "ell"));
    assert_eq!((part.header("content-range"), part.header("content-length")), (Some("bytes 1-3/5"), Some("3")));
    let head = server.send("HEAD", &path, &[("range", "bytes=-2")], "").await;
    assert_eq!((head.status, head.header("content-range"), head.bytes.len()), (206, Some("bytes 3-4/5"), 0));
    let outside = server.send("GET", &path, &[("range", "bytes=5-")], "").await;
    assert_eq!((outside.status, outside.header("content-range")), (416, Some("bytes */5")));
}

#[tokio::test]
async fn an_output_that_has_expired_or_never_was_is_a_404() {
    let server = Server::with(Options { file_seconds: 0, ..Options::default() }).await;
    let path = server.painted_path().await;
    let gone = server.get(&path).await;
    assert_eq!((gone.status, gone.text().as_str()), (404, "{\"detail\":\"File not found\"}\n"));
    assert_eq!(server.get("/v1/outputs/nothing/out.png").await.status, 404);
    // Who polls over http is told where it was.
    let painted = server.paint("one", &[WAIT]).await;
    assert!(painted["output"].as_str().unwrap().starts_with(&format!("http://{HOST}/v1/outputs/")));
}

#[tokio::test]
async fn an_upload_is_no_output_and_an_output_no_upload() {
    let server = Server::start().await;
    let upload = server.uploaded("mine").await["id"].as_str().unwrap().to_owned();
    assert_eq!(server.get(&format!("/v1/outputs/{upload}/a.wav")).await.status, 404);
    let output = server.painted_path().await.split('/').nth(3).unwrap().to_owned();
    for path in [format!("/v1/files/{output}"), format!("/v1/files/{output}/download")] {
        assert_eq!(server.get(&path).await.status, 404, "{path}");
    }
    assert_eq!(server.send("DELETE", &format!("/v1/files/{output}"), &[], "").await.status, 404);
}

#[tokio::test]
async fn an_output_is_an_input_for_the_next_model() {
    let server = Server::start().await;
    let painted = server.paint("one", &[WAIT, SECURE]).await;
    let heard = server.hear(painted["output"].as_str().unwrap()).await;
    assert!(heard["output"][0].as_str().unwrap().starts_with("5 bytes, sha256 2cf24d"), "{heard}");
}

/// One client makes files of what it reads under `/v1/files/`, and only there.
#[tokio::test]
async fn a_stream_of_files_has_one_event_for_each_under_the_path_of_files() {
    let server = Server::with(Options { auth: api::Auth::OpenUntilToken, ..Options::default() }).await;
    for how in ["list", "each"] {
        let painted = server.paint(how, &[WAIT]).await;
        let url = painted["urls"]["stream"].as_str().unwrap();
        assert!(url.starts_with(&format!("http://{HOST}/v1/files/")), "{url}");
        let stream = server.stream(&painted, &[]).await;
        assert_eq!(stream.header("content-type"), Some("text/event-stream"));
        let data = format!("data: {DATA}");
        let text = stream.text();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("data: ")).collect();
        assert_eq!(lines, [data.as_str(), data.as_str(), "data: {}"], "{how}");
        let secure = server.stream(&painted, &[SECURE]).await.text();
        assert_eq!(secure.matches(&format!("data: https://{HOST}/v1/outputs/")).count(), 2, "{how}: {secure}");
    }
    // An object with a file in it is no file: its description would be taken for one.
    for other in [server.run(json!({ "text": "hi" })).await, server.paint("object", &[WAIT]).await] {
        assert!(other["urls"]["stream"].as_str().unwrap().contains("/v1/streams/"));
    }
}
