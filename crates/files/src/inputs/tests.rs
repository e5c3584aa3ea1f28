//! What becomes of an input that names files, by every way of naming one.

use std::sync::{Arc, Mutex};

use dispatch::Say;
use egress::Rules;
use prediction::Id;
use schema::Output;
use serde_json::json;
use store::MemoryStore;
use store::files::{About, File, FileKind};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

schema::input! {
    /// What the model reads.
    pub struct Input {
        audio: schema::Uri { description: "A file." }
        mask: Option<schema::Uri> { description: "Another." }
        prompt: Option<String> { description: "Fetched by nobody." }
    }
}

const ORIGIN: &str = "http://127.0.0.1:5000";
const LIMITS: Limits = Limits { bytes: 1000, seconds: 60 };

struct Bench {
    folder: TempDir,
    files: Files,
    fetching: Fetching,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(Arc::new(MemoryStore::new()), &folder.path().join("files")).await.unwrap();
        let egress = Egress::new(Rules { allow_loopback: true, allow_private: false }).unwrap();
        let schema = ModelSchema { input: Input::fields(), output: Output::Text };
        let schemas = BTreeMap::from([("echo".to_owned(), schema)]);
        let inputs = folder.path().join("in puts");
        let fetching = Fetching::new(egress, Some(files.clone()), &inputs, LIMITS, schemas).unwrap();
        Self { folder, files, fetching }
    }

    async fn prepare(&self, input: Value) -> Result<Prepared, String> {
        self.prepare_saying(input, Box::new(|_| {})).await
    }

    async fn prepare_saying(&self, input: Value, say: Say) -> Result<Prepared, String> {
        let input = input.as_object().unwrap().clone();
        let asked = Asked { id: Id::from("p"), target: "echo".into(), origin: ORIGIN.into(), input };
        self.fetching.prepare(asked, say).await
    }

    async fn fails(&self, audio: &str) -> String {
        let failed = self.prepare(json!({ "audio": audio })).await.err().expect("it fails");
        until_none_is_left(self).await;
        failed
    }

    /// Predictions whose files are here.
    fn left(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("in puts")).unwrap().count()
    }

    async fn stored(&self, kind: FileKind, name: &str, bytes: &[u8]) -> File {
        let mut content = self.files.receive().await.unwrap();
        content.write(bytes).await.unwrap();
        let (name, content_type) = (name.to_owned(), "application/octet-stream".to_owned());
        let about = About { kind, name, content_type, metadata: Map::new(), lives_seconds: 60 };
        self.files.keep(content, about).await.unwrap()
    }
}

/// The path, and what is there.
fn read(prepared: &Prepared, field: &str) -> (PathBuf, Vec<u8>) {
    let uri = schema::Uri(prepared.input[field].as_str().unwrap().to_owned());
    let path = uri.path().unwrap();
    (path.clone(), std::fs::read(path).unwrap())
}

/// Every removal that was handed to a thread has happened when nothing is left.
async fn until_none_is_left(bench: &Bench) {
    while bench.left() > 0 {
        tokio::task::yield_now().await;
    }
}

/// Answers every call so.
async fn server(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    url
}

fn file(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: audio/flac\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_data_uri_a_url_and_an_upload_become_local_files_with_their_endings() {
    let bench = Bench::new().await;
    let url = server(file("from afar")).await;
    let upload = bench.stored(FileKind::Upload, "my talk.WAV", b"uploaded").await;
    let output = bench.stored(FileKind::Output, "out-0.png", b"made").await;
    for (uri, name, bytes) in [
        ("data:audio/mpeg;base64,aGk=".to_owned(), "audio.mp3", &b"hi"[..]),
        ("data:;name=talk.ogg,hi".to_owned(), "audio.ogg", b"hi"),
        (format!("{url}/talks/one.mp3?key=1"), "audio.mp3", b"from afar"),
        (format!("{url}/talks/one"), "audio.flac", b"from afar"),
        (format!("{ORIGIN}/v1/files/{}", upload.id), "audio.wav", b"uploaded"),
        (format!("https://other.example/v1/files/{}", upload.id), "audio.wav", b"uploaded"),
        (format!("{ORIGIN}{}", output.reference()), "audio.png", b"made"),
    ] {
        let prepared = bench.prepare(json!({ "audio": uri, "prompt": "https://gears.example/" })).await.unwrap();
        let (path, content) = read(&prepared, "audio");
        assert_eq!((path.file_name().unwrap().to_str(), content.as_slice()), (Some(name), bytes), "{uri}");
        assert_eq!(prepared.input["prompt"], "https://gears.example/");
        Input::parse(&prepared.input).unwrap();
    }
    until_none_is_left(&bench).await;
}

#[tokio::test]
async fn files_stay_until_the_prediction_lets_go_whatever_becomes_of_the_upload() {
    let bench = Bench::new().await;
    let upload = bench.stored(FileKind::Upload, "a.wav", b"uploaded").await;
    let url = format!("{ORIGIN}/v1/files/{}", upload.id);
    let prepared = bench.prepare(json!({ "audio": url, "mask": "data:,m" })).await.unwrap();
    assert!(bench.files.delete(&upload.id).await.unwrap());
    assert_eq!((read(&prepared, "audio").1, read(&prepared, "mask").1), (b"uploaded".to_vec(), b"m".to_vec()));
    assert_eq!(bench.left(), 1);
    drop(prepared);
    until_none_is_left(&bench).await;
}

#[tokio::test]
async fn what_fails_names_the_field_the_place_and_the_reason() {
    let bench = Bench::new().await;
    let gone = format!("{ORIGIN}/v1/files/0123456789");
    let missing = server("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".into()).await;
    let large = server(file(&"x".repeat(1001))).await;
    let sent_on = "HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/x\r\ncontent-length: 0\r\n\r\n";
    let sent_on = server(sent_on.into()).await;
    for (uri, why) in [
        ("data:;base64,A".to_owned(), "input audio: the data URI is not a data URI: its base64 is broken".to_owned()),
        (format!("data:,{}", "x".repeat(1001)), "input audio: the data URI is 1001 bytes; at most 1000 may be".into()),
        (gone.clone(), format!("input audio: {gone}: there is no such file; it was deleted or has expired")),
        (format!("{missing}/a?key=secret"), format!("input audio: {missing}/a: answered 404 Not Found")),
        (format!("{large}/a"), format!("input audio: {large}/a: is 1001 bytes; at most 1000 may be")),
        (
            format!("{sent_on}/a"),
            format!(
                "input audio: {sent_on}/a: redirects to 10.0.0.1, which points to 10.0.0.1, a private address, which is \
                 allowed only with `egress: allow_private` in cog.yaml"
            ),
        ),
    ] {
        let failed = bench.prepare(json!({ "audio": uri })).await.err().expect("it fails");
        assert_eq!(failed, why, "{uri}");
        until_none_is_left(&bench).await;
    }
    assert!(bench.fails("ftp://gears.example/a").await.contains("must be an http or https URL, not ftp"));
}

#[tokio::test]
async fn who_stops_waiting_leaves_nothing() {
    let bench = Bench::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/never", listener.local_addr().unwrap());
    let (asked, called) = (bench.prepare(json!({ "audio": url })), listener.accept());
    tokio::select! {
        _ = asked => panic!("nobody answered"),
        _ = called => {}
    }
    until_none_is_left(&bench).await;
}

#[tokio::test]
async fn only_files_that_are_elsewhere_concern_anybody() {
    let bench = Bench::new().await;
    let concerns = |target: &str, input: Value| bench.fetching.concerns(target, input.as_object().unwrap());
    assert!(concerns("echo", json!({ "audio": "https://gears.example/a" })));
    assert!(concerns("echo", json!({ "mask": "data:,x" })));
    assert!(!concerns("echo", json!({ "prompt": "https://gears.example/a", "mask": null })));
    assert!(!concerns("echo", json!({ "audio": "file:///here" })), "it is here already");
    assert!(!concerns("other", json!({ "audio": "https://gears.example/a" })));
}

#[tokio::test]
async fn a_start_removes_what_an_earlier_life_left() {
    let bench = Bench::new().await;
    let inputs = bench.folder.path().join("in puts");
    std::fs::create_dir(inputs.join("left")).unwrap();
    std::fs::write(inputs.join("left/audio.wav"), "by a crash").unwrap();
    let egress = Egress::new(Rules::default()).unwrap();
    Fetching::new(egress, None, &inputs, LIMITS, BTreeMap::new()).unwrap();
    assert_eq!(bench.left(), 0);
}

#[tokio::test]
async fn a_ninth_download_waits_its_turn_and_says_so() {
    let bench = Arc::new(Bench::new().await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/held", listener.local_addr().unwrap());
    let mut held = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..FETCHES_AT_ONCE {
        let (bench, url) = (bench.clone(), url.clone());
        waiting.push(tokio::spawn(async move { bench.prepare(json!({ "audio": url })).await.map(drop) }));
        held.push(listener.accept().await.unwrap().0);
    }
    let said = Arc::new(Mutex::new(Vec::new()));
    let (say, heard) = (said.clone(), tokio::sync::Notify::new());
    let heard = Arc::new(heard);
    let tell = heard.clone();
    let say: Say = Box::new(move |line| {
        say.lock().unwrap().push(line);
        tell.notify_one();
    });
    let ninth = tokio::spawn({
        let (bench, url) = (bench.clone(), url.clone());
        async move { bench.prepare_saying(json!({ "audio": url }), say).await.map(drop) }
    });
    heard.notified().await;
    assert_eq!(*said.lock().unwrap(), ["waiting for other downloads\n"]);
    bench.prepare(json!({ "audio": "data:,x" })).await.unwrap();
    let mut first = held.remove(0);
    first.write_all(file("x").as_bytes()).await.unwrap();
    let (mut called, _) = listener.accept().await.unwrap();
    called.write_all(file("x").as_bytes()).await.unwrap();
    ninth.await.unwrap().unwrap();
    waiting.iter().skip(1).for_each(|task| task.abort());
}
