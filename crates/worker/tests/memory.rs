//! Models that come and go leave no memory behind. A binary of its own: what the process holds is nobody else's.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use prediction::frame::{FromWorker, ToWorker};
use prediction::{Event, Id, Job, LoadSpec, Loaded, Model, PredictError, Weights};
use worker::Owned;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
/// Pieces small enough for the allocator to keep when they are freed.
const PIECE: usize = 16 << 10;

/// Holds so many MiB in small pieces. Each load leaves a crumb behind, after the rest, as caches and interned names do.
struct Hog(usize);

impl Model for Hog {
    fn needs(&self, _: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        Ok(0)
    }

    fn load(&self, _: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        let pieces = (0..self.0 * MIB / PIECE).map(|_| vec![1_u8; PIECE]).collect();
        std::mem::forget(vec![1_u8; 64]);
        Ok(Box::new(Full(pieces)))
    }
}

struct Full(Vec<Vec<u8>>);

impl Loaded for Full {
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
        (self.0.len() * PIECE) as u64
    }
}

/// Resident memory of this process, in MiB.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    // SAFETY: asks for a constant of the system.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as f64 / MIB as f64
}

struct Bench {
    to: Sender<ToWorker>,
    from: Receiver<FromWorker>,
}

impl Bench {
    fn start() -> Self {
        let (to, inbox) = channel();
        let (out, from) = channel();
        std::thread::spawn(move || {
            let small: Arc<dyn Model> = Arc::new(Hog(20));
            let registry: worker::Registry =
                BTreeMap::from([("small".to_owned(), small), ("large".to_owned(), Arc::new(Hog(30)) as _)]);
            worker::run(registry, Owned::cpu(), inbox, move |frame| out.send(frame).is_ok());
        });
        Self { to, from }
    }

    fn waits_for(&self, wanted: fn(&FromWorker) -> bool) {
        while !wanted(&self.from.recv_timeout(PATIENCE).expect("it answers")) {}
    }

    fn loads(&self, model: &str) {
        let spec = LoadSpec::new(model, model, Weights::Path("none".into()));
        self.to.send(ToWorker::Load { spec, room_bytes: None }).unwrap();
        self.waits_for(|frame| matches!(frame, FromWorker::Loaded { .. }));
    }

    fn unloads(&self, target: &str) {
        self.to.send(ToWorker::Unload { target: target.into() }).unwrap();
        self.waits_for(|frame| matches!(frame, FromWorker::Unloaded { .. }));
    }
}

#[test]
fn what_an_unloaded_model_held_is_the_systems_again_and_fifty_turns_later_there_is_no_more_of_it() {
    let bench = Bench::start();
    let before = resident();
    let mut at_turn = Vec::new();
    for turn in 0..50 {
        let model = ["small", "large"][turn % 2];
        bench.loads(model);
        at_turn.push(resident());
        bench.unloads(model);
        let left = resident() - before;
        assert!(left < 5.0, "turn {turn}: {left:.1} MiB are left");
    }
    for (early, late) in [(4, 48), (5, 49)] {
        let (early, late) = (at_turn[early], at_turn[late]);
        assert!((late / early - 1.0).abs() < 0.05, "{early:.1} MiB, then {late:.1} MiB");
    }
}
