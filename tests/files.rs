//! Files with the official clients: a server in this process over the echo model, on disk and on a port, and the clients'
//! own scripts. Knows what the scripts print.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ::files::{Fetching, Keeping, Limits};
use api::{Api, Auth, FileService, Served};
use dispatch::{Dispatch, Gone, Launch, Link, Settings};
use egress::{Egress, Rules};
use prediction::{LoadSpec, Timestamp, Weights};
use schema::config::{Account, OutputFiles};
use schema::{ModelSchema, Output};
use serde_json::json;
use store::feed::Feed;
use store::files::Files;
use store::{SqliteStore, Store};
use worker::echo::Echo;

use crate::support::{clients, output_of, pinion, tests_folder};

schema::input! {
    /// What the echo model reads when it takes and gives files.
    struct FileInput {
        text: Option<String> { description: "What to write." }
        file: Option<schema::Uri> { description: "What to describe." }
        gives: Option<String> { description: "In which form." }
        mime: Option<String> { description: "Of which type." }
    }
}

struct EchoThread;

impl Launch for EchoThread {
    fn launch(&self, _: &str) -> std::io::Result<Link> {
        let (to, inbox) = std::sync::mpsc::channel();
        let (send, from) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let registry: worker::Registry = BTreeMap::from([("echo".to_owned(), Arc::new(Echo) as _)]);
            worker::run(registry, worker::Owned::cpu(), inbox, |frame| send.send(frame).is_ok());
        });
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

fn schemas() -> BTreeMap<String, ModelSchema> {
    let uri = json!({ "type": "string", "format": "uri" });
    let object = json!({ "type": "object", "properties": { "text": { "type": "string" }, "text_file": uri } });
    let outputs = [
        ("ear", Output::TextIterator),
        ("one", Output::Uri),
        ("list", Output::UriList),
        ("each", Output::UriIterator),
        ("object", Output::Object(object)),
    ];
    let schema = |output| ModelSchema { input: FileInput::fields(), output };
    outputs.into_iter().map(|(target, output)| (target.to_owned(), schema(output))).collect()
}

/// Serves `files/TARGET` for every shape of output, until the runtime goes. Answers with its address.
async fn serve(folder: &Path) -> String {
    let sqlite = Arc::new(SqliteStore::open(&folder.join("store.db")).await.unwrap());
    let files = Files::open(sqlite.clone(), &folder.join("files")).await.unwrap();
    let store: Arc<dyn Store> = sqlite;
    let feed = Feed::new(store.clone());
    let rules = Rules { allow_loopback: true, allow_private: false };
    let limits = Limits { bytes: 1 << 20, seconds: 60 };
    let egress = Egress::new(rules).unwrap();
    let inputs = Fetching::new(egress, Some(files.clone()), &folder.join("inputs"), limits, schemas()).unwrap();
    let launch = Arc::new(Keeping::new(Arc::new(EchoThread), files.clone(), 3600, schemas()));
    let on = |target: &String| dispatch::Served::new(LoadSpec::new(target, "echo", Weights::Path("unused".into())));
    let settings = Settings::new("test", schemas().keys().map(on).collect());
    let dispatch = Dispatch::start_with(store.clone(), feed.clone(), launch, Arc::new(inputs), settings).await.unwrap();
    let served = schemas().into_iter().enumerate().map(|(index, (target, schema))| Served {
        names: vec![format!("files/{target}")],
        target,
        description: String::new(),
        version: format!("{index:064x}"),
        aliases: BTreeMap::new(),
        schema,
        created_at: Timestamp::now(),
    });
    let router = api::router(Api {
        store,
        feed,
        dispatch,
        served: served.collect(),
        account: Account { username: "pinion".into(), name: "Pinion".into() },
        auth: Auth::OpenUntilToken,
        webhook_rules: rules,
        body_bytes: 1 << 20,
        files: FileService { files, file_bytes: 1 << 20, retention_seconds: 3600, outputs: OutputFiles::Auto },
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// A runtime with the server in it, a folder, and a small file.
struct Bench {
    _runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    base: String,
    file: PathBuf,
}

impl Bench {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let base = runtime.block_on(serve(folder.path()));
        let file = folder.path().join("a talk.wav");
        std::fs::write(&file, "hello").unwrap();
        Self { _runtime: runtime, folder, base, file }
    }
}

const HEARD: &str = "5 bytes, sha256 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn says(out: &str, line: &str) {
    assert!(out.lines().any(|said| said == line), "nobody said {line:?}:\n{out}");
}

#[test]
fn the_program_prints_the_key_that_downloads_are_signed_with() {
    let data = tempfile::tempdir().unwrap();
    let key = output_of(pinion().args(["token", "files-key", "--data"]).arg(data.path()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let kept = runtime.block_on(async {
        let store = SqliteStore::open(&data.path().join("pinion.sqlite")).await.unwrap();
        store.secret(api::FILES_SECRET).await.unwrap()
    });
    assert_eq!(key, format!("{kept}\n"));
}

#[test]
fn python_sends_names_and_reads_files() {
    for (version, has_files) in [("0.31.0", false), ("1.0.7", true)] {
        let bench = Bench::start();
        let python = clients().join(format!("python-{version}/bin/python"));
        let out = output_of(
            Command::new(python)
                .arg(tests_folder().join("files/files.py"))
                .arg(&bench.file)
                .env("REPLICATE_BASE_URL", &bench.base)
                .env("REPLICATE_API_TOKEN", "r8_anything")
                .env("PYTHONDONTWRITEBYTECODE", "1"),
        );
        for line in [format!("opened {HEARD}"), "waited hello".into(), "list hello hello".into()] {
            says(&out, &line);
        }
        says(&out, "object hello hello");
        says(&out, "polled hello");
        assert_eq!(out.contains("created "), has_files, "{version}: {out}");
        if has_files {
            // What a wav file's type is called depends on the machine's tables.
            let created =
                |line: &str| line.starts_with("created a talk.wav audio/") && line.ends_with(" 5 {'customer': 123}");
            assert!(out.lines().any(created), "{out}");
            says(&out, &format!("named {HEARD}"));
            says(&out, "deleted True");
            says(&out, "detail: File not found");
            assert!(out.contains("there is no such file; it was deleted or has expired"), "{out}");
        }
    }
}

#[test]
fn node_sends_names_and_reads_files() {
    let bench = Bench::start();
    // Node looks for packages beside the script, so it runs a copy beside the installed client.
    let script = clients().join("node/files.mjs");
    std::fs::copy(tests_folder().join("files/files.mjs"), &script).unwrap();
    let out = output_of(
        Command::new("node")
            .arg(&script)
            .arg(&bench.file)
            .arg(bench.folder.path().join("output.png"))
            .env("BASE_URL", format!("{}/v1", bench.base))
            .env("REPLICATE_API_TOKEN", "r8_anything"),
    );
    for line in [format!("opened {HEARD}"), format!("blob {HEARD}"), format!("named {HEARD}")] {
        says(&out, &line);
    }
    for line in ["waited hello", "written hello", "polled hello", "list hello hello", "object hello hello"] {
        says(&out, line);
    }
    assert_eq!(out.matches("streamed hello").count(), 2, "{out}");
    says(&out, "created a talk.wav audio/wav 5 {\"customer\":\"123\"}");
    says(&out, "listed true");
    says(&out, "deleted true");
    assert!(out.contains("gone") && out.contains("it was deleted or has expired"), "{out}");
}
