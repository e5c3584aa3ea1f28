//! The live tail: what a running prediction says, as it says it, without waiting for the disk.
//!
//! A prediction that is live here keeps its fold and its events in memory until it ends; then the store has them all and
//! the memory goes with its last reader. Memory: twice the output of what runs now. Work for one event: one lock of its
//! own prediction and a wake-up per reader of it, whatever else runs. Refuses to know who publishes and who reads.

mod reader;
mod tail;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prediction::{Id, Numbered, Prediction, Request, Transition};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use reader::Reader;
use tail::{Published, Tail};

use crate::{Store, StoreError};

/// How often the store is asked for news of a prediction that somebody here follows and that is not live here.
const STORE_POLL_MILLIS: u64 = 500;

#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    poll: Duration,
    /// Live predictions, and those that somebody here follows while they wait or run elsewhere.
    tails: Mutex<HashMap<Id, Arc<Tail>>>,
    watchers: Mutex<Vec<UnboundedSender<Request>>>,
}

impl Feed {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::with_poll(store, Duration::from_millis(STORE_POLL_MILLIS))
    }

    fn with_poll(store: Arc<dyn Store>, poll: Duration) -> Self {
        Self { shared: Arc::new(Shared { store, poll, tails: Mutex::default(), watchers: Mutex::default() }) }
    }

    /// The prediction is live here from now on, as it stands in the store. Opening it again keeps what is newer.
    pub fn open(&self, prediction: Prediction) {
        if prediction.status.is_terminal() {
            return;
        }
        let request = prediction.request.clone();
        let is_new = lock(&self.shared.tails).entry(request.id.clone()).or_default().go_live(prediction);
        if is_new {
            let mut watchers = lock(&self.shared.watchers);
            watchers.retain(|watcher| watcher.send(request.clone()).is_ok());
        }
    }

    /// Dispatch only. An `Ended` must be in the store before it is published: from here on readers go there.
    /// `TooLate` for what is not live here.
    pub fn publish(&self, id: &Id, event: Numbered) -> Transition {
        let Some(tail) = self.shared.find(id) else { return Transition::TooLate };
        match tail.publish(event) {
            Published::TooLate => Transition::TooLate,
            Published::Goes => Transition::Applied,
            Published::Ended => {
                self.shared.drop_tail(id, &tail);
                Transition::Applied
            }
        }
    }

    /// It is not live here any more and did not end here (its lease was lost): readers go on from the store.
    pub fn forget(&self, id: &Id) {
        let mut tails = lock(&self.shared.tails);
        if let Some(tail) = tails.get(id) {
            tail.go_dormant();
            if tail.readers.load(Ordering::Relaxed) == 0 {
                tails.remove(id);
            }
        }
    }

    /// As it stands: the live state, else the store's.
    pub async fn snapshot(&self, id: &Id) -> Result<Option<Prediction>, StoreError> {
        match self.shared.find(id).and_then(|tail| tail.snapshot()) {
            Some(prediction) => Ok(Some(prediction)),
            None => self.shared.store.get(id).await,
        }
    }

    /// Every event above `after`, then what comes, each once and in order, until it ends. None if there is no such
    /// prediction.
    pub async fn follow(&self, id: &Id, after: u64) -> Result<Option<Reader>, StoreError> {
        if let Some(tail) = self.shared.attach_if_live(id) {
            return Ok(Some(Reader::new(self.shared.clone(), id.clone(), tail, after)));
        }
        let Some(stored) = self.shared.store.get(id).await? else { return Ok(None) };
        if stored.status.is_terminal() {
            let events = self.shared.store.events(id, after).await?;
            return Ok(Some(Reader::replay(self.shared.clone(), id.clone(), after, events)));
        }
        // It may go live or end before this line: a reader of a dormant tail looks in the store first.
        Ok(Some(Reader::new(self.shared.clone(), id.clone(), self.shared.attach(id), after)))
    }

    /// What goes live after this call.
    pub fn opened(&self) -> UnboundedReceiver<Request> {
        let (sender, receiver) = unbounded_channel();
        lock(&self.shared.watchers).push(sender);
        receiver
    }
}

impl Shared {
    fn find(&self, id: &Id) -> Option<Arc<Tail>> {
        lock(&self.tails).get(id).cloned()
    }

    /// Counts one more reader. Counting, going live and dropping happen under the map's lock, so that nobody waits on
    /// a tail that is not in the map.
    fn attach(&self, id: &Id) -> Arc<Tail> {
        let mut tails = lock(&self.tails);
        let tail = tails.entry(id.clone()).or_default();
        tail.readers.fetch_add(1, Ordering::Relaxed);
        tail.clone()
    }

    fn attach_if_live(&self, id: &Id) -> Option<Arc<Tail>> {
        let tails = lock(&self.tails);
        let tail = tails.get(id).filter(|tail| tail.is_live())?;
        tail.readers.fetch_add(1, Ordering::Relaxed);
        Some(tail.clone())
    }

    /// One reader less; a tail that is not live and has none is gone.
    fn detach(&self, id: &Id, tail: &Arc<Tail>) {
        let mut tails = lock(&self.tails);
        if tail.readers.fetch_sub(1, Ordering::Relaxed) == 1
            && !tail.is_live()
            && tails.get(id).is_some_and(|current| Arc::ptr_eq(current, tail))
        {
            tails.remove(id);
        }
    }

    fn drop_tail(&self, id: &Id, tail: &Arc<Tail>) {
        let mut tails = lock(&self.tails);
        if tails.get(id).is_some_and(|current| Arc::ptr_eq(current, tail)) {
            tails.remove(id);
        }
    }
}

/// What these locks guard is whole after every statement, so a panic elsewhere under one does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests;
