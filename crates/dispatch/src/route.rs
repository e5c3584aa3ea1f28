//! Who goes in next and where. Everybody who waits is looked at in the order of arrival: a place in a loaded model if there
//! is one, else (`bring`) a load, or the room for a load. Who comes later does not take what an older one waits for.

use std::collections::BTreeSet;

use prediction::frame::{BUILD, ToWorker};
use prediction::{Id, Run};
use tokio::time::{Duration, Instant};

use crate::bring::Claims;
use crate::core::Core;
use crate::live::Stage;
use crate::place::Resident;
use crate::timers::Due;

impl Core {
    /// Gives everybody who waits what there is for them. Called when anything has changed that could matter.
    pub fn route(&mut self) {
        if self.draining.is_some() {
            return;
        }
        let mut claims: Claims = self.places.iter().map(|_| None).collect();
        let mut next: BTreeSet<(u64, String)> =
            self.targets.keys().filter_map(|target| Some((self.arrived(target)?, target.clone()))).collect();
        while let Some((_, target)) = next.pop_first() {
            if self.admit_first(&target, &claims) {
                next.extend(self.arrived(&target).map(|arrived| (arrived, target)));
            } else {
                self.bring(&target, &mut claims);
            }
        }
        for there in self.targets.values_mut().filter(|there| there.queue.is_empty()) {
            there.waits = None;
        }
        self.unload_unused();
        self.positions_soon();
    }

    /// When the one that has waited longest came. A model that is to be loaded unasked was wanted before everybody.
    fn arrived(&self, target: &str) -> Option<u64> {
        let there = self.targets.get(target)?;
        let first = there.queue.front().and_then(|id| self.live.get(id)).map(|live| live.arrived);
        match there.wanted {
            true if there.served.pinned => Some(0),
            true => first.or(Some(1)),
            false => first,
        }
    }

    /// Lets in the one that has waited longest, where the fewest are inside.
    fn admit_first(&mut self, target: &str, claims: &Claims) -> bool {
        let leaves = |place: usize| claims[place].as_ref().is_some_and(|claim| claim.leaving.contains(target));
        let open = self.places.iter().enumerate().filter_map(|(index, place)| {
            let model = place.models.get(target).filter(|model| model.has_room() && !leaves(index))?;
            Some((model.active, index))
        });
        let Some((_, place)) = open.min() else { return false };
        self.admit(target, place)
    }

    fn admit(&mut self, target: &str, place: usize) -> bool {
        let Some(there) = self.targets.get_mut(target) else { return false };
        let Some(model) = self.places[place].models.get_mut(target) else { return false };
        let Some(id) = there.queue.pop_front() else { return false };
        let Some(live) = self.live.get_mut(&id) else { return true };
        model.active += 1;
        live.place = place;
        live.stage = Stage::Running;
        live.runs += 1;
        live.admitted_as = live.attempt;
        live.run = Some(Run {
            version: there.served.version.clone(),
            weights: there.served.weights.clone(),
            program: BUILD.to_owned(),
            device: self.places[place].device.clone(),
            device_name: self.places[place].name.clone(),
            precision: there.served.spec.precision.clone(),
            seed: live.seed,
        });
        let limit = Instant::now() + Duration::from_secs(self.settings.run_seconds);
        live.run_timer = Some(self.timers.add(limit, Due::RunLimit(id.clone())));
        let (attempt, job) = (live.attempt, live.job(&id));
        self.places[place].tell(ToWorker::Admit { target: target.to_owned(), attempt, job });
        true
    }

    /// A load serves whoever waited for it, up to its capacity and before anybody else's claim: models that take turns on
    /// one device are loaded for many and not for each.
    pub fn admit_waiting(&mut self, target: &str, place: usize) {
        while self.draining.is_none()
            && self.places[place].models.get(target).is_some_and(Resident::has_room)
            && self.admit(target, place)
        {}
    }

    /// It is not in the queue or in the worker any more.
    pub fn leave(&mut self, target: &str, id: &Id, from: Stage, place: usize) {
        self.changed = true;
        match from {
            Stage::Waiting => {
                if let Some(there) = self.targets.get_mut(target) {
                    there.queue.retain(|waiting| waiting != id);
                }
            }
            Stage::Running => {
                if let Some(model) = self.places[place].models.get_mut(target) {
                    model.active = model.active.saturating_sub(1);
                    model.last_used = Instant::now();
                }
            }
            Stage::Creating | Stage::Created | Stage::Ended => {}
        }
    }
}
