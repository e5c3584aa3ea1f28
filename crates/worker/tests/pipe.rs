//! Frames survive a pipe, however it cuts them; and a worker at the end of two pipes keeps its promises.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prediction::frame::{Emitted, FromWorker, ToWorker};
use prediction::{Event, Id, Job, LoadSpec, Loaded, Map, Model, Outcome, Output, PredictError, Weights};
use proptest::prelude::*;
use serde_json::json;
use worker::Owned;
use worker::echo::Echo;
use worker::pipe::{FRAME_BYTES_MAX, Held, Reader, Writer};

/// Longer than anything here takes; reached only when a promise is broken.
const PATIENCE: Duration = Duration::from_secs(20);

fn frame() -> impl Strategy<Value = ToWorker> {
    let admit = (".*", any::<u32>(), any::<u64>(), ".*").prop_map(|(target, attempt, seed, prompt)| {
        let input = Map::from_iter([("prompt".to_owned(), prompt.into())]);
        ToWorker::Admit { target, attempt, job: Job { id: Id::from("p"), input, seed } }
    });
    let cancel = "[a-z0-9]{0,30}".prop_map(|id| ToWorker::Cancel { id: Id::from(id.as_str()) });
    let load = ".*".prop_map(|name| ToWorker::Load {
        spec: LoadSpec::new(name, "llama", Weights::Path("w".into())),
        room_bytes: None,
    });
    prop_oneof![admit, cancel, load, Just(ToWorker::Drain), Just(ToWorker::Exit)]
}

fn written(frames: &[ToWorker]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    frames.iter().for_each(|frame| writer.put(frame).unwrap());
    writer.flush().unwrap();
    bytes
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_the_pipe_cuts_them(
        frames in prop::collection::vec(frame(), 0..12),
        cuts in prop::collection::vec(1_usize..200, 1..20),
    ) {
        let bytes = written(&frames);
        let (mut held, mut heard, mut rest) = (Held::default(), Vec::new(), bytes.as_slice());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            rest = after;
            held.push(piece);
            while let Some(frame) = held.take::<ToWorker>().unwrap() {
                heard.push(frame);
            }
        }
        prop_assert!(held.is_empty());
        prop_assert_eq!(heard, frames);
    }

    #[test]
    fn a_pipe_that_ends_inside_a_frame_is_an_error_and_between_two_is_not(
        frames in prop::collection::vec(frame(), 1..4),
        share in 0.0_f64..1.0,
    ) {
        let bytes = written(&frames);
        let mut ends = vec![0];
        for frame in &frames {
            ends.push(ends[ends.len() - 1] + written(std::slice::from_ref(frame)).len());
        }
        let cut = (bytes.len() as f64 * share) as usize;
        let mut reader = Reader::new(&bytes[..cut]);
        let end = loop {
            match reader.receive::<ToWorker>() {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.kind()),
            }
        };
        let expected = if ends.contains(&cut) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof) };
        prop_assert_eq!(end, expected);
    }

    #[test]
    fn noise_is_an_error_or_an_early_end_and_never_a_panic(noise in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut reader = Reader::new(Cursor::new(noise));
        while let Ok(Some(_)) = reader.receive::<FromWorker>() {}
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_it_is_waited_for() {
    let mut held = Held::default();
    held.push(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
    let error = held.take::<ToWorker>().unwrap_err().to_string();
    assert!(error.contains("268435457 bytes; at most 268435456"), "{error}");
}

/// A worker with the echo model between two pipes of the system.
struct Bench {
    to: Option<Writer<io::PipeWriter>>,
    from: Reader<io::PipeReader>,
    left: Receiver<()>,
}

impl Bench {
    fn start() -> Self {
        Self::of(Arc::new(Echo), || 0)
    }

    /// With another model in the echo's place, and what tells that it works.
    fn of(model: Arc<dyn Model>, progress: impl Fn() -> u64 + Send + 'static) -> Self {
        let (stdin, to) = io::pipe().unwrap();
        let (from, stdout) = io::pipe().unwrap();
        let (leave, left) = channel();
        std::thread::spawn(move || {
            let registry: worker::Registry = BTreeMap::from([("echo".to_owned(), model)]);
            let leave = move || leave.send(()).unwrap_or_default();
            worker::serve_pipes(registry, Owned::cpu(), stdin, stdout, progress, leave).unwrap();
        });
        let mut bench = Self { to: Some(Writer::new(to)), from: Reader::new(from), left };
        assert!(matches!(bench.next(), Some(FromWorker::Hello(_))));
        bench.say(&[ToWorker::Load {
            spec: LoadSpec::new("echo", "echo", Weights::Path("none".into())),
            room_bytes: None,
        }]);
        assert!(matches!(bench.next(), Some(FromWorker::Loaded { .. })));
        bench
    }

    fn say(&mut self, frames: &[ToWorker]) {
        let to = self.to.as_mut().unwrap();
        frames.iter().for_each(|frame| to.put(frame).unwrap());
        to.flush().unwrap();
    }

    /// The next frame that is not a heartbeat; none when the worker is gone.
    fn next(&mut self) -> Option<FromWorker> {
        loop {
            match self.from.receive().unwrap() {
                Some(FromWorker::Heartbeat) => {}
                frame => return frame,
            }
        }
    }

    /// What it says about predictions until `count` of them have ended.
    fn until_ended(&mut self, count: usize) -> Vec<Emitted> {
        let mut all: Vec<Emitted> = Vec::new();
        while all.iter().filter(|emitted| matches!(emitted.event, Event::Ended(_))).count() < count {
            match self.next() {
                Some(FromWorker::Events(events)) => all.extend(events),
                other => panic!("{other:?} after {all:?}"),
            }
        }
        all
    }
}

fn admit(id: &str, input: serde_json::Value) -> ToWorker {
    let job = Job { id: Id::from(id), input: input.as_object().unwrap().clone(), seed: 1 };
    ToWorker::Admit { target: "echo".into(), attempt: 1, job }
}

#[test]
fn a_worker_behind_pipes_answers_and_takes_its_leave_when_drained() {
    let mut bench = Bench::start();
    bench.say(&[
        admit("a", json!({"text": "one two", "pieces": 2})),
        admit("b", json!({"text": "three"})),
        ToWorker::Drain,
    ]);
    let events = bench.until_ended(2);
    let said = |id: &str| {
        let texts =
            events.iter().filter(|emitted| emitted.id == Id::from(id)).filter_map(|emitted| match &emitted.event {
                Event::Output(Output::Item(text)) => text.as_str(),
                _ => None,
            });
        texts.collect::<String>()
    };
    assert_eq!((said("a").as_str(), said("b").as_str()), ("one two", "three"));
    assert_eq!(bench.next(), Some(FromWorker::Bye));
    assert_eq!(bench.next(), None);
}

#[test]
fn when_the_server_is_gone_the_worker_leaves_in_the_middle_of_a_step() {
    let mut bench = Bench::start();
    bench.say(&[admit("held", json!({"hold": true}))]);
    assert!(matches!(bench.next(), Some(FromWorker::Events(_))));
    drop(bench.to.take());
    bench.left.recv_timeout(PATIENCE).expect("it was told to leave");
}

#[test]
fn a_server_that_talks_nonsense_is_left() {
    let (stdin, mut to) = io::pipe().unwrap();
    let (mut from, stdout) = io::pipe().unwrap();
    let (leave, left) = channel();
    let leave = move || leave.send(()).unwrap_or_default();
    std::thread::spawn(move || worker::serve_pipes(BTreeMap::new(), Owned::cpu(), stdin, stdout, || 0, leave));
    io::Write::write_all(&mut to, b"GET / HTTP/1.1\r\n").unwrap();
    left.recv_timeout(PATIENCE).expect("it was told to leave");
    from.read_to_end(&mut Vec::new()).expect("its end of the pipe is closed");
}

/// One step as long as the test likes: it works until a word comes.
struct Long {
    done: Arc<AtomicU64>,
    enough: Mutex<Option<Receiver<()>>>,
}

impl Model for Long {
    fn needs(&self, _: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        Ok(0)
    }

    fn load(&self, _: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        let enough = self.enough.lock().unwrap().take().expect("it is loaded once");
        Ok(Box::new(Working { done: self.done.clone(), enough, id: None }))
    }
}

struct Working {
    done: Arc<AtomicU64>,
    enough: Receiver<()>,
    id: Option<Id>,
}

impl Loaded for Working {
    fn admit(&mut self, job: Job) -> Result<(), PredictError> {
        self.id = Some(job.id);
        Ok(())
    }

    fn step(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        while self.enough.try_recv().is_err() {
            self.done.fetch_add(1, Ordering::Relaxed);
            std::thread::yield_now();
        }
        emit(&self.id.take().unwrap(), Event::Ended(Outcome::Succeeded));
        Ok(())
    }

    fn cancel(&mut self, _: &Id) {}

    fn active(&self) -> usize {
        usize::from(self.id.is_some())
    }

    fn capacity(&self) -> usize {
        1
    }

    fn bytes(&self) -> u64 {
        0
    }
}

#[test]
fn a_long_step_that_works_says_so_in_the_middle() {
    let done = Arc::new(AtomicU64::new(0));
    let (enough, word): (Sender<()>, _) = channel();
    let model = Long { done: done.clone(), enough: Mutex::new(Some(word)) };
    let mut bench = Bench::of(Arc::new(model), move || done.load(Ordering::Relaxed));
    bench.say(&[admit("long", json!({}))]);
    assert!(matches!(bench.next(), Some(FromWorker::Events(events)) if events[0].event == Event::Started));
    // Without end until it is told: what is heard now is said in its middle.
    for _ in 0..2 {
        assert_eq!(bench.from.receive().unwrap(), Some(FromWorker::Heartbeat));
    }
    enough.send(()).unwrap();
    assert_eq!(bench.until_ended(1).last().unwrap().event, Event::Ended(Outcome::Succeeded));
}
