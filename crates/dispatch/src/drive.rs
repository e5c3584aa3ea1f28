//! The worker's side of the core: what is loaded, who goes in next, what comes back, and what a lost worker costs.

use prediction::frame::{BUILD, Emitted, FromWorker, Hello, ToWorker};
use prediction::{Event, Id, Outcome, Timestamp};
use tokio::time::{Duration, Instant};

use crate::core::Core;
use crate::live::{Live, Stage};
use crate::recover::{RUN_ATTEMPTS, interrupted};
use crate::target::State;
use crate::timers::Due;

/// Before a lost worker is replaced: nothing the first time, then doubled up to the limit until one says hello.
const LAUNCH_PAUSE: Duration = Duration::from_millis(100);
const LAUNCH_PAUSE_LIMIT: Duration = Duration::from_secs(5);
/// Workers that a model may take down while it loads before the load counts as failed.
const LOST_LOADING_LIMIT: u32 = 2;
/// A wait shorter than this is not worth a line in the logs.
const SAY_POSITION_AFTER: Duration = Duration::from_secs(1);

impl Core {
    pub fn launch(&mut self) {
        if self.draining.is_some() {
            return;
        }
        match self.launch.launch(&self.settings.devices[0].device.clone()) {
            Ok(link) => {
                self.link = Some(link);
                self.silent_looks = 0;
                self.tell(ToWorker::Hello(Hello {
                    build: BUILD.to_owned(),
                    device: "cpu".to_owned(),
                    name: String::new(),
                    memory: None,
                }));
                let first = self.settings.served.iter().filter(|served| served.preload || served.pinned);
                let first: Vec<String> = first.map(|served| served.spec.target.clone()).collect();
                first.iter().for_each(|target| self.load(target));
                let targets: Vec<String> = self.targets.keys().cloned().collect();
                targets.iter().for_each(|target| self.fill(target));
            }
            Err(error) => {
                tracing::error!(%error, "the worker could not be started; trying again");
                self.launch_later();
            }
        }
    }

    fn launch_later(&mut self) {
        let pause = LAUNCH_PAUSE.saturating_mul(1 << self.lost_launches.min(10)).min(LAUNCH_PAUSE_LIMIT);
        let pause = if self.lost_launches == 0 { Duration::ZERO } else { pause };
        self.lost_launches += 1;
        self.timers.add(Instant::now() + pause, Due::Launch);
    }

    /// A worker that cannot be spoken to closes its end too, and that is where its loss is dealt with.
    pub fn tell(&mut self, frame: ToWorker) {
        if let Some(link) = &self.link
            && let Err(gone) = (link.to)(frame)
        {
            tracing::warn!(%gone, "a frame was not delivered");
        }
    }

    /// A prediction whose lease we have takes its place in the queue of its target.
    pub fn enqueue(&mut self, id: &Id) {
        let now = Instant::now();
        let Some(live) = self.live.get_mut(id) else { return };
        live.stage = Stage::Waiting;
        live.waiting_since = now;
        if let Some(outcome) = live.stop.take() {
            return self.finish(id, outcome);
        }
        if let Some(deadline) = live.deadline {
            let Some(left) = u64::try_from(deadline.0 - Timestamp::now().0).ok().filter(|left| *left > 0) else {
                return self.deadline(id);
            };
            let at = now + Duration::from_micros(left);
            live.deadline_timer = Some(self.timers.add(at, Due::Deadline(id.clone())));
        }
        let target = live.target.clone();
        let Some(there) = self.targets.get_mut(&target) else {
            let error = format!("{target} is not served here any more");
            return self.finish(id, Outcome::Failed { error });
        };
        if let Some(error) = there.refuses(now) {
            return self.finish(id, Outcome::Failed { error });
        }
        there.queue.push_back(id.clone());
        if let State::Loading { line, .. } = &there.state {
            let line = loading_line(&target, line);
            self.log(id, &line);
        }
        self.fill(&target);
    }

    /// Lets in who may go in; loads the model first if it is not.
    pub fn fill(&mut self, target: &str) {
        if self.draining.is_some() || self.link.is_none() {
            return;
        }
        let Some(there) = self.targets.get_mut(target) else { return };
        if !there.queue.is_empty() && there.may_load(Instant::now()) {
            return self.load(target);
        }
        while let Some(there) = self.targets.get_mut(target)
            && there.has_room()
            && let Some(id) = there.queue.pop_front()
        {
            let Some(live) = self.live.get_mut(&id) else { continue };
            there.active += 1;
            live.stage = Stage::Running;
            live.runs += 1;
            live.admitted_as = live.attempt;
            let limit = Instant::now() + Duration::from_secs(self.settings.run_seconds);
            live.run_timer = Some(self.timers.add(limit, Due::RunLimit(id.clone())));
            let (attempt, job) = (live.attempt, live.job(&id));
            self.tell(ToWorker::Admit { target: target.to_owned(), attempt, job });
        }
        self.positions_soon();
    }

    pub fn load(&mut self, target: &str) {
        let Some(there) = self.targets.get_mut(target) else { return };
        if self.link.is_none() || !there.may_load(Instant::now()) {
            return;
        }
        there.loading();
        let spec = there.spec.clone();
        self.log_waiting(target, &loading_line(target, ""));
        self.tell(ToWorker::Load { spec, room_bytes: None });
    }

    fn log_waiting(&mut self, target: &str, line: &str) {
        let waiting: Vec<Id> =
            self.targets.get(target).map(|there| there.queue.iter().cloned().collect()).unwrap_or_default();
        waiting.iter().for_each(|id| self.log(id, line));
    }

    fn positions_soon(&mut self) {
        if !self.positions_set && self.targets.values().any(|there| !there.queue.is_empty()) {
            self.positions_set = true;
            self.timers.add(Instant::now() + SAY_POSITION_AFTER, Due::Positions);
        }
    }

    /// Says once how many are before it, and again whenever that has halved: a long queue costs few lines.
    pub fn say_positions(&mut self) {
        self.positions_set = false;
        let now = Instant::now();
        let mut lines = Vec::new();
        for there in self.targets.values().filter(|there| matches!(there.state, State::Loaded { .. })) {
            for (place, id) in there.queue.iter().enumerate() {
                let Some(live) = self.live.get_mut(id) else { continue };
                let behind = place + there.active as usize;
                let news = live.said_behind.is_none_or(|said| behind <= said / 2);
                if behind > 0 && news && now >= live.waiting_since + SAY_POSITION_AFTER {
                    live.said_behind = Some(behind);
                    let others = if behind == 1 { "other" } else { "others" };
                    lines.push((id.clone(), format!("waiting behind {behind} {others}\n")));
                }
            }
        }
        lines.iter().for_each(|(id, line)| self.log(id, line));
        self.positions_soon();
    }

    /// It is not in the queue or in the worker any more.
    pub fn leave(&mut self, target: &str, id: &Id, from: Stage) {
        let Some(there) = self.targets.get_mut(target) else { return };
        match from {
            Stage::Waiting => there.queue.retain(|waiting| waiting != id),
            Stage::Running => there.active = there.active.saturating_sub(1),
            Stage::Creating | Stage::Created | Stage::Ended => {}
        }
    }

    pub fn running(&self) -> impl Iterator<Item = (&Id, &Live)> {
        self.live.iter().filter(|(_, live)| live.stage == Stage::Running)
    }

    pub fn frame(&mut self, frame: FromWorker) {
        match frame {
            FromWorker::Hello(hello) => self.hello(&hello),
            FromWorker::Loading { target, line } => self.loading(&target, line),
            FromWorker::Loaded { target, bytes, capacity, seconds } => {
                tracing::info!(target, bytes, capacity, seconds, "loaded");
                if let Some(there) = self.targets.get_mut(&target) {
                    there.loaded(bytes, capacity);
                }
                self.log_waiting(&target, &format!("loaded {target} in {seconds:.1} s\n"));
                self.fill(&target);
            }
            FromWorker::LoadFailed { target, error } => self.load_failed(&target, error.text()),
            FromWorker::Unloaded { target, .. } => self.unloaded(&target),
            FromWorker::Events(events) => self.events(events),
            FromWorker::NoRoom { .. } | FromWorker::Broken { .. } | FromWorker::Heartbeat | FromWorker::Bye => {}
        }
    }

    fn hello(&mut self, hello: &Hello) {
        if hello.build == BUILD {
            self.lost_launches = 0;
            return;
        }
        tracing::error!(ours = BUILD, theirs = hello.build, "the worker is of another build; it is not used");
        self.worker_lost("the worker is of another build");
    }

    fn loading(&mut self, target: &str, line: String) {
        let Some(there) = self.targets.get_mut(target) else { return };
        let said = loading_line(target, &line);
        if there.progress(line, Instant::now()) {
            self.log_waiting(target, &said);
        }
    }

    fn load_failed(&mut self, target: &str, why: &str) {
        tracing::error!(target, why, "loading failed");
        let Some(there) = self.targets.get_mut(target) else { return };
        there.failed(why.to_owned(), Instant::now());
        for id in std::mem::take(&mut there.queue) {
            self.finish(&id, Outcome::Failed { error: why.to_owned() });
        }
    }

    /// Whoever was inside and broke it has ended before this was said; anybody else was still on the way in.
    fn unloaded(&mut self, target: &str) {
        let Some(there) = self.targets.get_mut(target) else { return };
        (there.state, there.active) = (State::NotLoaded, 0);
        let inside: Vec<Id> =
            self.running().filter(|(_, live)| live.target == target).map(|(id, _)| id.clone()).collect();
        self.back_to_queue(inside);
        self.fill(target);
    }

    fn events(&mut self, events: Vec<Emitted>) {
        let now = Timestamp::now();
        for Emitted { id, attempt, event } in events {
            let Some(live) = self.live.get_mut(&id) else { continue };
            // A late word of somebody who was taken out, or of an earlier attempt.
            if live.stage != Stage::Running || live.admitted_as != attempt {
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

    /// The worker is gone, or is ended here, and with it whatever was inside. Those that nobody has read from run once
    /// more. `why` stands in their logs.
    pub fn worker_lost(&mut self, why: &str) {
        self.link = None;
        let mut broken = Vec::new();
        for (target, there) in &mut self.targets {
            there.active = 0;
            match there.state {
                State::Loading { .. } => {
                    there.lost_loading += 1;
                    there.state = State::NotLoaded;
                    if there.lost_loading >= LOST_LOADING_LIMIT {
                        broken.push(target.clone());
                    }
                }
                State::Loaded { .. } => there.state = State::NotLoaded,
                State::NotLoaded | State::Failed { .. } => {}
            }
        }
        if self.draining.is_none() {
            tracing::error!(why, inside = self.running().count(), "starting another worker");
            self.launch_later();
        }
        for target in broken {
            self.load_failed(&target, &format!("{why} while it loaded the model"));
        }
        let inside: Vec<Id> = self.running().map(|(id, _)| id.clone()).collect();
        let (over, again): (Vec<Id>, Vec<Id>) = inside.into_iter().partition(|id| {
            self.live.get(id).is_some_and(|live| live.has_output || live.runs >= RUN_ATTEMPTS || live.stop.is_some())
        });
        for id in over {
            let stop = self.live.get_mut(&id).and_then(|live| live.stop.take());
            if stop.is_none() {
                self.log(&id, &format!("{why}\n"));
            }
            self.finish(&id, stop.unwrap_or_else(interrupted));
        }
        again.iter().for_each(|id| self.log(id, &format!("{why}; running again\n")));
        self.back_to_queue(again);
    }

    /// To the front, in the order in which they came.
    fn back_to_queue(&mut self, mut ids: Vec<Id>) {
        ids.sort_by_key(|id| std::cmp::Reverse(self.live.get(id).map(|live| live.waiting_since)));
        for id in ids {
            let Some(live) = self.live.get_mut(&id) else { continue };
            live.stage = Stage::Waiting;
            if let Some(timer) = live.run_timer.take() {
                self.timers.remove(timer);
            }
            if let Some(outcome) = live.stop.take() {
                self.finish(&id, outcome);
            } else if let Some(there) = self.targets.get_mut(&live.target) {
                there.queue.push_front(id);
            }
        }
    }
}

fn loading_line(target: &str, line: &str) -> String {
    if line.is_empty() { format!("loading {target}\n") } else { format!("loading {target}: {}\n", line.trim_end()) }
}
