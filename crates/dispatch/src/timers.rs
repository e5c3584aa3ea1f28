//! What is to be done later. One place, so that the loop sleeps until exactly the next of them.

use std::collections::BTreeMap;

use prediction::Id;
use tokio::time::Instant;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Append what was said since the last time.
    Flush,
    /// Hold on to our leases, and look for ones that others lost.
    Renew,
    Sweep,
    /// Ask for leases again after the store failed.
    Lease,
    /// Start a worker in this place, where the one before was lost.
    Launch(usize),
    /// A model has been idle for long enough, or may be loaded again.
    Route,
    /// See whether the workers have said anything.
    Look,
    /// Tell those who wait how many are before them.
    Positions,
    Deadline(Id),
    RunLimit(Id),
    DrainLimit,
    DrainGivesUp,
}

/// Names one timer, so that it can be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Instant, u64);

#[derive(Default)]
pub struct Timers {
    set: BTreeMap<Key, Due>,
    count: u64,
}

impl Timers {
    pub fn add(&mut self, at: Instant, due: Due) -> Key {
        self.count += 1;
        let key = Key(at, self.count);
        self.set.insert(key, due);
        key
    }

    pub fn remove(&mut self, key: Key) {
        self.set.remove(&key);
    }

    pub fn next(&self) -> Option<Instant> {
        self.set.first_key_value().map(|(Key(at, _), _)| *at)
    }

    /// The earliest one whose time has come.
    pub fn take(&mut self, now: Instant) -> Option<Due> {
        let first = self.set.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub fn clear(&mut self) {
        self.set.clear();
    }
}
