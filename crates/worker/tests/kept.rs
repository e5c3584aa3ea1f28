//! What unloaded models leave in the host's memory: within the budget, the oldest first to go, and at the cost of older copies alone.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prediction::frame::{FromWorker, ToWorker};
use prediction::{Event, Id, Job, Kept, LoadSpec, Loaded, Map, Model, PredictError, Weights};
use worker::Owned;

const PATIENCE: Duration = Duration::from_secs(20);
const BUDGET: u64 = 100;

/// Everything that was done to the models, in order.
type Diary = Arc<Mutex<Vec<String>>>;

/// A model that keeps as many bytes as its weights' name says, and writes down what becomes of it. Its precision says how it
/// keeps: `fails`, `panics`, `lost`, `nothing`.
struct Fake(Diary);

struct Thing {
    diary: Diary,
    weights: String,
    how: Option<String>,
    inside: Option<Id>,
}

struct Left {
    diary: Diary,
    weights: String,
    bytes: u64,
}

fn weights(spec: &LoadSpec) -> String {
    match &spec.weights {
        Weights::Path(path) => path.display().to_string(),
        other => panic!("{other:?}"),
    }
}

impl Fake {
    fn loaded(&self, spec: &LoadSpec) -> Box<dyn Loaded> {
        let (diary, weights, how) = (self.0.clone(), weights(spec), spec.precision.clone());
        Box::new(Thing { diary, weights, how, inside: None })
    }

    fn note(&self, what: &str, spec: &LoadSpec) {
        self.0.lock().unwrap().push(format!("{what} {}", weights(spec)));
    }
}

impl Model for Fake {
    fn needs(&self, _: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        Ok(0)
    }

    fn load(&self, spec: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        self.note("reads", spec);
        Ok(self.loaded(spec))
    }

    fn load_kept(
        &self,
        spec: &LoadSpec,
        kept: Box<dyn Kept>,
        _: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Loaded>, PredictError> {
        let kept: Box<dyn std::any::Any> = kept;
        let kept = kept.downcast::<Left>().unwrap_or_else(|_| panic!("another model's"));
        assert_eq!(kept.weights, weights(spec));
        self.note("takes back", spec);
        Ok(self.loaded(spec))
    }
}

impl Loaded for Thing {
    fn admit(&mut self, job: Job) -> Result<(), PredictError> {
        self.inside = Some(job.id);
        Ok(())
    }

    fn step(&mut self, _: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        Err(PredictError::Operator("it broke".into()))
    }

    fn cancel(&mut self, _: &Id) {
        self.inside = None;
    }

    fn active(&self) -> usize {
        usize::from(self.inside.is_some())
    }

    fn capacity(&self) -> usize {
        1
    }

    fn bytes(&self) -> u64 {
        1
    }

    fn kept_bytes(&self) -> u64 {
        self.weights.split('-').nth(1).unwrap().parse().unwrap()
    }

    fn keep(&self) -> Result<Option<Box<dyn Kept>>, PredictError> {
        self.diary.lock().unwrap().push(format!("keeps {}", self.weights));
        match self.how.as_deref() {
            Some("fails") => Err(PredictError::OutOfMemory("no page-locked memory".into())),
            Some("panics") => panic!("in the middle of a copy"),
            Some("lost") => Err(PredictError::DeviceLost("it fell off the bus".into())),
            Some("nothing") => Ok(None),
            _ => {
                let (diary, weights) = (self.diary.clone(), self.weights.clone());
                Ok(Some(Box::new(Left { diary, weights, bytes: self.kept_bytes() })))
            }
        }
    }
}

impl Kept for Left {
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.diary.lock().unwrap().push(format!("drops {}", self.weights));
    }
}

struct Bench {
    to: Sender<ToWorker>,
    from: Receiver<FromWorker>,
    diary: Diary,
}

impl Bench {
    fn new(budget: u64) -> Self {
        let ((to, inbox), (out, from), diary) = (channel(), channel(), Diary::default());
        let model = diary.clone();
        std::thread::spawn(move || {
            let registry: worker::Registry = BTreeMap::from([("fake".to_owned(), Arc::new(Fake(model)) as _)]);
            let owned = Owned { host_cache_bytes: budget, ..Owned::cpu() };
            worker::run(registry, owned, inbox, move |frame| out.send(frame).is_ok());
        });
        Self { to, from, diary }
    }

    fn say(&self, frame: ToWorker) {
        self.to.send(frame).unwrap();
    }

    fn next(&self) -> FromWorker {
        loop {
            match self.from.recv_timeout(PATIENCE).expect("it answers") {
                FromWorker::Heartbeat | FromWorker::Hello(_) | FromWorker::Events(_) => {}
                frame => return frame,
            }
        }
    }

    /// Under a name of its own, of weights whose name says how much they keep.
    fn loads(&self, weights: &str, how: Option<&str>) {
        let mut spec = LoadSpec::new(weights, "fake", Weights::Path(weights.into()));
        spec.precision = how.map(str::to_owned);
        self.say(ToWorker::Load { spec, room_bytes: None });
        while !matches!(self.next(), FromWorker::Loaded { .. }) {}
    }

    fn unloads(&self, target: &str) {
        self.say(ToWorker::Unload { target: target.to_owned() });
        assert_eq!(self.next(), FromWorker::Unloaded { target: target.to_owned(), why: None });
    }

    fn comes_and_goes(&self, weights: &str, how: Option<&str>) {
        self.loads(weights, how);
        self.unloads(weights);
    }

    /// What was done since the last look.
    fn done(&self) -> Vec<String> {
        // Whatever was said before has been done when this has been answered.
        self.say(ToWorker::Load {
            spec: LoadSpec::new("nobody", "nobody", Weights::Path("".into())),
            room_bytes: None,
        });
        while !matches!(self.next(), FromWorker::LoadFailed { .. }) {}
        std::mem::take(&mut *self.diary.lock().unwrap())
    }
}

#[test]
fn a_model_that_was_unloaded_comes_back_from_its_copy_once() {
    let bench = Bench::new(BUDGET);
    bench.comes_and_goes("a-40", None);
    assert_eq!(bench.next(), FromWorker::HostCache { bytes: 40 });
    bench.say(ToWorker::Load {
        spec: LoadSpec::new("other name", "fake", Weights::Path("a-40".into())),
        room_bytes: None,
    });
    assert_eq!(bench.next(), FromWorker::HostCache { bytes: 0 });
    assert!(matches!(bench.next(), FromWorker::Loaded { .. }));
    bench.loads("a-40", None);
    assert_eq!(bench.done(), ["reads a-40", "keeps a-40", "takes back a-40", "drops a-40", "reads a-40"]);
}

#[test]
fn another_precision_or_device_is_another_load() {
    let bench = Bench::new(BUDGET);
    bench.comes_and_goes("a-40", None);
    let spec = LoadSpec::new("a", "fake", Weights::Path("a-40".into()));
    for spec in
        [LoadSpec { precision: Some("f16".into()), ..spec.clone() }, LoadSpec { device: "cuda:1".into(), ..spec }]
    {
        bench.say(ToWorker::Load { spec, room_bytes: None });
    }
    // The second is of the name of the first, which leaves before it.
    assert_eq!(bench.done(), ["reads a-40", "keeps a-40", "reads a-40", "keeps a-40", "reads a-40"]);
}

#[test]
fn the_copy_that_is_oldest_leaves_first_and_the_budget_is_never_passed() {
    let bench = Bench::new(BUDGET);
    for weights in ["a-40", "b-30", "c-30"] {
        bench.comes_and_goes(weights, None);
    }
    bench.comes_and_goes("a-40", None);
    assert_eq!(bench.done().last().unwrap(), "keeps a-40", "all three fit");
    // From the oldest to the newest: b, c, a.
    bench.comes_and_goes("d-20", None);
    bench.comes_and_goes("e-50", None);
    let done = bench.done();
    assert_eq!(
        done,
        ["reads d-20", "drops b-30", "keeps d-20", "reads e-50", "drops c-30", "drops a-40", "keeps e-50"]
    );
    bench.comes_and_goes("f-101", None);
    assert_eq!(bench.done(), ["reads f-101"], "what never fits costs nobody a place");
    bench.comes_and_goes("g-100", None);
    assert_eq!(bench.done(), ["reads g-100", "drops d-20", "drops e-50", "keeps g-100"]);
}

#[test]
fn a_copy_that_cannot_be_made_loses_nothing() {
    let bench = Bench::new(BUDGET);
    bench.comes_and_goes("a-40", None);
    for how in ["panics", "nothing", "fails"] {
        bench.comes_and_goes("b-10", Some(how));
        bench.comes_and_goes("b-10", Some(how));
        assert_eq!(bench.done().iter().filter(|line| *line == "reads b-10").count(), 2, "{how}");
    }
    bench.loads("a-40", None);
    assert_eq!(bench.done(), ["takes back a-40", "drops a-40"]);
}

#[test]
fn once_the_host_had_no_memory_nobody_leaves_for_another_try() {
    let bench = Bench::new(BUDGET);
    for weights in ["a-40", "b-40"] {
        bench.comes_and_goes(weights, None);
    }
    bench.done();
    bench.comes_and_goes("c-50", Some("fails"));
    assert_eq!(bench.done(), ["reads c-50", "drops a-40", "keeps c-50"]);
    bench.comes_and_goes("c-50", Some("fails"));
    bench.comes_and_goes("d-10", None);
    assert_eq!(bench.done(), ["reads c-50", "reads d-10"], "no copy is tried");
    bench.loads("b-40", None);
    assert_eq!(bench.done(), ["takes back b-40", "drops b-40"]);
}

#[test]
fn a_model_that_broke_or_is_at_work_leaves_no_copy() {
    let bench = Bench::new(BUDGET);
    let job = |id: &str| Job { id: Id::from(id), input: Map::new(), seed: 0 };
    bench.loads("a-40", None);
    bench.say(ToWorker::Admit { target: "a-40".into(), attempt: 1, job: job("p") });
    let broke = FromWorker::Unloaded { target: "a-40".into(), why: Some(PredictError::Operator("it broke".into())) };
    assert_eq!(bench.next(), broke);
    bench.loads("a-40", None);
    // Both are heard before the next step.
    bench.say(ToWorker::Admit { target: "a-40".into(), attempt: 1, job: job("q") });
    bench.say(ToWorker::Unload { target: "a-40".into() });
    while !matches!(bench.next(), FromWorker::Unloaded { .. }) {}
    assert_eq!(bench.done(), ["reads a-40", "reads a-40"]);
}

#[test]
fn without_a_budget_nothing_is_copied() {
    let bench = Bench::new(0);
    bench.comes_and_goes("a-1", None);
    bench.comes_and_goes("a-1", None);
    assert_eq!(bench.done(), ["reads a-1", "reads a-1"]);
}

#[test]
fn a_device_that_is_lost_while_it_is_copied_is_lost() {
    let bench = Bench::new(BUDGET);
    bench.loads("a-40", Some("lost"));
    bench.say(ToWorker::Unload { target: "a-40".into() });
    assert_eq!(bench.next(), FromWorker::Broken { why: "it fell off the bus".into() });
}
