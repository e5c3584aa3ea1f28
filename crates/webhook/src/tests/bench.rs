//! A store, a feed, the webhooks under test and a receiver that writes down what it gets.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use prediction::{Event, Id, Map, Numbered, Outcome, Output, Prediction, Request, Timestamp, WebhookEvent};
use serde_json::Value;
use store::feed::Feed;
use store::{Appended, Clock, MemoryStore, Store};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Render;
use crate::conduct::Conductor;
use crate::deliver::{Desk, Post};

/// 2026-01-01, where every test begins.
pub const BEGIN: Timestamp = Timestamp(1_767_225_600_000_000);

#[derive(Debug, Clone)]
pub struct Call {
    /// Milliseconds since the test began.
    pub at: u64,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Value,
    pub bytes: Vec<u8>,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        &self.headers.iter().find(|(n, _)| n == name).expect(name).1
    }

    /// Status and output, as text: what most tests are about.
    pub fn state(&self) -> String {
        format!("{} {}", self.body["status"].as_str().unwrap(), self.body["output"])
    }
}

/// Answers 200 unless the path says otherwise: `/500`, `/refused`; `/gate…` waits for a permit first.
struct Receiver {
    begin: Instant,
    calls: mpsc::UnboundedSender<Call>,
    gate: Arc<Semaphore>,
    well_after: Arc<Mutex<usize>>,
}

#[async_trait]
impl Post for Receiver {
    async fn post(&self, url: &str, headers: &[(&str, String)], body: Vec<u8>) -> Result<u16, String> {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let at = u64::try_from(self.begin.elapsed().as_millis()).unwrap();
        let call = Call { at, url: url.to_owned(), headers, body: serde_json::from_slice(&body).unwrap(), bytes: body };
        self.calls.send(call).unwrap();
        if url.contains("/gate") {
            self.gate.acquire().await.unwrap().forget();
        }
        let mut left = self.well_after.lock().unwrap();
        if url.ends_with("/500") {
            return Ok(500);
        }
        if url.ends_with("/refused") && *left > 0 {
            *left -= 1;
            return Err("connection refused".to_owned());
        }
        Ok(200)
    }
}

pub struct Bench {
    pub store: Arc<dyn Store>,
    pub feed: Feed,
    pub calls: mpsc::UnboundedReceiver<Call>,
    pub gate: Arc<Semaphore>,
    /// How many calls `/refused` refuses before it answers.
    pub well_after: Arc<Mutex<usize>>,
    _conductor: JoinHandle<()>,
    begin: Instant,
}

pub fn json_of(prediction: &Prediction) -> Vec<u8> {
    serde_json::to_vec(prediction).unwrap()
}

pub fn request(id: &str, url: &str, filter: Option<Vec<WebhookEvent>>) -> Request {
    Request {
        id: Id::from(id),
        model: "pinion/echo".into(),
        version: "v".into(),
        target: "echo".into(),
        input: Map::new(),
        seed: 1,
        created_at: BEGIN,
        deadline: None,
        webhook: Some(url.to_owned()),
        webhook_events_filter: filter,
        origin: "http://127.0.0.1:5000".into(),
        stream_key: format!("key-{id}"),
        streams: true,
    }
}

impl Bench {
    pub fn new() -> Self {
        let begin = Instant::now();
        let clock: Clock = Arc::new(move || Timestamp(BEGIN.0 + i64::try_from(begin.elapsed().as_micros()).unwrap()));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::with_clock(clock.clone()));
        let feed = Feed::new(store.clone());
        let (heard, calls) = mpsc::unbounded_channel();
        let (gate, well_after) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(0)));
        let receiver = Receiver { begin, calls: heard, gate: gate.clone(), well_after: well_after.clone() };
        let render: Render = Arc::new(json_of);
        let opened = feed.opened();
        let desk = Desk::new(store.clone(), feed.clone(), Arc::new(receiver), render, clock);
        let conductor = tokio::spawn(Conductor::new(Arc::new(desk)).run(opened));
        Self { store, feed, calls, gate, well_after, _conductor: conductor, begin }
    }

    pub async fn open(&self, request: Request) -> Running {
        let id = request.id.clone();
        self.store.create(&request).await.unwrap();
        self.feed.open(Prediction::new(request));
        let leases = self.store.lease("test", 1).await.unwrap();
        assert_eq!(leases[0].prediction.request.id, id);
        Running {
            store: self.store.clone(),
            feed: self.feed.clone(),
            id,
            attempt: leases[0].attempt,
            seq: 0,
            begin: self.begin,
        }
    }

    pub async fn call(&mut self) -> Call {
        self.calls.recv().await.expect("the receiver is there")
    }

    /// Everything that is still sent until nothing has been for ten minutes.
    pub async fn rest(&mut self) -> Vec<Call> {
        let mut rest = Vec::new();
        while let Ok(call) = tokio::time::timeout(std::time::Duration::from_secs(600), self.calls.recv()).await {
            rest.extend(call);
        }
        rest
    }
}

/// Stands in for dispatch: stores and publishes one prediction's events.
pub struct Running {
    store: Arc<dyn Store>,
    feed: Feed,
    id: Id,
    attempt: u32,
    seq: u64,
    begin: Instant,
}

impl Running {
    pub async fn say(&mut self, event: Event) {
        self.seq += 1;
        let at = Timestamp(BEGIN.0 + i64::try_from(self.begin.elapsed().as_micros()).unwrap());
        let numbered = Numbered { seq: self.seq, at, event };
        let appended = self.store.append(&self.id, self.attempt, std::slice::from_ref(&numbered)).await.unwrap();
        assert_eq!(appended, Appended::Applied);
        let _ = self.feed.publish(&self.id, numbered);
    }

    pub async fn put(&mut self, text: &str) {
        self.say(Event::Output(Output::text(text))).await;
    }

    pub async fn end(&mut self) {
        self.say(Event::Ended(Outcome::Succeeded)).await;
    }
}
