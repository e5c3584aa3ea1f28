//! The stage: a store, a feed, dispatch, and workers whose part the test speaks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dispatch::{AsSent, Device, DeviceHealth, Dispatch, Gone, Inputs, Launch, Link, ModelHealth, ModelState, Served};
use dispatch::{Settings, SubmitError, TargetHealth};
use prediction::frame::{BUILD, DeviceMemory, Emitted, FromWorker, Hello, ToWorker};
use prediction::{Event, Id, LoadSpec, Map, Numbered, Outcome, Output, Prediction, Request, Timestamp, Weights};
use store::feed::Feed;
use store::{MemoryStore, Store, StoreError};
use tokio::sync::mpsc;

/// Longer than any wait here that can end; paused time makes it cheap.
const PATIENCE: Duration = Duration::from_secs(4000);

/// One launched worker, seen from inside.
pub struct Puppet {
    pub device: String,
    pub hears: mpsc::UnboundedReceiver<ToWorker>,
    pub says: mpsc::UnboundedSender<FromWorker>,
}

struct Stage(mpsc::UnboundedSender<Puppet>);

impl Launch for Stage {
    fn launch(&self, device: &str) -> io::Result<Link> {
        let (to, hears) = mpsc::unbounded_channel();
        let (says, from) = mpsc::unbounded_channel();
        self.0.send(Puppet { device: device.to_owned(), hears, says }).map_err(io::Error::other)?;
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

impl Puppet {
    /// The next frame it is sent.
    pub async fn frame(&mut self) -> ToWorker {
        tokio::time::timeout(PATIENCE, self.hears.recv()).await.expect("nothing was said").expect("dispatch is gone")
    }

    pub async fn greets(mut self, memory: Option<DeviceMemory>) -> Self {
        assert!(matches!(self.frame().await, ToWorker::Hello(hello) if hello.build == BUILD));
        let (build, device) = (BUILD.into(), self.device.clone());
        self.say(FromWorker::Hello(Hello { build, device, name: "a puppet".into(), memory }));
        self
    }

    pub fn say(&self, frame: FromWorker) {
        let _ = self.says.send(frame);
    }

    /// What it may take.
    pub async fn is_asked_to_load(&mut self, target: &str) -> Option<u64> {
        match self.frame().await {
            ToWorker::Load { spec, room_bytes } if spec.target == target => {
                assert_eq!(spec.device, self.device);
                room_bytes
            }
            frame => panic!("{frame:?}"),
        }
    }

    pub async fn loads(&mut self, target: &str, capacity: u32) {
        self.loads_bytes(target, 1, capacity).await;
    }

    pub async fn loads_bytes(&mut self, target: &str, bytes: u64, capacity: u32) {
        self.is_asked_to_load(target).await;
        self.say(FromWorker::Loaded { target: target.into(), bytes, capacity, seconds: 0.25 });
    }

    /// Asked to load it, it says how much that takes.
    pub async fn has_no_room(&mut self, target: &str, needed_bytes: u64) {
        let room_bytes = self.is_asked_to_load(target).await.expect("a device without a bound has room");
        assert!(needed_bytes > room_bytes, "{needed_bytes} fits into {room_bytes}");
        self.say(FromWorker::NoRoom { target: target.into(), needed_bytes, room_bytes });
    }

    pub async fn unloads(&mut self, target: &str) {
        self.is_asked_to_unload(target).await;
        self.say(FromWorker::Unloaded { target: target.into(), why: None });
    }

    pub async fn is_asked_to_unload(&mut self, target: &str) {
        assert_eq!(self.frame().await, ToWorker::Unload { target: target.into() });
    }

    /// Lets this one in, and has it succeed.
    pub async fn runs(&mut self, id: &str) {
        let (admitted, attempt) = self.admits().await;
        assert_eq!(admitted.as_str(), id);
        self.emits(id, attempt, [succeeded()]);
    }

    /// Which prediction is let in next, and as which attempt.
    pub async fn admits(&mut self) -> (Id, u32) {
        match self.frame().await {
            ToWorker::Admit { attempt, job, .. } => (job.id, attempt),
            frame => panic!("{frame:?}"),
        }
    }

    pub async fn is_asked_to_cancel(&mut self, id: &str) {
        assert_eq!(self.frame().await, ToWorker::Cancel { id: Id::from(id) });
    }

    pub fn emits(&self, id: &str, attempt: u32, events: impl IntoIterator<Item = Event>) {
        let emitted = |event| Emitted { id: Id::from(id), attempt, event };
        self.say(FromWorker::Events(events.into_iter().map(emitted).collect()));
    }

    /// Dispatch has let go of it.
    pub async fn is_ended(&mut self) -> bool {
        tokio::time::timeout(PATIENCE, self.hears.recv()).await.is_ok_and(|frame| frame.is_none())
    }

    /// Nothing has been said that was not heard.
    pub fn hears_nothing(&mut self) -> bool {
        self.hears.try_recv().is_err()
    }
}

pub struct Bench {
    pub store: Arc<dyn Store>,
    pub feed: Feed,
    pub dispatch: Dispatch,
    workers: mpsc::UnboundedReceiver<Puppet>,
    /// Launched, not yet asked for by the test.
    early: Vec<Puppet>,
}

pub fn spec(target: &str) -> LoadSpec {
    LoadSpec {
        target: target.into(),
        model: "echo".into(),
        weights: Weights::Path("none".into()),
        device: "cpu".into(),
        precision: None,
        context_tokens: None,
        concurrency: None,
        threads: None,
        batch_invariant: false,
        defaults: Map::new(),
        provenance: Box::default(),
    }
}

pub fn settings() -> Settings {
    Settings::new("test", vec![served("echo"), served("other")])
}

pub fn served(target: &str) -> Served {
    Served::new(spec(target))
}

pub fn device(device: &str, budget_bytes: impl Into<Option<u64>>) -> Device {
    Device { device: device.into(), budget_bytes: budget_bytes.into() }
}

/// One device of so many bytes and these models.
pub fn one_device(budget: u64, served: Vec<Served>) -> Settings {
    Settings { devices: vec![device("cpu", budget)], ..Settings::new("test", served) }
}

pub fn request(id: &str) -> Request {
    Request {
        id: Id::from(id),
        model: "pinion/echo".into(),
        version: "v".into(),
        target: "echo".into(),
        input: Map::new(),
        seed: 7,
        created_at: Timestamp::now(),
        deadline: None,
        webhook: None,
        webhook_events_filter: None,
        origin: "http://127.0.0.1:5000".into(),
        stream_key: format!("key-{id}"),
        streams: true,
    }
}

pub fn request_for(target: &str, id: &str) -> Request {
    Request { target: target.into(), ..request(id) }
}

pub fn text(text: &str) -> Event {
    Event::Output(Output::text(text))
}

pub fn succeeded() -> Event {
    Event::Ended(Outcome::Succeeded)
}

impl Bench {
    pub async fn new() -> Self {
        Self::on(Arc::new(MemoryStore::new()), settings()).await
    }

    /// One life on a store that may hold what an earlier one left.
    pub async fn on(store: Arc<dyn Store>, settings: Settings) -> Self {
        Self::with(store, Arc::new(AsSent), settings).await
    }

    /// With somebody who brings inputs here.
    pub async fn bringing(inputs: Arc<dyn Inputs>) -> Self {
        Self::with(Arc::new(MemoryStore::new()), inputs, settings()).await
    }

    async fn with(store: Arc<dyn Store>, inputs: Arc<dyn Inputs>, settings: Settings) -> Self {
        let feed = Feed::new(store.clone());
        let (launched, workers) = mpsc::unbounded_channel();
        let stage = Arc::new(Stage(launched));
        let dispatch = Dispatch::start_with(store.clone(), feed.clone(), stage, inputs, settings).await.unwrap();
        Self { store, feed, dispatch, workers, early: Vec::new() }
    }

    /// The next worker that is launched; it has exchanged hellos.
    pub async fn worker(&mut self) -> Puppet {
        self.launched().await.greets(None).await
    }

    /// The next worker for this device.
    pub async fn worker_of(&mut self, device: &str) -> Puppet {
        loop {
            if let Some(index) = self.early.iter().position(|worker| worker.device == device) {
                return self.early.remove(index).greets(None).await;
            }
            let worker = self.launched().await;
            self.early.push(worker);
        }
    }

    pub async fn launched(&mut self) -> Puppet {
        tokio::time::timeout(PATIENCE, self.workers.recv()).await.expect("no worker").expect("dispatch is there")
    }

    /// A worker that waits to be played.
    pub fn launched_already(&mut self) -> Option<Puppet> {
        self.workers.try_recv().ok()
    }

    pub async fn submit_to(&self, target: &str, id: &str) {
        self.dispatch.submit(request_for(target, id)).await.unwrap();
    }

    pub fn device(&self, device: &str) -> DeviceHealth {
        self.dispatch.health().devices.into_iter().find(|health| health.device == device).expect("it is served")
    }

    pub fn model(&self, device: &str, target: &str) -> Option<ModelHealth> {
        self.device(device).models.into_iter().find(|model| model.target == target)
    }

    /// How it stands with a model on the one device.
    pub fn model_state(&self, target: &str) -> Option<ModelState> {
        self.model("cpu", target).map(|model| model.state)
    }

    pub fn target(&self, target: &str) -> TargetHealth {
        self.dispatch.health().targets.into_iter().find(|health| health.target == target).expect("it is served")
    }

    /// A worker with the echo model in it.
    pub async fn loaded(&mut self, capacity: u32) -> Puppet {
        let mut worker = self.worker().await;
        self.dispatch.submit(request("first")).await.unwrap();
        worker.loads("echo", capacity).await;
        let (id, attempt) = worker.admits().await;
        worker.emits(id.as_str(), attempt, [succeeded()]);
        self.end("first").await;
        worker
    }

    pub async fn submit(&self, id: &str) {
        let accepted = self.dispatch.submit(request(id)).await.unwrap();
        assert_eq!(accepted.request.id.as_str(), id);
    }

    pub async fn submit_fails(&self, id: &str) {
        let refused = self.dispatch.submit(request(id)).await.unwrap_err();
        assert!(matches!(refused, SubmitError::Store(StoreError::Unavailable(_))), "{refused}");
    }

    /// Every event of a prediction, to its end.
    pub async fn events(&self, id: &str) -> Vec<Numbered> {
        let mut reader = self.feed.follow(&Id::from(id), 0).await.unwrap().expect(id);
        let mut events = Vec::new();
        while let Some(event) = tokio::time::timeout(PATIENCE, reader.next()).await.expect("it does not end") {
            events.push(event);
        }
        events
    }

    /// Waits for the end; how it stands then in the store.
    pub async fn end(&self, id: &str) -> Prediction {
        let events = self.events(id).await;
        let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "without gaps");
        assert_eq!(self.store.events(&Id::from(id), 0).await.unwrap(), events, "the store has what was told");
        self.store.get(&Id::from(id)).await.unwrap().unwrap()
    }

    pub async fn state(&self, id: &str) -> Prediction {
        self.feed.snapshot(&Id::from(id)).await.unwrap().unwrap()
    }
}

/// Everything that can happen without time passing has happened.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
