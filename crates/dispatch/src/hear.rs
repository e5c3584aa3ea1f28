//! What a worker says, and what becomes of it: models that came, went or did not fit; events of those inside.

use prediction::frame::{BUILD, Emitted, FromWorker, Hello};
use prediction::{Event, Outcome, PredictError, Timestamp};
use tokio::time::Instant;

use crate::core::Core;
use crate::live::{Live, Stage};
use crate::place::{Resident, State};
use crate::wait::loading_line;

impl Core {
    pub fn frame(&mut self, place: usize, frame: FromWorker) {
        match frame {
            FromWorker::Hello(hello) => self.hello(place, &hello),
            FromWorker::Loading { target, line } => self.progress(place, &target, &line),
            FromWorker::Loaded { target, bytes, capacity, seconds } => {
                self.loaded(place, &target, bytes, capacity, seconds);
            }
            FromWorker::NoRoom { target, needed_bytes, room_bytes } => {
                self.no_room(place, &target, needed_bytes, room_bytes);
            }
            FromWorker::LoadFailed { target, error } => self.not_loaded(place, &target, &error),
            FromWorker::Unloaded { target, why } => self.unloaded(place, &target, why.as_ref()),
            FromWorker::Events(events) => self.events(place, events),
            FromWorker::HostCache { bytes } => self.places[place].host_cache = bytes,
            FromWorker::Broken { why } => self.worker_lost(place, &why),
            FromWorker::Heartbeat | FromWorker::Bye => {}
        }
    }

    fn hello(&mut self, place: usize, hello: &Hello) {
        if hello.build == BUILD {
            self.places[place].hello(hello);
            return;
        }
        tracing::error!(ours = BUILD, theirs = hello.build, "the worker is of another build; it is not used");
        self.worker_lost(place, "the worker is of another build");
    }

    fn progress(&mut self, place: usize, target: &str, line: &str) {
        let Some(model) = self.places[place].models.get_mut(target) else { return };
        if model.progress(line, Instant::now()) {
            self.log_waiting(target, &loading_line(target, line));
        }
    }

    fn loaded(&mut self, place: usize, target: &str, bytes: u64, capacity: u32, seconds: f64) {
        let there = &mut self.places[place];
        tracing::info!(target, device = there.device, bytes, capacity, seconds, "loaded");
        there.troubles.remove(target);
        let Some(model) = there.models.get_mut(target) else { return };
        *model = Resident {
            state: State::Loaded { capacity },
            bytes,
            active: 0,
            last_used: Instant::now(),
            pinned: model.pinned,
        };
        if let Some(there) = self.targets.get_mut(target) {
            there.takes(bytes);
        }
        self.log_waiting(target, &format!("loaded {target} in {seconds:.1} s\n"));
        self.admit_waiting(target, place);
    }

    /// Now its size is known: room is made, unless no room there would ever be enough.
    fn no_room(&mut self, place: usize, target: &str, needed: u64, room: u64) {
        let Some(there) = self.targets.get_mut(target) else { return };
        there.takes(needed);
        // Not for a preloaded one: it was to have what is free.
        there.wanted |= there.served.pinned;
        let at = &mut self.places[place];
        at.models.remove(target);
        let most = at.most().unwrap_or(room);
        if needed <= most {
            return;
        }
        let kept = at.budget.unwrap_or(room).saturating_sub(most);
        let kept = if kept == 0 { String::new() } else { format!(" ({kept} more are kept by pinned models)") };
        let why = format!("{target} needs {needed} bytes of memory; {} has {most} free for it{kept}", at.device);
        self.load_failed(place, target, &why);
    }

    fn not_loaded(&mut self, place: usize, target: &str, error: &PredictError) {
        self.places[place].models.remove(target);
        let trouble = self.places[place].trouble(target);
        if matches!(error, PredictError::OutOfMemory(_)) && !trouble.out_of_memory {
            trouble.out_of_memory = true;
            tracing::warn!(target, %error, "loading ran out of memory; once more without the idle models");
            self.log_waiting(target, &format!("{error}; loading {target} once more without the idle models\n"));
            self.unload_idle(place);
            return self.want_again(target);
        }
        self.load_failed(place, target, error.text());
    }

    /// Whoever waits for it tries the next device, or has failed if this was the last.
    pub fn load_failed(&mut self, place: usize, target: &str, why: &str) {
        let now = Instant::now();
        let at = &mut self.places[place];
        tracing::error!(target, device = at.device, why, "loading failed");
        at.trouble(target).fail(why.to_owned(), now);
        if self.hopeless(target, now).is_none() {
            return self.want_again(target);
        }
        let Some(there) = self.targets.get_mut(target) else { return };
        there.wanted = false;
        for id in std::mem::take(&mut there.queue) {
            self.finish(&id, Outcome::Failed { error: why.to_owned() });
        }
    }

    fn want_again(&mut self, target: &str) {
        if let Some(there) = self.targets.get_mut(target) {
            there.want_again();
        }
    }

    /// Asked for, or the model broke: then whoever was inside, or on the way in, has not ended.
    fn unloaded(&mut self, place: usize, target: &str, why: Option<&PredictError>) {
        let gone = self.places[place].models.remove(target);
        let inside = |live: &Live| live.place == place && live.target == target;
        match why {
            Some(error) => {
                tracing::error!(target, device = self.places[place].device, why = error.text(), "the model broke");
                if matches!(error, PredictError::OutOfMemory(_)) {
                    self.unload_idle(place);
                }
                self.interrupt(inside, error.text(), &Outcome::Failed { error: error.text().to_owned() });
                if let Some(gone) = gone {
                    self.replace(target, &gone);
                }
            }
            None => {
                let inside = self.inside_where(inside);
                self.back_to_queue(inside);
            }
        }
    }

    fn events(&mut self, place: usize, events: Vec<Emitted>) {
        let now = Timestamp::now();
        for Emitted { id, attempt, event } in events {
            let Some(live) = self.live.get_mut(&id) else { continue };
            // A late word of somebody who was taken out, or of an earlier attempt.
            if live.stage != Stage::Running || live.place != place || live.admitted_as != attempt {
                continue;
            }
            match event {
                Event::Ended(outcome) => {
                    let asked = if outcome == Outcome::Canceled { live.stop.take() } else { None };
                    self.finish(&id, asked.unwrap_or(outcome));
                }
                event => self.say(&id, now, event),
            }
        }
    }
}
