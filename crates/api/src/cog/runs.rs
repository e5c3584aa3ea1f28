//! What runs now, and which slots are free. A slot is held by whoever runs in it and is free again when that has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::run::Run;

pub struct Runs {
    slots: usize,
    /// Who finds no slot runs all the same, and waits inside.
    queue: bool,
    state: Mutex<State>,
    /// Predictions that have not ended, and webhooks that are on their way: what a stop waits for.
    running: watch::Sender<usize>,
    telling: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    /// By the caller's id; of two with the same one, the later.
    by_id: HashMap<String, Arc<Run>>,
    taken: usize,
    counts: Counts,
}

/// Since the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub succeeded: u64,
    pub failed: u64,
    pub canceled: u64,
    pub refused_busy: u64,
    pub predict_seconds: f64,
}

/// The right to run. Dropping it gives it back.
pub struct Slot(Arc<Runs>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.state().taken -= 1;
    }
}

/// Something that a stop waits for, until this is dropped.
pub struct Busy(watch::Sender<usize>);

impl Busy {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Runs {
    pub fn new(slots: usize, queue: bool) -> Self {
        Self { slots, queue, state: Mutex::default(), running: watch::Sender::new(0), telling: watch::Sender::new(0) }
    }

    /// None where all are taken. `capacity` is what the model takes at once.
    pub fn slot(self: &Arc<Self>, capacity: usize) -> Option<Slot> {
        let mut state = self.state();
        if state.taken >= self.slots(capacity) && !self.queue {
            state.counts.refused_busy += 1;
            return None;
        }
        state.taken += 1;
        Some(Slot(self.clone()))
    }

    pub fn slots(&self, capacity: usize) -> usize {
        self.slots.min(capacity).max(1)
    }

    pub fn taken(&self) -> usize {
        self.state().taken
    }

    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    pub fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.state().counts);
    }

    pub fn find(&self, id: &str) -> Option<Arc<Run>> {
        self.state().by_id.get(id).cloned()
    }

    pub fn put(&self, run: &Arc<Run>) {
        self.state().by_id.insert(run.id.clone(), run.clone());
    }

    /// The run, unless one of this id runs already: that one.
    pub fn put_if_new(&self, run: &Arc<Run>) -> Result<(), Arc<Run>> {
        let mut state = self.state();
        match state.by_id.get(&run.id) {
            Some(there) => Err(there.clone()),
            None => {
                state.by_id.insert(run.id.clone(), run.clone());
                Ok(())
            }
        }
    }

    /// It has ended: nobody finds it any more.
    pub fn remove(&self, run: &Arc<Run>) {
        let mut state = self.state();
        if state.by_id.get(&run.id).is_some_and(|there| Arc::ptr_eq(there, run)) {
            state.by_id.remove(&run.id);
        }
    }

    pub fn running(&self) -> Busy {
        Busy::new(&self.running)
    }

    pub fn telling(&self) -> Busy {
        Busy::new(&self.telling)
    }

    /// When nothing runs.
    pub async fn idle(&self) {
        none(&self.running).await;
    }

    /// When no webhook is on its way.
    pub async fn told(&self) {
        none(&self.telling).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn none(count: &watch::Sender<usize>) {
    // The sender is there as long as this borrows it.
    let _ = count.subscribe().wait_for(|count| *count == 0).await;
}
