//! A worker that is there and says nothing: a step that never returns, a process that was stopped. It is ended and
//! replaced as one that was lost.
//!
//! Silence is counted in looks, not read off a clock: a server that was itself held up looks once when it comes back, and
//! does not blame the worker for its own sleep.

use tokio::time::{Duration, Instant};

use crate::core::Core;
use crate::target::State;
use crate::timers::Due;

/// Looks within the shortest silence that is held against a worker.
const LOOKS: u32 = 4;
/// The least between two looks: an idle worker says something every second.
const LOOK_LEAST: Duration = Duration::from_millis(250);

/// How long a worker may say nothing, in seconds. It speaks once a second between steps.
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

    /// Ends a worker that has said nothing in all the looks of its allowance.
    pub fn look(&mut self) {
        self.look_later();
        let Some(silence) = self.settings.silence.filter(|_| self.link.is_some()) else { return };
        let loading = self.targets.values().any(|there| matches!(there.state, State::Loading { .. }));
        let seconds = if loading { silence.load_seconds.max(silence.worker_seconds) } else { silence.worker_seconds };
        // The first look came at any moment of the first interval.
        if silence.look_every() * self.silent_looks >= Duration::from_secs(seconds) {
            tracing::error!(seconds, loading, "the worker has not answered for this long; it is ended");
            self.worker_lost("the worker stopped answering");
        } else {
            self.silent_looks += 1;
        }
    }
}
