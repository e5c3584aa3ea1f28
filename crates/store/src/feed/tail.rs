//! One prediction's tail: its fold, its events since it went live, and whom to wake. Knows no store.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use prediction::{Numbered, Prediction, Transition};
use tokio::sync::watch;

use super::lock;

/// Events handed to a reader at once, so that one slow reader of a long tail does not hold the lock for long.
const EVENTS_PER_LOOK: usize = 64;

pub(super) struct Tail {
    state: Mutex<State>,
    /// Marked as changed after every change of `state`; the value says nothing.
    changed: watch::Sender<()>,
    /// How many follow it; touched under the map's lock only.
    pub(super) readers: AtomicUsize,
}

enum State {
    /// Not live here: the store knows.
    Dormant,
    Live(Box<Live>),
}

struct Live {
    prediction: Prediction,
    /// The number up to which the store had everything when it went live.
    base: u64,
    /// Everything after `base`.
    events: Vec<Numbered>,
}

pub(super) enum Published {
    Goes,
    Ended,
    TooLate,
}

/// What a reader that has seen everything up to a number finds.
pub(super) enum Look {
    Events(Vec<Numbered>),
    /// Nothing yet: wait.
    Nothing,
    /// Nothing, and nothing will come.
    Ended,
    /// The store has what is next.
    Store,
}

impl Default for Tail {
    fn default() -> Self {
        Self { state: Mutex::new(State::Dormant), changed: watch::Sender::new(()), readers: AtomicUsize::new(0) }
    }
}

impl Tail {
    /// True if it was not live before. Of a live one the newer state stays: a later `base` means that somebody else
    /// went on, and what lies between is in the store.
    pub(super) fn go_live(&self, prediction: Prediction) -> bool {
        let mut state = lock(&self.state);
        let is_new = match &*state {
            State::Dormant => true,
            State::Live(live) if live.prediction.last_seq >= prediction.last_seq => return false,
            State::Live(_) => false,
        };
        let live = Live { base: prediction.last_seq, prediction, events: Vec::new() };
        *state = State::Live(Box::new(live));
        drop(state);
        self.changed.send_replace(());
        is_new
    }

    pub(super) fn go_dormant(&self) {
        *lock(&self.state) = State::Dormant;
        self.changed.send_replace(());
    }

    pub(super) fn publish(&self, event: Numbered) -> Published {
        let mut state = lock(&self.state);
        let State::Live(live) = &mut *state else { return Published::TooLate };
        if live.prediction.apply(&event) == Transition::TooLate {
            return Published::TooLate;
        }
        live.events.push(event);
        let ended = live.prediction.status.is_terminal();
        drop(state);
        self.changed.send_replace(());
        if ended { Published::Ended } else { Published::Goes }
    }

    pub(super) fn snapshot(&self) -> Option<Prediction> {
        match &*lock(&self.state) {
            State::Dormant => None,
            State::Live(live) => Some(live.prediction.clone()),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(&*lock(&self.state), State::Live(_))
    }

    /// Woken after every change from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn look(&self, seen: u64) -> Look {
        let state = lock(&self.state);
        let State::Live(live) = &*state else { return Look::Store };
        if seen < live.base {
            return Look::Store;
        }
        let from = live.events.partition_point(|event| event.seq <= seen);
        let news = &live.events[from..];
        if !news.is_empty() {
            return Look::Events(news[..news.len().min(EVENTS_PER_LOOK)].to_vec());
        }
        if live.prediction.status.is_terminal() { Look::Ended } else { Look::Nothing }
    }
}
