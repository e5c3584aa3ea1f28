//! One follower of one prediction. Knows where it stands; takes what is next from the tail or from the store.

use std::collections::VecDeque;
use std::sync::Arc;

use prediction::{Event, Id, Numbered};
use tokio::sync::watch;

use super::Shared;
use super::tail::{Look, Tail};
use crate::StoreError;

pub struct Reader {
    shared: Arc<Shared>,
    id: Id,
    source: Source,
    /// The number of the last event that was fetched.
    seen: u64,
    /// Fetched and not yet handed out.
    fetched: VecDeque<Numbered>,
}

enum Source {
    Tail {
        tail: Arc<Tail>,
        changed: watch::Receiver<()>,
    },
    /// Nothing more than what is fetched.
    Ended,
}

impl Reader {
    /// `tail` counts this reader already.
    pub(super) fn new(shared: Arc<Shared>, id: Id, tail: Arc<Tail>, after: u64) -> Self {
        let changed = tail.subscribe();
        Self { shared, id, source: Source::Tail { tail, changed }, seen: after, fetched: VecDeque::new() }
    }

    pub(super) fn replay(shared: Arc<Shared>, id: Id, after: u64, events: Vec<Numbered>) -> Self {
        Self { shared, id, source: Source::Ended, seen: after, fetched: events.into() }
    }

    /// The next event; none after the last, and none at once where the sweep has removed them. Dropping the future
    /// loses nothing: an event is taken only on the way out.
    pub async fn next(&mut self) -> Option<Numbered> {
        loop {
            if let Some(event) = self.fetched.pop_front() {
                return Some(event);
            }
            let Source::Tail { tail, changed } = &mut self.source else { return None };
            // First the mark, then the look: what changes after the look wakes the wait below.
            changed.borrow_and_update();
            match tail.look(self.seen) {
                Look::Events(events) => self.take(events),
                Look::Ended => self.end(),
                Look::Nothing => wait(changed).await,
                Look::Store => {
                    if !self.read_store().await {
                        self.pause().await;
                    }
                }
            }
        }
    }

    /// Takes what the store has, and the end if it knows of one. True if there is something to hand out.
    async fn read_store(&mut self) -> bool {
        match self.ask_store().await {
            Ok((events, ended)) => {
                self.take(events);
                if ended && self.fetched.is_empty() {
                    self.end();
                }
            }
            Err(why) => tracing::warn!(id = %self.id, "cannot read events to follow, will try again: {why}"),
        }
        !self.fetched.is_empty()
    }

    /// Events above what was seen, and whether none will follow them.
    async fn ask_store(&self) -> Result<(Vec<Numbered>, bool), StoreError> {
        let store = &self.shared.store;
        let events = store.events(&self.id, self.seen).await?;
        if !events.is_empty() {
            return Ok((events, false));
        }
        match store.get(&self.id).await? {
            Some(prediction) if !prediction.status.is_terminal() => Ok((events, false)),
            // It may have ended between the two questions; now its events are complete.
            _ => Ok((store.events(&self.id, self.seen).await?, true)),
        }
    }

    fn take(&mut self, events: Vec<Numbered>) {
        let Some(last) = events.last() else { return };
        self.seen = last.seq;
        let ended = matches!(last.event, Event::Ended(_));
        self.fetched.extend(events);
        if ended {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Source::Tail { tail, .. } = std::mem::replace(&mut self.source, Source::Ended) {
            self.shared.detach(&self.id, &tail);
        }
    }

    async fn pause(&mut self) {
        let Source::Tail { changed, .. } = &mut self.source else { return };
        let _ = tokio::time::timeout(self.shared.poll, wait(changed)).await;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end();
    }
}

async fn wait(changed: &mut watch::Receiver<()>) {
    // The sender lives in the tail that this reader holds, so it cannot be gone.
    let _ = changed.changed().await;
}
