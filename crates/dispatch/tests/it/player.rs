//! A worker that plays its part by itself: models take what their sizes say, predictions run as long as a seed says. It
//! checks what dispatch must never do: load beyond the device's memory, unload who is busy, let in too many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prediction::frame::{FromWorker, ToWorker};
use prediction::{Event, Id, Outcome, PredictError};

use crate::puppet::{Puppet, succeeded, text};

pub const CAPACITY: u32 = 2;

/// Small numbers without a pattern, the same for the same seed.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What it did, for the test to look at.
#[derive(Default)]
pub struct Seen {
    /// Targets in the order in which they were loaded.
    pub loads: Vec<String>,
    pub most_bytes: u64,
    /// Dispatch asked for what it must not.
    pub wronged: bool,
}

#[derive(Clone)]
pub struct Player {
    pub bytes: u64,
    pub sizes: BTreeMap<String, u64>,
    /// Seconds that a prediction takes, below this.
    pub seconds: u64,
    /// Of a hundred predictions, so many break their model.
    pub breaks: u64,
    pub dice: Dice,
    pub seen: Arc<Mutex<Seen>>,
}

impl Player {
    pub fn new(bytes: u64, sizes: &[(&str, u64)]) -> Self {
        let sizes = sizes.iter().map(|(target, size)| ((*target).to_owned(), *size)).collect();
        Self { bytes, sizes, seconds: 1, breaks: 0, dice: Dice(1), seen: Arc::default() }
    }

    /// Plays until dispatch lets go of it, or for `lives` frames: then it dies without a word.
    pub async fn play(self, puppet: Puppet, lives: u64) {
        let seen = self.seen.clone();
        if tokio::spawn(self.part(puppet, lives)).await.is_err() {
            seen.lock().unwrap().wronged = true;
        }
    }

    async fn part(mut self, mut puppet: Puppet, lives: u64) {
        let mut loaded: BTreeMap<String, BTreeMap<Id, u32>> = BTreeMap::new();
        let (done, mut ends) = tokio::sync::mpsc::unbounded_channel::<(String, Id, u32)>();
        for _ in 0..lives {
            let frame = tokio::select! {
                frame = puppet.hears.recv() => frame,
                Some((target, id, attempt)) = ends.recv() => {
                    let Some(inside) = loaded.get_mut(&target) else { continue };
                    if inside.remove(&id).is_none() {
                        continue;
                    }
                    if self.dice.below(100) < self.breaks {
                        loaded.remove(&target);
                        let why = Some(PredictError::OutOfMemory("no memory".into()));
                        puppet.say(FromWorker::Unloaded { target, why });
                    } else {
                        puppet.emits(id.as_str(), attempt, [text("x"), succeeded()]);
                    }
                    continue;
                }
            };
            match frame {
                None => return,
                Some(ToWorker::Load { spec, room_bytes }) => {
                    let (needed_bytes, target) = (self.sizes[&spec.target], spec.target);
                    let room_bytes = room_bytes.expect("the device has a bound");
                    if needed_bytes > room_bytes {
                        puppet.say(FromWorker::NoRoom { target, needed_bytes, room_bytes });
                        continue;
                    }
                    assert!(loaded.insert(target.clone(), BTreeMap::new()).is_none(), "{target} is there");
                    let used = loaded.keys().map(|target| self.sizes[target]).sum::<u64>();
                    assert!(used <= self.bytes, "{used} of {} bytes: {:?}", self.bytes, loaded.keys());
                    let mut seen = self.seen.lock().unwrap();
                    seen.loads.push(target.clone());
                    seen.most_bytes = seen.most_bytes.max(used);
                    puppet.say(FromWorker::Loaded { target, bytes: needed_bytes, capacity: CAPACITY, seconds: 0.1 });
                }
                Some(ToWorker::Unload { target }) => {
                    let inside = loaded.remove(&target).expect("it is there");
                    assert!(inside.is_empty(), "{target} is busy");
                    puppet.say(FromWorker::Unloaded { target, why: None });
                }
                Some(ToWorker::Admit { target, attempt, job }) => {
                    // One that broke a moment ago: dispatch did not know.
                    let Some(inside) = loaded.get_mut(&target) else { continue };
                    assert!(inside.insert(job.id.clone(), attempt).is_none(), "{} is there", job.id);
                    assert!(inside.len() <= CAPACITY as usize, "{target} is full");
                    let (done, pause) = (done.clone(), Duration::from_millis(self.dice.below(self.seconds * 1000)));
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        let _ = done.send((target, job.id, attempt));
                    });
                }
                Some(ToWorker::Cancel { id }) => {
                    if let Some(attempt) = loaded.values_mut().find_map(|inside| inside.remove(&id)) {
                        puppet.emits(id.as_str(), attempt, [Event::Ended(Outcome::Canceled)]);
                    }
                }
                Some(ToWorker::Hello(_)) => {}
                Some(ToWorker::Drain | ToWorker::Exit) => return,
            }
        }
    }
}
