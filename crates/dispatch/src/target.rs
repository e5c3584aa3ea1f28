//! A model that is asked for: who waits for it, and for what. Knows no store and no worker.

use std::collections::VecDeque;

use prediction::Id;

use crate::Served;

pub struct Target {
    pub served: Served,
    /// In arrival order.
    pub queue: VecDeque<Id>,
    /// The most that it was ever said or measured to take.
    pub bytes: Option<u64>,
    /// To be loaded though nobody asks: it is pinned or preloaded, and is not there yet or was lost.
    pub wanted: bool,
    /// What keeps its queue from being let in, other than the model being full.
    pub waits: Option<Waits>,
}

/// What a queue waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// `memory: …`, for people.
    pub line: String,
    /// What it is about: while this is the same, the line is not said again.
    about: String,
    /// Whether it stands in the logs.
    pub logged: bool,
}

impl Waits {
    /// For a worker that is being started: soon over, and not worth a line unless the ones before did not live either.
    pub fn worker(devices: &str, ones_before_lived: bool) -> Self {
        let what = if ones_before_lived { "" } else { ": the ones before did not start or did not live" };
        let line = format!("a worker on {devices}{what}");
        Self { about: line.clone(), line, logged: !ones_before_lived }
    }

    pub fn device(device: &str, what: &str) -> Self {
        let line = format!("{device}: {what}");
        Self { about: line.clone(), line, logged: true }
    }

    /// `free` of `budget` bytes, and who has the rest; `who` are the names in it.
    pub fn memory(target: &str, needs: u64, free: u64, budget: u64, by: &str, who: &[String]) -> Self {
        let line = format!("memory: {target} needs {needs} bytes, {free} of {budget} are free; {by}");
        Self { about: format!("memory {}", who.join(" ")), line, logged: true }
    }

    pub fn log_line(&self) -> String {
        format!("waiting for {}\n", self.line)
    }
}

impl Target {
    pub fn new(served: Served) -> Self {
        let mut new = Self { served, queue: VecDeque::new(), bytes: None, wanted: false, waits: None };
        new.want_again();
        new
    }

    /// If it is there without being asked for, it is to be there again.
    pub fn want_again(&mut self) {
        self.wanted |= self.served.pinned || self.served.preload;
    }

    /// A size that was heard of: it never needs to be asked for less again.
    pub fn takes(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(Some(bytes));
    }

    /// Notes what it waits for; the line for the logs of those who wait, if that is news.
    pub fn wait_for(&mut self, waits: Option<Waits>) -> Option<String> {
        let about = |waits: &Option<Waits>| waits.as_ref().map(|waits| waits.about.clone());
        let news = about(&waits) != about(&self.waits);
        self.waits = waits;
        self.waits.as_ref().filter(|waits| news && waits.logged).map(Waits::log_line)
    }
}
