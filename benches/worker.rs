//! What a worker in a process of its own costs beside one on a thread: the echo model through dispatch and an in-memory
//! store, in turn, in one run. The process is this same program, started again with one more word.

#[path = "../crates/pinion/src/child.rs"]
mod child;
#[path = "../crates/pinion/src/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use dispatch::{Dispatch, Gone, Launch, Link, Served, Settings};
use prediction::{Event, Id, LoadSpec, Map, Outcome, Request, Timestamp, Weights};
use serde_json::json;
use store::feed::Feed;
use store::{MemoryStore, Store};
use tokio::runtime::Runtime;
use worker::Owned;
use worker::echo::Echo;

use crate::process::Process;

/// Makes this program the worker.
const WORKER_WORD: &str = "--as-worker";
/// Predictions behind each quantile, and before them, so that everything has been touched once.
const REQUESTS: usize = 2000;
const WARM_UP: usize = 200;
/// The same of predictions with many tokens.
const STREAMS: usize = 60;
const TOKENS: usize = 1000;

fn registry() -> worker::Registry {
    BTreeMap::from([("echo".to_owned(), Arc::new(Echo) as _)])
}

struct EchoThread;

impl Launch for EchoThread {
    fn launch(&self, _device: &str) -> std::io::Result<Link> {
        let (to, inbox) = mpsc::channel();
        let (send, from) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || worker::run(registry(), Owned::cpu(), inbox, |frame| send.send(frame).is_ok()));
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

struct EchoProcess(Process);

impl Launch for EchoProcess {
    fn launch(&self, _device: &str) -> std::io::Result<Link> {
        self.0.start()
    }
}

/// Dispatch over one worker.
struct Side {
    runtime: Runtime,
    dispatch: Dispatch,
    feed: Feed,
    count: usize,
}

impl Side {
    fn start(launch: Arc<dyn Launch>) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let feed = Feed::new(store.clone());
        let spec = LoadSpec::new("echo", "echo", Weights::Path("none".into()));
        let settings = Settings::new("bench", vec![Served { preload: true, ..Served::new(spec) }]);
        let dispatch = runtime.block_on(Dispatch::start(store, feed.clone(), launch, settings)).expect("starts");
        Self { runtime, dispatch, feed, count: 0 }
    }

    /// From the submission to the last event in a reader's hands.
    fn predict(&mut self, input: Map) -> Duration {
        self.count += 1;
        let request = request(&format!("p{}", self.count), input);
        let id = request.id.clone();
        let (dispatch, feed) = (&self.dispatch, &self.feed);
        self.runtime.block_on(async {
            let began = Instant::now();
            dispatch.submit(request).await.expect("accepted");
            let mut reader = feed.follow(&id, 0).await.expect("readable").expect("known");
            let mut last = None;
            while let Some(event) = reader.next().await {
                last = Some(event.event);
            }
            assert_eq!(last, Some(Event::Ended(Outcome::Succeeded)));
            began.elapsed()
        })
    }
}

fn request(id: &str, input: Map) -> Request {
    Request {
        id: Id::from(id),
        model: "pinion/echo".into(),
        version: "v".into(),
        target: "echo".into(),
        input,
        seed: 1,
        created_at: Timestamp::now(),
        deadline: None,
        webhook: None,
        webhook_events_filter: None,
        origin: String::new(),
        stream_key: String::new(),
        streams: false,
    }
}

fn quantile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64()
}

/// Both sides in turn, so that both see the same neighbours: the times of the thread, and of the process.
fn in_turn(sides: &mut [Side; 2], warm_up: usize, samples: usize, input: &Map) -> [Vec<Duration>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..warm_up + samples {
        for (side, times) in sides.iter_mut().zip(&mut times) {
            let time = side.predict(input.clone());
            if round >= warm_up {
                times.push(time);
            }
        }
    }
    times
}

fn input(text: &str, pieces: usize) -> Map {
    let input = json!({ "text": text, "pieces": pieces });
    input.as_object().cloned().unwrap_or_default()
}

fn main() {
    if std::env::args().any(|word| word == WORKER_WORD) {
        child::main(registry(), Owned::cpu());
    }
    let program = process::itself().expect("this program has a file");
    let process = EchoProcess(Process { program, words: vec![WORKER_WORD.into()] });
    let mut sides = [Side::start(Arc::new(EchoThread)), Side::start(Arc::new(process))];

    let [mut thread, mut process] = in_turn(&mut sides, WARM_UP, REQUESTS, &input("hello there", 1));
    for share in [0.5, 0.99] {
        let (thread, process) = (quantile(&mut thread, share) * 1e3, quantile(&mut process, share) * 1e3);
        let (name, more) = (share * 100.0, process - thread);
        println!("a request, p{name:.0}: thread {thread:.3} ms, process {process:.3} ms, {more:+.3} ms");
    }
    let text = "x".repeat(TOKENS);
    let [mut thread, mut process] = in_turn(&mut sides, 5, STREAMS, &input(&text, TOKENS));
    let per_token = |times: &mut [Duration]| quantile(times, 0.5) * 1e6 / TOKENS as f64;
    let (thread, process) = (per_token(&mut thread), per_token(&mut process));
    let more = process - thread;
    println!("a token of {TOKENS}, p50: thread {thread:.2} us, process {process:.2} us, {more:+.2} us");
}
