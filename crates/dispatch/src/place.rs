//! One device: its worker, what is loaded there, what went wrong there. Knows no queue and no store.

use std::collections::BTreeMap;
use std::task::Poll;

use prediction::frame::{FromWorker, Hello, ToWorker};
use tokio::time::{Duration, Instant};

use crate::residency::{Fit, Held, fit, most, used};
use crate::{Device, DeviceHealth, Link, ModelHealth, ModelState};

/// Of what is free when a worker starts, this is left alone where no budget is set: the libraries' own workspaces, and
/// what is lost between allocations.
const RESERVE_BYTES: u64 = 512 << 20;
/// Never more than this part of it.
const RESERVE_PART: u64 = 8;
/// After a failed load, the first pause before another is tried; doubled each time up to the limit.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_LIMIT: Duration = Duration::from_secs(30);
/// Between two lines of load progress in the logs of those who wait.
const LINE_PAUSE: Duration = Duration::from_secs(2);
/// Before a lost worker is replaced: nothing the first time, then doubled up to the limit.
const LAUNCH_PAUSE: Duration = Duration::from_millis(100);
const LAUNCH_PAUSE_LIMIT: Duration = Duration::from_secs(5);
/// A worker that lived this long was a good one: its loss is a first one.
const LIVED_WELL: Duration = Duration::from_secs(10);

pub enum State {
    Loading {
        line: String,
        said_at: Option<Instant>,
    },
    Loaded {
        capacity: u32,
    },
    /// For the target that needs the room, if one does.
    Unloading {
        made_for: Option<String>,
    },
}

/// A model that is there, comes or goes.
pub struct Resident {
    pub state: State,
    /// Held; while it loads, promised.
    pub bytes: u64,
    /// Predictions inside.
    pub active: u32,
    /// When it was loaded or the last prediction left.
    pub last_used: Instant,
    pub pinned: bool,
}

impl Resident {
    pub fn has_room(&self) -> bool {
        matches!(self.state, State::Loaded { capacity } if self.active < capacity)
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Loaded { .. }) && self.active == 0
    }

    /// Takes a line of progress; whether it is time to put it in the logs.
    pub fn progress(&mut self, new: &str, now: Instant) -> bool {
        let State::Loading { line, said_at } = &mut self.state else { return false };
        if line == new {
            return false;
        }
        new.clone_into(line);
        let due = said_at.is_none_or(|at| now >= at + LINE_PAUSE);
        if due {
            *said_at = Some(now);
        }
        due
    }
}

/// What went wrong with a model here since it was last loaded.
#[derive(Default)]
pub struct Trouble {
    /// Loads that failed.
    failures: u32,
    /// Workers that were lost while they loaded it.
    pub lost_loading: u32,
    /// A load found no memory, and was tried again.
    pub out_of_memory: bool,
    /// Why, and when a load may be tried again.
    pub failed: Option<(String, Instant)>,
}

impl Trouble {
    pub fn fail(&mut self, why: String, now: Instant) {
        let pause = BACK_OFF.saturating_mul(1 << self.failures.min(10)).min(BACK_OFF_LIMIT);
        *self = Self { failures: self.failures + 1, failed: Some((why, now + pause)), ..Self::default() };
    }
}

pub struct Place {
    pub device: String,
    /// As set, or as its workers found it.
    pub budget: Option<u64>,
    budget_is_set: bool,
    total: Option<u64>,
    /// What its worker calls the device.
    pub name: String,
    pub link: Option<Link>,
    /// Its worker has said hello.
    pub ready: bool,
    launched: Instant,
    /// Workers that could not be started or did not live, in a row.
    lost: u32,
    /// Looks since the worker said something.
    pub silent_looks: u32,
    /// Of the host's memory, what its worker keeps of models that left.
    pub host_cache: u64,
    pub models: BTreeMap<String, Resident>,
    pub troubles: BTreeMap<String, Trouble>,
}

impl Place {
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.device.clone(),
            budget: device.budget_bytes,
            budget_is_set: device.budget_bytes.is_some(),
            total: None,
            name: String::new(),
            link: None,
            ready: false,
            launched: Instant::now(),
            lost: 0,
            silent_looks: 0,
            host_cache: 0,
            models: BTreeMap::new(),
            troubles: BTreeMap::new(),
        }
    }

    pub fn launched(&mut self, link: Link) {
        (self.link, self.ready, self.silent_looks, self.launched) = (Some(link), false, 0, Instant::now());
    }

    /// Its worker is gone, and with it everything that was loaded; how long to wait for the next. One that dies as soon as
    /// it has said hello is not replaced in a tight loop.
    pub fn lose(&mut self) -> Duration {
        if self.link.take().is_some() && self.launched.elapsed() >= LIVED_WELL {
            self.lost = 0;
        }
        (self.ready, self.host_cache) = (false, 0);
        let pause = LAUNCH_PAUSE.saturating_mul(1 << self.lost.min(10)).min(LAUNCH_PAUSE_LIMIT);
        let first = self.lost == 0;
        self.lost += 1;
        if first { Duration::ZERO } else { pause }
    }

    /// The last workers, more than one, did not start or did not live.
    pub fn is_failing(&self) -> bool {
        !self.ready && self.lost > 1
    }

    /// The largest budget that any of its workers found: one that starts while its predecessor's memory is still on its way
    /// back finds too little.
    pub fn hello(&mut self, hello: &Hello) {
        self.ready = true;
        self.name.clone_from(&hello.name);
        let Some(memory) = hello.memory else { return };
        self.total = Some(memory.total_bytes);
        let reserve = RESERVE_BYTES.min(memory.free_bytes / RESERVE_PART);
        let found = memory.free_bytes - reserve;
        self.budget = match self.budget {
            Some(set) if self.budget_is_set => Some(set.min(memory.total_bytes)),
            before => Some(before.unwrap_or(0).max(found)),
        };
    }

    /// A worker that cannot be spoken to closes its end too, and that is where its loss is dealt with.
    pub fn tell(&self, frame: ToWorker) {
        if let Some(link) = &self.link
            && let Err(gone) = (link.to)(frame)
        {
            tracing::warn!(device = self.device, %gone, "a frame was not delivered");
        }
    }

    fn held(&self) -> Vec<Held<'_>> {
        self.models
            .iter()
            .map(|(target, model)| Held {
                target,
                bytes: model.bytes,
                active: model.active,
                pinned: model.pinned,
                last_used: model.last_used,
            })
            .collect()
    }

    pub fn fit(&self, need: u64) -> Fit {
        fit(need, self.budget, &self.held())
    }

    /// What nobody holds; none: no bound is known.
    pub fn free(&self) -> Option<u64> {
        self.budget.map(|budget| budget.saturating_sub(used(&self.held())))
    }

    /// The most that could ever be free.
    pub fn most(&self) -> Option<u64> {
        self.budget.map(|budget| most(budget, &self.held()))
    }

    /// Nothing comes or goes: what fits can be said. Loads are made one at a time, so that each is given what is free.
    pub fn is_settled(&self) -> bool {
        self.models.values().all(|model| matches!(model.state, State::Loaded { .. }))
    }

    pub fn trouble(&mut self, target: &str) -> &mut Trouble {
        self.troubles.entry(target.to_owned()).or_default()
    }

    /// Why no load of it is tried now, and until when.
    pub fn failed(&self, target: &str, now: Instant) -> Option<(&str, Instant)> {
        let (why, until) = self.troubles.get(target)?.failed.as_ref()?;
        (now < *until).then_some((why, *until))
    }

    /// `pinned` knows which models are, also of those that failed.
    pub fn health(&self, now: Instant, pinned: impl Fn(&str) -> bool) -> DeviceHealth {
        let resident = |(target, model): (&String, &Resident)| ModelHealth {
            target: target.clone(),
            state: match &model.state {
                State::Loading { line, .. } => ModelState::Loading { line: line.clone() },
                State::Loaded { capacity } => ModelState::Loaded { bytes: model.bytes, capacity: *capacity },
                State::Unloading { .. } => ModelState::Unloading,
            },
            active: model.active,
            idle_seconds: model.is_idle().then(|| now.saturating_duration_since(model.last_used).as_secs()),
            pinned: model.pinned,
        };
        let broken = |(target, trouble): (&String, &Trouble)| {
            let (why, _) = trouble.failed.as_ref().filter(|_| !self.models.contains_key(target))?;
            let state = ModelState::Failed { why: why.clone() };
            Some(ModelHealth { target: target.clone(), state, active: 0, idle_seconds: None, pinned: pinned(target) })
        };
        DeviceHealth {
            device: self.device.clone(),
            name: self.name.clone(),
            worker: self.ready,
            total_bytes: self.total,
            budget_bytes: self.budget,
            used_bytes: used(&self.held()),
            host_cache_bytes: self.host_cache,
            models: self.models.iter().map(resident).chain(self.troubles.iter().filter_map(broken)).collect(),
        }
    }
}

/// The next word of any worker, and whose it is. `first` is asked first, so that none is drowned out by another.
pub async fn next_frame(places: &mut [Place], first: usize) -> (usize, Option<FromWorker>) {
    std::future::poll_fn(|context| {
        for step in 0..places.len() {
            let place = (first + step) % places.len();
            if let Some(link) = &mut places[place].link
                && let Poll::Ready(frame) = link.from.poll_recv(context)
            {
                return Poll::Ready((place, frame));
            }
        }
        Poll::Pending
    })
    .await
}
