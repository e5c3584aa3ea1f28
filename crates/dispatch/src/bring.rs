//! What is loaded where, and what leaves for it: applies the decisions of `residency` to the places, for whoever `route`
//! found nothing for.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use prediction::LoadSpec;
use prediction::frame::ToWorker;
use tokio::time::{Duration, Instant};

use crate::core::Core;
use crate::place::{Resident, State};
use crate::residency::Fit;
use crate::target::Waits;
use crate::timers::Due;
use crate::wait::loading_line;

/// What those who came earlier have claimed in this turn: per place, the target that waits for its room and the models
/// that have to leave for it, which therefore take nobody in.
pub type Claims = Vec<Option<Claim>>;

pub struct Claim {
    target: String,
    pub leaving: BTreeSet<String>,
}

impl Core {
    /// Nobody more of this target can be let in: sees that it is loaded (once more, if so many wait).
    pub fn bring(&mut self, target: &str, claims: &mut Claims) {
        let resident = || self.places.iter().filter_map(|place| place.models.get(target));
        if resident().any(|model| matches!(model.state, State::Loading { .. })) {
            return;
        }
        let copies = resident().filter_map(|model| match model.state {
            State::Loaded { capacity } => Some(capacity),
            State::Loading { .. } | State::Unloading { .. } => None,
        });
        match copies.max() {
            Some(capacity) => self.bring_another(target, capacity, claims),
            None => self.bring_first(target, claims),
        }
    }

    /// Everywhere it is loaded it is full: once more, where that costs nobody anything.
    fn bring_another(&mut self, target: &str, capacity: u32, claims: &Claims) {
        let Some(there) = self.targets.get_mut(target) else { return };
        (there.wanted, there.waits) = (false, None);
        if there.queue.len() < capacity as usize {
            return;
        }
        let bytes = there.bytes.unwrap_or(0);
        let open = self.open_places(target).into_iter().filter(|&place| {
            let there = &self.places[place];
            claims[place].is_none() && there.is_settled() && !there.models.contains_key(target)
        });
        let fits = open.filter_map(|place| {
            let free = self.places[place].free();
            free.is_none_or(|free| free >= bytes).then_some((Reverse(free.unwrap_or(u64::MAX)), place))
        });
        if let Some((_, place)) = fits.min() {
            self.load(target, place);
        }
    }

    /// Chooses where it is to be, and loads it there or makes the room.
    fn bring_first(&mut self, target: &str, claims: &mut Claims) {
        let Some(there) = self.targets.get(target) else { return };
        let need = there.bytes.unwrap_or(0);
        let asked = !there.queue.is_empty();
        let may_unload = asked || there.served.pinned;
        let open = self.open_places(target);
        if open.is_empty() {
            return self.waits_for_a_worker(target);
        }
        let for_it = |place: usize| {
            let mut models = self.places[place].models.values();
            models.any(|model| matches!(&model.state, State::Unloading { made_for: Some(other) } if other == target))
        };
        if let Some(&place) = open.iter().find(|&&place| claims[place].is_none() && for_it(place)) {
            // Room is being made for it; it says so already.
            let others = self.places[place].models.iter().filter(|(_, model)| !model.pinned);
            let leaving = others.map(|(other, _)| other.clone()).collect();
            claims[place] = Some(Claim { target: target.to_owned(), leaving });
            return;
        }
        let (settled, moving): (Vec<usize>, Vec<usize>) =
            open.iter().filter(|&&place| claims[place].is_none()).partition(|&&place| self.places[place].is_settled());
        let fits = settled.into_iter().map(|place| (self.places[place].fit(need), place));
        let fits = fits.filter(|(fit, _)| may_unload || matches!(fit, Fit::Now { .. }));
        match fits.min_by_key(|(fit, place)| (fit.rank(), *place)) {
            Some((Fit::Now { .. }, place)) => self.load(target, place),
            Some((Fit::After { leave, .. }, place)) => self.make_room(target, place, need, &leave, &[], claims),
            // What comes or goes there will be over before what runs here.
            Some((Fit::Busy { .. }, _)) | None if !moving.is_empty() => {
                let waits = self.waits_for_a_move(moving[0]);
                self.wait_for(target, waits);
            }
            Some((Fit::Busy { idle, busy }, place)) => self.make_room(target, place, need, &idle, &busy, claims),
            None if !may_unload => {
                tracing::warn!(target, "not loaded unasked: there is no room; it is loaded when it is asked for");
                self.set_wanted(target, false);
            }
            None => {
                let claim = claims[open[0]].as_ref().map(|claim| claim.target.clone()).unwrap_or_default();
                let waits = Waits::device(&self.places[open[0]].device, &format!("{claim} was asked for earlier"));
                self.wait_for(target, Some(waits));
            }
        }
    }

    /// Idle models leave at once; busy ones take nobody in until they can.
    fn make_room(
        &mut self,
        target: &str,
        place: usize,
        need: u64,
        idle: &[String],
        busy: &[(String, u32)],
        claims: &mut Claims,
    ) {
        let there = &self.places[place];
        let by = if busy.is_empty() {
            format!("unloading {}", idle.join(", "))
        } else {
            let busy = busy.iter().map(|(name, active)| format!("{name} ({active} running)"));
            format!("in use by {}", busy.collect::<Vec<_>>().join(", "))
        };
        let who: Vec<String> = idle.iter().chain(busy.iter().map(|(name, _)| name)).cloned().collect();
        let (free, budget) = (there.free().unwrap_or(0), there.budget.unwrap_or(0));
        self.wait_for(target, Some(Waits::memory(target, need, free, budget, &by, &who)));
        for name in idle {
            self.unload(name, place, Some(target));
        }
        claims[place] = Some(Claim { target: target.to_owned(), leaving: who.into_iter().collect() });
    }

    /// Where it may be, has not just failed, and a worker is.
    fn open_places(&self, target: &str) -> Vec<usize> {
        let now = Instant::now();
        let allowed = self.allowed(target).into_iter();
        allowed.filter(|&place| self.places[place].ready && self.places[place].failed(target, now).is_none()).collect()
    }

    /// Where it may be.
    pub fn allowed(&self, target: &str) -> Vec<usize> {
        let Some(there) = self.targets.get(target) else { return Vec::new() };
        let places = self.places.iter().enumerate();
        places.filter(|(_, place)| there.served.on.allows(&place.device)).map(|(index, _)| index).collect()
    }

    /// Why it can be had nowhere now, so that nobody should wait for it.
    pub fn hopeless(&self, target: &str, now: Instant) -> Option<Hopeless> {
        let allowed = self.allowed(target);
        if allowed.is_empty() {
            let there: Vec<&str> = self.places.iter().map(|place| place.device.as_str()).collect();
            let on = self.targets.get(target).map(|there| there.served.on.to_string()).unwrap_or_default();
            let why = format!("{target} is to be on {on}, and there is only {}", there.join(", "));
            return Some(Hopeless { why, until: None });
        }
        let mut last = None;
        for place in allowed.into_iter().map(|place| &self.places[place]) {
            if place.models.contains_key(target) {
                return None;
            }
            let (why, until) = place.failed(target, now)?;
            last = last.filter(|(_, before)| *before <= until).or(Some((why, until)));
        }
        last.map(|(why, until)| Hopeless { why: why.to_owned(), until: Some(until) })
    }

    fn load(&mut self, target: &str, place: usize) {
        let Some(there) = self.targets.get_mut(target) else { return };
        (there.wanted, there.waits) = (false, None);
        let copied = self.places.iter().any(|place| place.models.contains_key(target));
        let at = &mut self.places[place];
        let spec = LoadSpec { device: at.device.clone(), ..there.served.spec.clone() };
        let room = at.free();
        let promised = there.bytes.or(room).unwrap_or(0);
        // Of several copies one is enough to be pinned.
        let pinned = there.served.pinned && !copied;
        at.models.insert(
            target.to_owned(),
            Resident {
                state: State::Loading { line: String::new(), said_at: None },
                bytes: room.map_or(promised, |room| promised.min(room)),
                active: 0,
                last_used: Instant::now(),
                pinned,
            },
        );
        at.tell(ToWorker::Load { spec, room_bytes: room });
        self.log_waiting(target, &loading_line(target, ""));
    }

    fn unload(&mut self, target: &str, place: usize, made_for: Option<&str>) {
        let at = &mut self.places[place];
        let Some(model) = at.models.get_mut(target) else { return };
        tracing::info!(target, device = at.device, made_for, "unloading");
        model.state = State::Unloading { made_for: made_for.map(str::to_owned) };
        at.tell(ToWorker::Unload { target: target.to_owned() });
    }

    /// Everything that is idle and not pinned: memory ran out in spite of the sums.
    pub fn unload_idle(&mut self, place: usize) {
        let idle = self.places[place].models.iter().filter(|(_, model)| model.is_idle() && !model.pinned);
        let idle: Vec<String> = idle.map(|(target, _)| target.clone()).collect();
        idle.iter().for_each(|target| self.unload(target, place, None));
    }

    /// Unloads what has been idle for longer than its keep-alive, and sees that the next such moment is not missed.
    pub fn unload_unused(&mut self) {
        let now = Instant::now();
        let (mut over, mut next) = (Vec::new(), None::<Instant>);
        for (index, place) in self.places.iter().enumerate() {
            for (target, model) in place.models.iter().filter(|(_, model)| model.is_idle() && !model.pinned) {
                let Some(there) = self.targets.get(target).filter(|there| there.queue.is_empty()) else { continue };
                let Some(seconds) = there.served.keep_alive_seconds else { continue };
                let until = model.last_used + Duration::from_secs(seconds);
                if until <= now {
                    over.push((target.clone(), index));
                } else {
                    next = Some(next.map_or(until, |next| next.min(until)));
                }
            }
            // Whoever waits elsewhere may come here again when a failed load's pause is over.
            for (target, _) in self.targets.iter().filter(|(_, there)| !there.queue.is_empty()) {
                next = next.into_iter().chain(place.failed(target, now).map(|(_, until)| until)).min();
            }
        }
        over.iter().for_each(|(target, place)| self.unload(target, *place, None));
        if let Some(at) = next
            && self.route_timer.is_none_or(|(set, _)| at < set || set <= now)
        {
            if let Some((_, timer)) = self.route_timer.take() {
                self.timers.remove(timer);
            }
            self.route_timer = Some((at, self.timers.add(at, Due::Route)));
        }
    }

    fn set_wanted(&mut self, target: &str, wanted: bool) {
        if let Some(there) = self.targets.get_mut(target) {
            there.wanted = wanted;
        }
    }

    fn waits_for_a_worker(&mut self, target: &str) {
        let now = Instant::now();
        if self.hopeless(target, now).is_some() {
            return self.set_wanted(target, false);
        }
        let places: Vec<_> = self.allowed(target).into_iter().map(|place| &self.places[place]).collect();
        let devices: Vec<&str> = places.iter().map(|place| place.device.as_str()).collect();
        let waits = Waits::worker(&devices.join(", "), !places.iter().any(|place| place.is_failing()));
        self.wait_for(target, Some(waits));
    }

    /// Another model comes or goes there.
    fn waits_for_a_move(&self, place: usize) -> Option<Waits> {
        let place = &self.places[place];
        let (other, model) = place.models.iter().find(|(_, model)| !matches!(model.state, State::Loaded { .. }))?;
        let what = if matches!(model.state, State::Loading { .. }) { "loading" } else { "unloading" };
        Some(Waits::device(&place.device, &format!("{what} {other}")))
    }

    fn wait_for(&mut self, target: &str, waits: Option<Waits>) {
        let line = self.targets.get_mut(target).and_then(|there| there.wait_for(waits));
        if let Some(line) = line {
            self.log_waiting(target, &line);
        }
    }
}

/// Nowhere to load it now; `until` when that may change.
pub struct Hopeless {
    pub why: String,
    pub until: Option<Instant>,
}

impl Hopeless {
    pub fn refusal(&self, now: Instant) -> String {
        match self.until {
            Some(until) => {
                let seconds = (until - now).as_secs_f64().ceil();
                format!("{} (loading is tried again in {seconds} s)", self.why)
            }
            None => self.why.clone(),
        }
    }
}
