//! The worker's promises, with the echo model on a real thread: whatever is admitted ends exactly once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use prediction::frame::{BUILD, DeviceMemory, Emitted, FromWorker, Hello, ToWorker};
use prediction::{Event, Id, Job, LoadSpec, Loaded, Map, Model, Outcome, Output, PredictError, Weights};
use serde_json::{Value, json};
use worker::Owned;
use worker::echo::Echo;

/// Longer than anything here takes; reached only when a promise is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    to: Option<Sender<ToWorker>>,
    from: Receiver<FromWorker>,
    thread: Option<JoinHandle<()>>,
}

fn map(value: Value) -> Map {
    value.as_object().unwrap().clone()
}

fn spec(model: &str, capacity: u32, defaults: Value) -> LoadSpec {
    LoadSpec {
        target: model.to_owned(),
        model: model.to_owned(),
        weights: Weights::Path("none".into()),
        device: "cpu".into(),
        precision: None,
        context_tokens: None,
        concurrency: Some(capacity),
        threads: None,
        batch_invariant: false,
        defaults: map(defaults),
        provenance: Box::default(),
    }
}

impl Bench {
    fn empty() -> Self {
        let mut registry: worker::Registry = BTreeMap::new();
        registry.insert("echo".into(), Arc::new(Echo));
        registry.insert("forgets".into(), Arc::new(Forgets));
        Self::with(registry, Owned::cpu)
    }

    fn with(registry: worker::Registry, owned: impl FnOnce() -> Owned + Send + 'static) -> Self {
        let (to, inbox) = channel();
        let (out, from) = channel();
        let thread =
            std::thread::spawn(move || worker::run(registry, owned(), inbox, move |frame| out.send(frame).is_ok()));
        let bench = Self { to: Some(to), from, thread: Some(thread) };
        assert!(matches!(bench.next(), FromWorker::Hello(hello) if hello.build == BUILD));
        bench
    }

    /// With the echo model loaded for `capacity` predictions at once.
    fn echo(capacity: u32) -> Self {
        let bench = Self::empty();
        bench.say(ToWorker::Load { spec: spec("echo", capacity, json!({})), room_bytes: None });
        let loaded = bench.next();
        assert!(matches!(&loaded, FromWorker::Loaded { capacity: c, .. } if *c == capacity), "{loaded:?}");
        bench
    }

    fn say(&self, frame: ToWorker) {
        self.to.as_ref().unwrap().send(frame).unwrap();
    }

    fn admit(&self, id: &str, input: Value) {
        self.admit_to("echo", id, input);
    }

    fn admit_to(&self, target: &str, id: &str, input: Value) {
        let job = Job { id: Id::from(id), input: map(input), seed: 1 };
        self.say(ToWorker::Admit { target: target.into(), attempt: 1, job });
    }

    /// The next frame that is not a heartbeat.
    fn next(&self) -> FromWorker {
        loop {
            match self.from.recv_timeout(PATIENCE).expect("the worker said nothing") {
                FromWorker::Heartbeat => {}
                frame => return frame,
            }
        }
    }

    /// What is said for predictions until `count` of them have ended, frames other than events apart.
    fn until_ended(&self, count: usize) -> (Vec<Emitted>, Vec<FromWorker>) {
        let (mut events, mut others, mut ended) = (Vec::new(), Vec::new(), 0);
        while ended < count {
            match self.next() {
                FromWorker::Events(said) => {
                    ended += said.iter().filter(|e| matches!(e.event, Event::Ended(_))).count();
                    events.extend(said);
                }
                other => others.push(other),
            }
        }
        (events, others)
    }

    /// Nothing more is said before the channel closes.
    fn leaves(mut self) -> Vec<FromWorker> {
        drop(self.to.take());
        self.thread.take().unwrap().join().unwrap();
        self.from.try_iter().filter(|frame| *frame != FromWorker::Heartbeat).collect()
    }
}

fn of(events: &[Emitted], id: &str) -> Vec<Event> {
    events.iter().filter(|e| e.id.as_str() == id).map(|e| e.event.clone()).collect()
}

fn failed(why: &str) -> Event {
    Event::Ended(Outcome::Failed { error: why.into() })
}

fn metric(name: &str, value: u64) -> Event {
    Event::Metric { name: name.into(), value: value.into() }
}

#[test]
fn an_echo_says_it_in_pieces_with_logs_and_counts() {
    let bench = Bench::echo(1);
    bench.admit("a", json!({"text": "one two", "pieces": 2, "log": "hm"}));
    let (events, _) = bench.until_ended(1);
    let expected = vec![
        Event::Started,
        Event::Log("hm\n".into()),
        Event::Output(Output::text("one ")),
        Event::Output(Output::text("two")),
        metric("input_token_count", 2),
        metric("output_token_count", 2),
        Event::Ended(Outcome::Succeeded),
    ];
    assert_eq!(of(&events, "a"), expected);
}

#[test]
fn predictions_share_the_model_step_by_step() {
    let bench = Bench::echo(2);
    bench.admit("held", json!({"hold": true}));
    bench.admit("a", json!({"text": "ab", "pieces": 2}));
    let (events, _) = bench.until_ended(1);
    assert!(of(&events, "a").contains(&Event::Ended(Outcome::Succeeded)));
    assert_eq!(of(&events, "held").first(), Some(&Event::Started));
    bench.say(ToWorker::Cancel { id: Id::from("held") });
    let (events, _) = bench.until_ended(1);
    assert_eq!(of(&events, "held").last(), Some(&Event::Ended(Outcome::Canceled)));
    assert_eq!(bench.leaves(), []);
}

#[test]
fn beyond_capacity_it_waits_and_is_not_lost() {
    let bench = Bench::echo(1);
    for id in ["held", "b", "c"] {
        bench.admit(id, json!({"text": id, "hold": id == "held"}));
    }
    bench.say(ToWorker::Cancel { id: Id::from("c") });
    let (events, _) = bench.until_ended(1);
    assert_eq!(of(&events, "c"), [Event::Ended(Outcome::Canceled)], "cancelled while it waited");
    bench.say(ToWorker::Cancel { id: Id::from("held") });
    let (events, _) = bench.until_ended(2);
    assert_eq!(of(&events, "b").last(), Some(&Event::Ended(Outcome::Succeeded)));
}

#[test]
fn a_refused_input_fails_alone_and_never_starts() {
    let bench = Bench::echo(2);
    bench.admit("bad", json!({"refuse": "prompt is empty"}));
    bench.admit("good", json!({"text": "x"}));
    let (events, _) = bench.until_ended(2);
    assert_eq!(of(&events, "bad"), [failed("prompt is empty")]);
    assert_eq!(of(&events, "good").last(), Some(&Event::Ended(Outcome::Succeeded)));
}

#[test]
fn a_failure_after_output_carries_its_reason() {
    let bench = Bench::echo(1);
    bench.admit("a", json!({"text": "x", "fail": "boom"}));
    let (events, _) = bench.until_ended(1);
    assert_eq!(of(&events, "a").last(), Some(&failed("boom")));
}

#[test]
fn a_model_that_panics_or_breaks_is_unloaded_and_nobody_inside_is_ended() {
    for (how, why) in [("panic", "the model panicked: boom"), ("crash", "boom")] {
        let bench = Bench::echo(2);
        bench.admit("held", json!({"hold": true}));
        bench.admit("bad", json!({how: "boom", "text": "x"}));
        let mut said = Vec::new();
        let unloaded = loop {
            match bench.next() {
                FromWorker::Events(events) => said.extend(events),
                other => break other,
            }
        };
        let error = PredictError::Operator(why.into());
        assert_eq!(unloaded, FromWorker::Unloaded { target: "echo".into(), why: Some(error) });
        assert!(!said.iter().any(|e| matches!(e.event, Event::Ended(_))), "{said:?}");
        bench.admit("late", json!({}));
        let (events, _) = bench.until_ended(1);
        assert_eq!(of(&events, "late"), [failed("echo is not loaded in this worker")]);
        bench.say(ToWorker::Load { spec: spec("echo", 1, json!({})), room_bytes: None });
        assert!(matches!(bench.next(), FromWorker::Loaded { .. }), "it loads again");
    }
}

#[test]
fn what_needs_more_than_its_room_is_not_loaded() {
    let bench = Bench::empty();
    let load = |room| ToWorker::Load { spec: spec("echo", 1, json!({"needs_bytes": 7})), room_bytes: room };
    bench.say(load(Some(6)));
    assert_eq!(bench.next(), FromWorker::NoRoom { target: "echo".into(), needed_bytes: 7, room_bytes: 6 });
    for room in [Some(7), None] {
        bench.say(load(room));
        assert!(matches!(bench.next(), FromWorker::Loaded { bytes: 7, .. }));
        bench.say(ToWorker::Unload { target: "echo".into() });
        assert_eq!(bench.next(), FromWorker::Unloaded { target: "echo".into(), why: None });
    }
}

#[test]
fn what_a_load_takes_is_measured_where_the_device_tells_and_never_less_than_the_model_says() {
    for (device, says, taken, measured) in [("cuda:0", 7, 50, 50), ("cuda:0", 70, 50, 70), ("cpu", 7, 50, 7)] {
        let registry: worker::Registry = BTreeMap::from([("echo".to_owned(), Arc::new(Echo) as _)]);
        let owned = move || {
            let free = std::cell::Cell::new(1000 + taken);
            let memory = move || {
                free.set(free.get() - taken);
                Some(DeviceMemory { total_bytes: 2000, free_bytes: free.get() })
            };
            Owned { device: device.into(), name: "a device".into(), memory: Box::new(memory), ..Owned::cpu() }
        };
        let bench = Bench::with(registry, owned);
        bench.say(ToWorker::Load { spec: spec("echo", 1, json!({"needs_bytes": says})), room_bytes: None });
        let loaded = bench.next();
        assert!(matches!(loaded, FromWorker::Loaded { bytes, .. } if bytes == measured), "{loaded:?} on {device}");
    }
}

#[test]
fn hello_says_what_the_worker_owns() {
    let (_to, inbox) = channel();
    let (out, from) = channel();
    std::thread::spawn(move || {
        let memory = || Some(DeviceMemory { total_bytes: 9, free_bytes: 4 });
        let owned =
            Owned { device: "cuda:1".into(), name: "a device".into(), memory: Box::new(memory), ..Owned::cpu() };
        worker::run(BTreeMap::new(), owned, inbox, move |frame| out.send(frame).is_ok());
    });
    let memory = Some(DeviceMemory { total_bytes: 9, free_bytes: 4 });
    let hello = Hello { build: BUILD.into(), device: "cuda:1".into(), name: "a device".into(), memory };
    assert_eq!(from.recv_timeout(PATIENCE), Ok(FromWorker::Hello(hello)));
}

#[test]
fn loading_reports_and_failures_are_said() {
    let bench = Bench::empty();
    bench.say(ToWorker::Load {
        spec: spec("echo", 1, json!({"load_says": "fetching", "load_fails": "no disk"})),
        room_bytes: None,
    });
    assert_eq!(bench.next(), FromWorker::Loading { target: "echo".into(), line: "fetching".into() });
    let error = PredictError::Operator("no disk".into());
    assert_eq!(bench.next(), FromWorker::LoadFailed { target: "echo".into(), error });
    bench.say(ToWorker::Load { spec: spec("nobody", 1, json!({})), room_bytes: None });
    let error = PredictError::Operator("there is no model \"nobody\" in this build".into());
    assert_eq!(bench.next(), FromWorker::LoadFailed { target: "nobody".into(), error });
}

#[test]
fn a_prediction_that_the_model_forgets_still_ends() {
    let bench = Bench::empty();
    bench.say(ToWorker::Load { spec: spec("forgets", 1, json!({})), room_bytes: None });
    bench.next();
    bench.admit_to("forgets", "a", json!({}));
    let (events, others) = bench.until_ended(1);
    assert_eq!(of(&events, "a"), [Event::Started, failed("the model dropped the prediction without a word")]);
    assert_eq!(others, []);
}

#[test]
fn draining_finishes_what_is_inside_and_says_bye() {
    let bench = Bench::echo(2);
    bench.admit("a", json!({"text": "abcdefgh", "pieces": 8}));
    bench.say(ToWorker::Drain);
    let (events, _) = bench.until_ended(1);
    assert_eq!(of(&events, "a").last(), Some(&Event::Ended(Outcome::Succeeded)));
    assert_eq!(bench.next(), FromWorker::Bye);
    assert!(bench.from.recv().is_err(), "and is gone");
}

#[test]
fn an_idle_worker_says_that_it_is_alive() {
    let bench = Bench::empty();
    assert_eq!(bench.from.recv_timeout(PATIENCE), Ok(FromWorker::Heartbeat));
}

#[test]
fn a_server_of_another_build_is_left() {
    let bench = Bench::empty();
    bench.say(ToWorker::Hello(Hello {
        build: "0.0.0-other".into(),
        device: "cpu".into(),
        name: String::new(),
        memory: None,
    }));
    assert!(bench.from.recv_timeout(PATIENCE).is_err(), "the channel closes without a word");
}

#[test]
fn exit_is_at_once_and_without_a_word() {
    let bench = Bench::echo(1);
    bench.admit("held", json!({"hold": true}));
    assert!(matches!(bench.next(), FromWorker::Events(_)));
    bench.say(ToWorker::Exit);
    assert!(!bench.leaves().contains(&FromWorker::Bye));
}

/// A model that loses whoever it admits.
struct Forgets;

impl Model for Forgets {
    fn needs(&self, _: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        Ok(0)
    }

    fn load(&self, _: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        Ok(Box::new(Forgets))
    }
}

impl Loaded for Forgets {
    fn admit(&mut self, _: Job) -> Result<(), PredictError> {
        Ok(())
    }

    fn step(&mut self, _: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        Ok(())
    }

    fn cancel(&mut self, _: &Id) {}

    fn active(&self) -> usize {
        0
    }

    fn capacity(&self) -> usize {
        1
    }

    fn bytes(&self) -> u64 {
        0
    }
}
