//! What those who wait read in their logs: for what, and how many are before them; and what people are shown of it all.

use prediction::Id;
use tokio::time::{Duration, Instant};

use crate::core::Core;
use crate::place::State;
use crate::timers::Due;
use crate::{Health, TargetHealth};

/// A wait shorter than this is not worth a line in the logs.
const SAY_POSITION_AFTER: Duration = Duration::from_secs(1);

impl Core {
    pub fn log_waiting(&mut self, target: &str, line: &str) {
        let waiting: Vec<Id> =
            self.targets.get(target).map(|there| there.queue.iter().cloned().collect()).unwrap_or_default();
        waiting.iter().for_each(|id| self.log(id, line));
    }

    /// For one that joins a queue: what the others were told.
    pub fn log_joining(&mut self, target: &str, id: &Id) {
        let line = match self.loading(target) {
            Some(line) => Some(loading_line(target, &line)),
            None => {
                let waits = self.targets.get(target).and_then(|there| there.waits.as_ref());
                waits.filter(|waits| waits.logged).map(|waits| waits.log_line())
            }
        };
        if let Some(line) = line {
            self.log(id, &line);
        }
    }

    /// The last line of its progress, if it is being loaded.
    fn loading(&self, target: &str) -> Option<String> {
        let models = self.places.iter().filter_map(|place| place.models.get(target));
        let mut lines = models.filter_map(|model| match &model.state {
            State::Loading { line, .. } => Some(line.clone()),
            State::Loaded { .. } | State::Unloading { .. } => None,
        });
        lines.next()
    }

    /// Predictions inside it on all devices; none if it is loaded nowhere.
    fn inside(&self, target: &str) -> Option<u32> {
        let models = self.places.iter().filter_map(|place| place.models.get(target));
        let loaded = models.filter(|model| matches!(model.state, State::Loaded { .. }));
        loaded.map(|model| model.active).reduce(|sum, active| sum + active)
    }

    pub fn positions_soon(&mut self) {
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
        for (target, there) in &self.targets {
            let Some(active) = self.inside(target) else { continue };
            for (place, id) in there.queue.iter().enumerate() {
                let Some(live) = self.live.get_mut(id) else { continue };
                let behind = place + active as usize;
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

    /// Accepted and not inside the worker.
    pub fn waiting(&self) -> u64 {
        self.live.values().filter(|live| live.is_waiting()).count() as u64
    }

    pub fn show_health(&self) {
        let now = Instant::now();
        let target = |(name, there): (&String, &crate::target::Target)| TargetHealth {
            target: name.clone(),
            queued: there.queue.len() as u64,
            active: self.inside(name).unwrap_or(0),
            waits_for: match self.loading(name) {
                Some(line) if line.is_empty() => Some("loading".to_owned()),
                Some(line) => Some(format!("loading: {}", line.trim_end())),
                None => there.waits.as_ref().map(|waits| waits.line.clone()),
            },
        };
        let pinned = |target: &str| self.targets.get(target).is_some_and(|there| there.served.pinned);
        let health = Health {
            devices: self.places.iter().map(|place| place.health(now, pinned)).collect(),
            targets: self.targets.iter().map(target).collect(),
            waiting: self.waiting(),
        };
        *self.health.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = (health, now);
    }
}

pub fn loading_line(target: &str, line: &str) -> String {
    if line.is_empty() { format!("loading {target}\n") } else { format!("loading {target}: {}\n", line.trim_end()) }
}
