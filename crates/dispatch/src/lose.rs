//! Workers that are started, lost and replaced, and what that costs those who were inside: whoever has not been read from
//! runs once more.

use prediction::frame::{BUILD, Hello, ToWorker};
use prediction::{Id, Outcome};
use tokio::time::{Duration, Instant};

use crate::core::Core;
use crate::live::{Live, Stage};
use crate::place::{Resident, State};
use crate::timers::Due;

impl Core {
    pub fn launch(&mut self, place: usize) {
        if self.draining.is_some() {
            return;
        }
        let at = &mut self.places[place];
        match self.launch.launch(&at.device) {
            Ok(link) => {
                at.launched(link);
                at.tell(ToWorker::Hello(Hello {
                    build: BUILD.to_owned(),
                    device: at.device.clone(),
                    name: String::new(),
                    memory: None,
                }));
            }
            Err(error) => {
                tracing::error!(device = at.device, %error, "the worker could not be started; trying again");
                let pause = at.lose();
                self.launch_after(place, pause);
            }
        }
    }

    fn launch_after(&mut self, place: usize, pause: Duration) {
        if self.draining.is_none() {
            self.timers.add(Instant::now() + pause, Due::Launch(place));
        }
    }

    /// The worker is gone, or is ended here, and with it whatever was inside. The other devices go on. `why` stands in the
    /// logs of those it meets.
    pub fn worker_lost(&mut self, place: usize, why: &str) {
        let at = &mut self.places[place];
        let pause = at.lose();
        let gone = std::mem::take(&mut at.models);
        if self.draining.is_none() {
            let inside: u32 = gone.values().map(|model| model.active).sum();
            tracing::error!(device = at.device, why, inside, "starting another worker");
        }
        self.launch_after(place, pause);
        let mut broken = Vec::new();
        for (target, model) in gone {
            if matches!(model.state, State::Loading { .. }) {
                let trouble = self.places[place].trouble(&target);
                trouble.lost_loading += 1;
                if trouble.lost_loading >= self.settings.lost.loads {
                    broken.push(target);
                    continue;
                }
            }
            self.replace(&target, &model);
        }
        for target in broken {
            self.load_failed(place, &target, &format!("{why} while it loaded the model"));
        }
        let over = self.over();
        self.interrupt(|live| live.place == place, why, &over);
    }

    /// How a prediction ends that was inside a lost worker and does not run again.
    pub fn over(&self) -> Outcome {
        Outcome::Failed { error: self.settings.lost.error.clone() }
    }

    /// What was loaded unasked is loaded again, unless there is another copy of it.
    pub fn replace(&mut self, target: &str, lost: &Resident) {
        let Some(there) = self.targets.get_mut(target) else { return };
        let mut copies = self.places.iter_mut().filter_map(|place| place.models.get_mut(target));
        if let Some(copy) = copies.find(|copy| !matches!(copy.state, State::Unloading { .. })) {
            copy.pinned |= lost.pinned;
        } else if !matches!(lost.state, State::Unloading { .. }) {
            there.want_again();
        }
    }

    /// Those inside of whom `which` is true do not go on. They run once more, in the order in which they came; who has been
    /// read from, or has been given its second chance, ends as `over`.
    pub fn interrupt(&mut self, which: impl Fn(&Live) -> bool, why: &str, over: &Outcome) {
        let (ends, again): (Vec<Id>, Vec<Id>) = self.inside_where(which).into_iter().partition(|id| {
            self.live
                .get(id)
                .is_some_and(|live| live.has_output || live.runs >= self.settings.lost.runs || live.stop.is_some())
        });
        for id in ends {
            let stop = self.live.get_mut(&id).and_then(|live| live.stop.take());
            if stop.is_none() {
                self.log(&id, &format!("{why}\n"));
            }
            self.finish(&id, stop.unwrap_or_else(|| over.clone()));
        }
        again.iter().for_each(|id| self.log(id, &format!("{why}; running again\n")));
        self.back_to_queue(again);
    }

    pub fn inside_where(&self, which: impl Fn(&Live) -> bool) -> Vec<Id> {
        self.running().filter(|(_, live)| which(live)).map(|(id, _)| id.clone()).collect()
    }

    pub fn running(&self) -> impl Iterator<Item = (&Id, &Live)> {
        self.live.iter().filter(|(_, live)| live.stage == Stage::Running)
    }

    /// To the front, in the order in which they came.
    pub fn back_to_queue(&mut self, mut ids: Vec<Id>) {
        ids.sort_by_key(|id| std::cmp::Reverse(self.live.get(id).map(|live| live.arrived)));
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
