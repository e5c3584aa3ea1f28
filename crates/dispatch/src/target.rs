//! What is loaded, and who waits for it. Knows no store and no worker.

use std::collections::VecDeque;

use prediction::{Id, LoadSpec};
use tokio::time::{Duration, Instant};

/// After a failed load, the first pause before another is tried; doubled each time up to the limit.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_LIMIT: Duration = Duration::from_secs(30);
/// Between two lines of load progress in the logs of those who wait.
const LINE_PAUSE: Duration = Duration::from_secs(2);

pub enum State {
    NotLoaded,
    Loading { line: String, said_at: Option<Instant> },
    Loaded { bytes: u64, capacity: u32 },
    Failed { why: String, until: Instant },
}

pub struct Target {
    pub spec: LoadSpec,
    pub state: State,
    /// In arrival order.
    pub queue: VecDeque<Id>,
    pub active: u32,
    /// Loads that failed since the last that did not.
    failures: u32,
    /// Workers that were lost while they loaded it, since it was last loaded.
    pub lost_loading: u32,
}

impl Target {
    pub fn new(spec: LoadSpec) -> Self {
        Self { spec, state: State::NotLoaded, queue: VecDeque::new(), active: 0, failures: 0, lost_loading: 0 }
    }

    pub fn has_room(&self) -> bool {
        matches!(self.state, State::Loaded { capacity, .. } if self.active < capacity)
    }

    /// Whether a load should be asked for now.
    pub fn may_load(&self, now: Instant) -> bool {
        match &self.state {
            State::NotLoaded => true,
            State::Failed { until, .. } => *until <= now,
            State::Loading { .. } | State::Loaded { .. } => false,
        }
    }

    /// Why a new prediction fails at once: a load failed a moment ago and the next is not tried yet.
    pub fn refuses(&self, now: Instant) -> Option<String> {
        match &self.state {
            State::Failed { why, until } if now < *until => {
                let seconds = (*until - now).as_secs_f64().ceil();
                Some(format!("{why} (loading is tried again in {seconds} s)"))
            }
            _ => None,
        }
    }

    pub fn loading(&mut self) {
        self.state = State::Loading { line: String::new(), said_at: None };
    }

    /// Takes a line of progress; whether it is time to put it in the logs.
    pub fn progress(&mut self, new: String, now: Instant) -> bool {
        let State::Loading { line, said_at } = &mut self.state else { return false };
        if *line == new {
            return false;
        }
        *line = new;
        let due = said_at.is_none_or(|at| now >= at + LINE_PAUSE);
        if due {
            *said_at = Some(now);
        }
        due
    }

    pub fn loaded(&mut self, bytes: u64, capacity: u32) {
        self.state = State::Loaded { bytes, capacity };
        (self.failures, self.lost_loading) = (0, 0);
    }

    pub fn failed(&mut self, why: String, now: Instant) {
        let pause = BACK_OFF.saturating_mul(1 << self.failures.min(10)).min(BACK_OFF_LIMIT);
        self.failures += 1;
        self.lost_loading = 0;
        self.state = State::Failed { why, until: now + pause };
    }
}
