//! A worker that is there and says nothing: a step that never returns, a process that was stopped. It is ended and
//! replaced as one that was lost.
//!
//! Silence is counted in looks, not read off a clock: a server that was itself held up looks once when it comes back, and
//! does not blame the worker for its own sleep.

use tokio::time::{Duration, Instant};

use crate::core::Core;
use crate::place::State;
use crate::timers::Due;

/// Looks within the shortest silence that is held against a worker.
const LOOKS: u32 = 4;
/// The least between two looks: an idle worker says something every second.
const LOOK_LEAST: Duration = Duration::from_millis(250);

/// How long a worker may say nothing, in seconds. It speaks once a second between steps, and while a step does work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    pub worker_seconds: u64,
    /// While it loads a model: there nothing is said between two lines of progress.
    pub load_seconds: u64,
}

impl Silence {
    pub fn look_every(self) -> Duration {
        (Duration::from_secs(self.worker_seconds) / LOOKS).max(LOOK_LEAST)
    }
}

impl Core {
    pub fn look_later(&mut self) {
        if let Some(silence) = self.settings.silence {
            self.timers.add(Instant::now() + silence.look_every(), Due::Look);
        }
    }

    /// Ends every worker that has said nothing in all the looks of its allowance.
    pub fn look(&mut self) {
        self.look_later();
        let Some(silence) = self.settings.silence else { return };
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            if place.link.is_none() {
                continue;
            }
            let loading = place.models.values().any(|model| matches!(model.state, State::Loading { .. }));
            let seconds =
                if loading { silence.load_seconds.max(silence.worker_seconds) } else { silence.worker_seconds };
            // The first look came at any moment of the first interval.
            if silence.look_every() * place.silent_looks >= Duration::from_secs(seconds) {
                tracing::error!(
                    device = place.device,
                    seconds,
                    loading,
                    "no answer for this long; the worker is ended"
                );
                self.worker_lost(index, "the worker stopped answering");
            } else {
                place.silent_looks += 1;
            }
        }
    }
}
