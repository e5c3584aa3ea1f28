//! What HTTP, the store and dispatch add to a prediction that costs nothing: an echo model, create to terminal with
//! `Prefer: wait`, durable rows, beside two plain fsyncs on the same disk in the same run.

#[path = "common/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use api::{Api, Auth, Served};
use criterion::{Criterion, criterion_group, criterion_main};
use dispatch::{Dispatch, Gone, Launch, Link, Settings};
use prediction::{LoadSpec, Timestamp, Weights};
use schema::{ModelSchema, Output};
use store::feed::Feed;
use store::{SqliteStore, Store};
use worker::Owned;
use worker::echo::Echo;

/// Predictions behind the quantiles.
const SAMPLES: usize = 1000;

struct EchoThread;

impl Launch for EchoThread {
    fn launch(&self, _device: &str) -> std::io::Result<Link> {
        let (to, inbox) = mpsc::channel();
        let (send, from) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let registry: worker::Registry = BTreeMap::from([("echo".to_owned(), Arc::new(Echo) as _)]);
            worker::run(registry, Owned::cpu(), inbox, |frame| send.send(frame).is_ok());
        });
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

/// The real router over a real database and the echo model, on a free port.
async fn serve(folder: &Path) -> SocketAddr {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.join("bench.sqlite")).await.expect("opens"));
    let feed = Feed::new(store.clone());
    let spec = LoadSpec::new("echo", "echo", Weights::Path(folder.to_owned()));
    let settings = Settings::new("bench", vec![dispatch::Served { preload: true, ..dispatch::Served::new(spec) }]);
    let dispatch =
        Dispatch::start(store.clone(), feed.clone(), Arc::new(EchoThread), settings).await.expect("dispatch starts");
    let served = Served {
        target: "echo".into(),
        names: vec!["pinion/echo".into()],
        description: String::new(),
        version: "0".repeat(64),
        aliases: BTreeMap::new(),
        schema: ModelSchema { input: Vec::new(), output: Output::TextIterator },
        created_at: Timestamp::now(),
    };
    let account = schema::config::Account { username: "pinion".into(), name: "Pinion".into() };
    let webhook_rules = egress::Rules::default();
    let auth = Auth::OpenUntilToken;
    let body_bytes = 1 << 20;
    let router =
        api::router(Api { store, feed, dispatch, served: vec![served], account, auth, webhook_rules, body_bytes });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A client with one kept-alive connection and nothing else.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self(BufReader::new(stream))
    }

    /// Create, wait, and read the terminal answer.
    fn predict(&mut self) -> Duration {
        let body = r#"{"input":{"text":"hello there","pieces":4}}"#;
        let began = Instant::now();
        let head = format!(
            "POST /v1/models/pinion/echo/predictions HTTP/1.1\r\nHost: bench\r\nPrefer: wait\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(head.as_bytes()).expect("sent");
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a header line");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer).expect("the body");
        let elapsed = began.elapsed();
        let answer = String::from_utf8(answer).expect("JSON text");
        assert!(answer.contains("\"succeeded\""), "{answer}");
        elapsed
    }
}

fn overhead(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut client = Client::connect(runtime.block_on(serve(folder.path())));
    let mut disk = disk::TwoFsyncs::beside(folder.path());
    for _ in 0..50 {
        client.predict();
    }

    // In turn, so that both see the same disk and the same neighbours.
    let (floor, work) = (0..SAMPLES).map(|_| (disk.time(), client.predict())).unzip();
    disk::print_above_floor("echo prediction over HTTP", floor, work);

    let mut group = criterion.benchmark_group("durable");
    group.bench_function("two plain fsyncs", |b| b.iter_custom(|n| (0..n).map(|_| disk.time()).sum()));
    group.bench_function("echo prediction over HTTP", |b| b.iter_custom(|n| (0..n).map(|_| client.predict()).sum()));
    group.finish();
}

criterion_group!(benches, overhead);
criterion_main!(benches);
