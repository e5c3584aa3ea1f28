//! Ways for a prediction to end that are not the model's: cancel, deadline, run limit, and the server's own shutdown.

use prediction::frame::ToWorker;
use prediction::{Id, Outcome};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use crate::core::{Core, Draining, Said};
use crate::live::Stage;
use crate::timers::Due;

/// After the drain's limit, how long the store may take to note what ended there.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Core {
    pub fn cancel(&mut self, id: &Id, here: oneshot::Sender<bool>, ended: oneshot::Sender<()>) {
        let live = self.live.get_mut(id);
        let _ = here.send(live.is_some());
        if let Some(live) = live {
            live.on_end.push(ended);
            self.stop(id, Outcome::Canceled);
        }
    }

    /// Ends it at once if it waits; else asks the worker, whose `Ended(Canceled)` then becomes `outcome`.
    pub fn stop(&mut self, id: &Id, outcome: Outcome) {
        let Some(live) = self.live.get_mut(id) else { return };
        match live.stage {
            Stage::Ended => {}
            Stage::Waiting => self.finish(id, outcome),
            // The lease is on its way; `enqueue` looks here.
            Stage::Creating | Stage::Created => drop(live.stop.get_or_insert(outcome)),
            Stage::Running if live.stop.is_none() => {
                live.stop = Some(outcome);
                self.places[live.place].tell(ToWorker::Cancel { id: id.clone() });
            }
            Stage::Running => {}
        }
    }

    pub fn deadline(&mut self, id: &Id) {
        let started = self.live.get(id).is_some_and(|live| live.started || live.stage == Stage::Running);
        self.stop(id, if started { Outcome::Canceled } else { Outcome::Aborted });
    }

    pub fn run_limit(&mut self, id: &Id) {
        let seconds = self.settings.run_seconds;
        self.stop(id, Outcome::Failed { error: format!("ran for {seconds} s, which is the limit (run_seconds)") });
    }

    pub fn drain(&mut self, asked: oneshot::Sender<()>) {
        if let Some(draining) = &mut self.draining {
            if draining.done {
                let _ = asked.send(());
            } else {
                draining.asked.push(asked);
            }
            return;
        }
        self.draining = Some(Draining { asked: vec![asked], ..Draining::default() });
        self.timers.add(Instant::now() + Duration::from_secs(self.settings.drain_seconds), Due::DrainLimit);
        self.flush_all();
        self.places.iter().for_each(|place| place.tell(ToWorker::Drain));
        self.drained_yet();
    }

    /// Time is up. What has been read is not said again: it ends here. The rest is repeated by the next life.
    pub fn drain_limit(&mut self) {
        let running: Vec<Id> = self.running().map(|(id, _)| id.clone()).collect();
        for id in running {
            let Some(live) = self.live.get_mut(&id) else { continue };
            if let Some(outcome) = live.stop.take() {
                self.finish(&id, outcome);
            } else if live.has_output {
                let over = self.over();
                self.finish(&id, over);
            } else {
                live.stage = Stage::Waiting;
            }
        }
        self.places.iter().for_each(|place| place.tell(ToWorker::Exit));
        self.flush_all();
        self.timers.add(Instant::now() + LAST_WORDS, Due::DrainGivesUp);
        self.drained_yet();
    }

    /// A store that takes nothing must not hold up the stop: what it lacks is repeated by the next life.
    pub fn drain_gives_up(&mut self) {
        let unsaid = self.live.values().filter(|live| live.writing || !live.pending.is_empty()).count();
        tracing::error!(unsaid, "the store does not take what was said last; stopping without it");
        self.released();
    }

    /// When nothing runs and everything said is stored, gives the leases back, so that the next life need not wait.
    pub fn drained_yet(&mut self) {
        let Some(draining) = &mut self.draining else { return };
        let busy = self.live.values().any(|live| {
            let unsaid = live.writing || (!live.pending.is_empty() && live.attempt > 0);
            unsaid || matches!(live.stage, Stage::Creating | Stage::Running | Stage::Ended)
        });
        if busy || draining.releasing {
            return;
        }
        draining.releasing = true;
        self.timers.clear();
        let (store, owner, reports) = (self.store.clone(), self.settings.owner.clone(), self.reports.clone());
        tokio::spawn(async move {
            if let Err(error) = store.release(&owner).await {
                tracing::warn!(%error, "leases could not be given back; the next start takes them up all the same");
            }
            if let Some(reports) = reports.upgrade() {
                let _ = reports.send(Said::Released);
            }
        });
    }

    pub fn released(&mut self) {
        self.places.iter_mut().for_each(|place| place.link = None);
        if let Some(draining) = &mut self.draining {
            draining.done = true;
            for asked in draining.asked.drain(..) {
                let _ = asked.send(());
            }
        }
    }
}
