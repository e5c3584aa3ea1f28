//! From the core to the store: events in batches, the last one durable before anybody hears of it.

use prediction::frame::ToWorker;
use prediction::{Event, Id, Numbered, Outcome, Run, Timestamp};
use store::feed::Feed;
use store::{Appended, Store};
use tokio::time::{Duration, Instant};

use crate::core::{Core, Said};
use crate::live::Stage;
use crate::timers::Due;

/// How long an event between the first and the last may be missing from the store.
const EVENT_FLUSH: Duration = Duration::from_millis(150);
/// Between two tries at a store that fails: the first pause, doubled up to the limit.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_LIMIT: Duration = Duration::from_secs(5);

pub struct Written {
    id: Id,
    attempt: u32,
    /// The last event is among what was written.
    ended: bool,
    /// Given back: the store would not have them from this attempt.
    fenced: Vec<Numbered>,
}

impl Core {
    /// The last event: nothing follows it. It is told to the readers when the store has it.
    pub fn finish(&mut self, id: &Id, outcome: Outcome) {
        let Some(live) = self.live.get_mut(id) else { return };
        if live.stage == Stage::Ended {
            return;
        }
        let _ = live.number(Timestamp::now(), Event::Ended(outcome));
        let before = std::mem::replace(&mut live.stage, Stage::Ended);
        for timer in [live.deadline_timer.take(), live.run_timer.take()].into_iter().flatten() {
            self.timers.remove(timer);
        }
        let (target, place) = (live.target.clone(), live.place);
        self.leave(&target, id, before, place);
        self.flush(id);
    }

    pub fn flush_soon(&mut self) {
        if !self.flush_set {
            self.flush_set = true;
            self.timers.add(Instant::now() + EVENT_FLUSH, Due::Flush);
        }
    }

    pub fn flush_all(&mut self) {
        self.flush_set = false;
        let unwritten = self.live.iter().filter(|(_, live)| !live.pending.is_empty());
        let unwritten: Vec<Id> = unwritten.map(|(id, _)| id.clone()).collect();
        unwritten.iter().for_each(|id| self.flush(id));
    }

    /// Appends what is pending, unless an append is under way (its end flushes again) or we have no lease yet.
    pub fn flush(&mut self, id: &Id) {
        let Some(live) = self.live.get_mut(id) else { return };
        if live.writing || live.pending.is_empty() || live.attempt == 0 {
            return;
        }
        live.writing = true;
        let (attempt, events, run) = (live.attempt, std::mem::take(&mut live.pending), live.run.take());
        let (store, feed, reports, id) = (self.store.clone(), self.feed.clone(), self.reports.clone(), id.clone());
        tokio::spawn(async move {
            // Handed in together, so that one commit may serve both.
            let noted = note(&*store, &id, run);
            let (written, ()) = tokio::join!(write(&*store, &feed, id.clone(), attempt, events), noted);
            if let Some(reports) = reports.upgrade() {
                let _ = reports.send(Said::Written(written));
            }
        });
    }

    pub fn written(&mut self, written: Written) {
        let Written { id, attempt, ended, fenced } = written;
        let Some(live) = self.live.get_mut(&id) else { return };
        live.writing = false;
        if !fenced.is_empty() {
            if live.attempt == attempt {
                self.lost(&id);
            } else {
                // Our lease ran out and we have it again under another number: the same events go in under that.
                live.pending.splice(0..0, fenced);
                self.flush(&id);
            }
        } else if ended {
            let told = self.live.remove(&id).map(|live| live.on_end);
            for told in told.into_iter().flatten() {
                let _ = told.send(());
            }
        } else if live.stage == Stage::Ended {
            self.flush(&id);
        } else if !live.pending.is_empty() {
            self.flush_soon();
        }
        self.drained_yet();
    }

    /// Somebody else has it now, or ended it: we stop, and readers go on from the store.
    pub fn lost(&mut self, id: &Id) {
        let Some(live) = self.live.remove(id) else { return };
        tracing::warn!(%id, attempt = live.attempt, "the lease was lost; leaving this prediction to its new holder");
        for timer in [live.deadline_timer, live.run_timer].into_iter().flatten() {
            self.timers.remove(timer);
        }
        if live.stage == Stage::Running {
            self.places[live.place].tell(ToWorker::Cancel { id: id.clone() });
        }
        self.leave(&live.target, id, live.stage, live.place);
        self.feed.forget(id);
    }
}

/// A convenience for whoever runs it again: a prediction does not hang on it.
async fn note(store: &dyn Store, id: &Id, run: Option<Run>) {
    let Some(run) = run else { return };
    if let Err(error) = store.note_run(id, &run).await {
        tracing::warn!(%id, %error, "under what it runs could not be stored");
    }
}

/// Tries until the store answers. What was promised to be durable is neither dropped nor told early.
async fn write(store: &dyn Store, feed: &Feed, id: Id, attempt: u32, mut events: Vec<Numbered>) -> Written {
    let mut pause = RETRY;
    loop {
        match store.append(&id, attempt, &events).await {
            Ok(Appended::Fenced) => return Written { id, attempt, ended: false, fenced: events },
            Ok(Appended::Applied) => {
                let last = events.pop().filter(|last| matches!(last.event, Event::Ended(_)));
                let ended = last.is_some();
                if let Some(last) = last {
                    let _ = feed.publish(&id, last);
                }
                return Written { id, attempt, ended, fenced: Vec::new() };
            }
            Err(error) => {
                tracing::warn!(%id, %error, retry_ms = pause.as_millis(), "events could not be stored; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LIMIT);
            }
        }
    }
}
