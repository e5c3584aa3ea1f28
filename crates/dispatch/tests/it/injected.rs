//! Faults injected into a real worker loop under a real dispatch, at every call into the model in turn: the size, the load,
//! each admission, each step. Whatever happens, every prediction ends, exactly once, and by the retry rule.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dispatch::{Dispatch, Gone, Launch, Link, Served, Settings};
use prediction::{Event, Id, Job, LoadSpec, Loaded, Model, PredictError, Prediction, Request, Status};
use serde_json::{Value, json};
use store::feed::Feed;
use store::{MemoryStore, Store};
use tokio::task::JoinSet;
use worker::echo::Echo;

use crate::puppet::{device, request_for, served};

/// Longer than anything here takes; reached only when something stands still.
const PATIENCE: Duration = Duration::from_secs(60);
/// More calls than the run below makes.
const CALLS: u32 = 40;
const TEXT: &str = "abcd";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    OutOfMemory,
    DeviceLost,
    Panic,
    Defect,
}

/// Counts the calls into a model over all workers, and strikes.
struct Fault {
    kind: Kind,
    at: u32,
    /// At every call from then on, and not once.
    stays: bool,
    calls: AtomicU32,
    /// The call that it struck first.
    struck: Mutex<Option<&'static str>>,
}

impl Fault {
    fn strike(&self, call: &'static str) -> Result<(), PredictError> {
        let count = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if count < self.at || (count > self.at && !self.stays) {
            return Ok(());
        }
        self.struck.lock().unwrap().get_or_insert(call);
        match self.kind {
            Kind::OutOfMemory => Err(PredictError::OutOfMemory("injected: no memory".into())),
            Kind::DeviceLost => Err(PredictError::DeviceLost("injected: device lost".into())),
            Kind::Defect => Err(PredictError::Operator("injected: defect".into())),
            // Without a message of the panic hook on the terminal.
            Kind::Panic => std::panic::resume_unwind(Box::new("injected: panic")),
        }
    }
}

struct Faulty(Arc<Fault>);

impl Model for Faulty {
    fn needs(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        self.0.strike("needs")?;
        Echo.needs(spec, report)
    }

    fn load(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        self.0.strike("load")?;
        Ok(Box::new(FaultyLoaded(self.0.clone(), Echo.load(spec, report)?)))
    }
}

struct FaultyLoaded(Arc<Fault>, Box<dyn Loaded>);

impl Loaded for FaultyLoaded {
    fn admit(&mut self, job: Job) -> Result<(), PredictError> {
        self.0.strike("admit")?;
        self.1.admit(job)
    }

    fn step(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        self.0.strike("step")?;
        self.1.step(emit)
    }

    fn cancel(&mut self, id: &Id) {
        self.1.cancel(id);
    }

    fn active(&self) -> usize {
        self.1.active()
    }

    fn capacity(&self) -> usize {
        self.1.capacity()
    }

    fn bytes(&self) -> u64 {
        self.1.bytes()
    }
}

struct Threads(Arc<Fault>);

impl Launch for Threads {
    fn launch(&self, _: &str) -> io::Result<Link> {
        let (to, inbox) = std::sync::mpsc::channel();
        let (send, from) = tokio::sync::mpsc::unbounded_channel();
        let registry: worker::Registry =
            BTreeMap::from([("echo".to_owned(), Arc::new(Faulty(self.0.clone())) as Arc<dyn Model>)]);
        std::thread::spawn(move || {
            worker::run(registry, worker::Owned::cpu(), inbox, |frame| send.send(frame).is_ok());
        });
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

/// Six of ten bytes.
fn six_bytes(target: &str) -> Served {
    let mut six = served(target);
    six.spec.concurrency = Some(2);
    six.spec.defaults.insert("needs_bytes".into(), 6.into());
    six
}

/// Four predictions of two models that do not fit together; how each ended, and its events.
async fn run(fault: Arc<Fault>) -> Vec<(Prediction, Vec<Event>)> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let feed = Feed::new(store.clone());
    let settings =
        Settings { devices: vec![device("cpu", 10)], ..Settings::new("test", vec![six_bytes("a"), six_bytes("b")]) };
    let dispatch = Dispatch::start(store.clone(), feed.clone(), Arc::new(Threads(fault)), settings).await.unwrap();
    let ids = ["a1", "a2", "b1", "a3"];
    for id in ids {
        let input = json!({"text": TEXT, "pieces": TEXT.len()}).as_object().unwrap().clone();
        dispatch.submit(Request { input, ..request_for(&id[..1], id) }).await.unwrap();
    }
    let mut ended = Vec::new();
    for id in ids.map(Id::from) {
        let mut reader = feed.follow(&id, 0).await.unwrap().unwrap();
        while reader.next().await.is_some() {}
        let events = store.events(&id, 0).await.unwrap();
        let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        let events = events.into_iter().map(|event| event.event).collect();
        ended.push((store.get(&id).await.unwrap().unwrap(), events));
    }
    ended
}

fn said(output: Option<&Value>) -> String {
    let pieces = output.and_then(Value::as_array).into_iter().flatten();
    pieces.filter_map(Value::as_str).collect()
}

fn check(fault: &Fault, ended: &[(Prediction, Vec<Event>)]) {
    let struck = *fault.struck.lock().unwrap();
    let what = format!("{:?} from call {} ({struck:?}), stays: {}", fault.kind, fault.at, fault.stays);
    for (prediction, events) in ended {
        let (id, logs) = (&prediction.request.id, &prediction.logs);
        let what = format!("{id} with {what}: {:?}, logs {logs:?}", prediction.error);
        let count = |of: fn(&Event) -> bool| events.iter().filter(|event| of(event)).count();
        assert_eq!(count(|event| matches!(event, Event::Ended(_))), 1, "{what}");
        assert!(matches!(events.last(), Some(Event::Ended(_))), "{what}");
        assert!(count(|event| matches!(event, Event::Started)) <= 2, "at most once more: {what}");
        match prediction.status {
            Status::Succeeded => assert_eq!(said(prediction.output.as_ref()), TEXT, "{what}"),
            Status::Failed => {
                assert!(struck.is_some(), "{what}");
                let reason = prediction.error.as_deref().unwrap();
                let known = reason.contains("injected: ") || reason.contains("Prediction interrupted");
                assert!(known && (reason.contains("injected: ") || logs.contains("injected: ")), "{what}");
                // A load that fails for another reason than memory or device would fail again.
                let hopeless =
                    matches!(struck, Some("needs" | "load")) && matches!(fault.kind, Kind::Panic | Kind::Defect);
                // An admission's own error is its input's.
                let refused = struck == Some("admit") && fault.kind == Kind::Defect;
                let read = prediction.output.is_some();
                assert!(fault.stays || hopeless || refused || read, "once struck, it had another try: {what}");
            }
            other => panic!("{other:?}: {what}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_at_any_call_into_the_model_ends_every_prediction_once_and_by_the_retry_rule() {
    let mut runs = JoinSet::new();
    for kind in [Kind::OutOfMemory, Kind::DeviceLost, Kind::Panic, Kind::Defect] {
        for (at, stays) in (1..=CALLS).flat_map(|at| [(at, false), (at, true)]) {
            let fault = Fault { kind, at, stays, calls: AtomicU32::new(0), struck: Mutex::default() };
            runs.spawn(async move {
                let fault = Arc::new(fault);
                let ended = tokio::time::timeout(PATIENCE, run(fault.clone())).await;
                let ended = ended.unwrap_or_else(|_| panic!("{kind:?} at call {at}, stays: {stays}: stands still"));
                check(&fault, &ended);
                *fault.struck.lock().unwrap()
            });
        }
    }
    let mut struck: BTreeMap<&str, u32> = BTreeMap::new();
    while let Some(run) = runs.join_next().await {
        if let Some(call) = run.unwrap() {
            *struck.entry(call).or_default() += 1;
        }
    }
    // Which call is which depends on who was quicker; the least that a run makes does not: two loads, four admissions and
    // eight steps.
    let all: u32 = struck.values().sum();
    assert!(
        all >= 8 * (2 + 4 + 8) && ["needs", "load", "admit", "step"].iter().all(|call| struck[call] >= 8),
        "{struck:?}"
    );
}
