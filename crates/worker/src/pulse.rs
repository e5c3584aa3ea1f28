//! Says that a long step goes on. The loop speaks between steps; a step of an image on a processor may take minutes. So
//! another thread looks once a second whether work was done, and says so: a step that does nothing stays silent, and its
//! worker is taken for hung. Refuses to know what work is: it is a number that changes.

use std::sync::mpsc::{Receiver, RecvTimeoutError};

use crate::turn::HEARTBEAT;

/// Looks until `ended` is dropped, or `say` answers that nobody listens.
pub fn watch(progress: impl Fn() -> u64, ended: &Receiver<()>, mut say: impl FnMut() -> bool) {
    let mut pulse = Pulse { seen: progress(), progress };
    while ended.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
        if pulse.beats() && !say() {
            return;
        }
    }
}

struct Pulse<P> {
    progress: P,
    seen: u64,
}

impl<P: Fn() -> u64> Pulse<P> {
    /// Whether anything was done since the last look.
    fn beats(&mut self) -> bool {
        let now = (self.progress)();
        std::mem::replace(&mut self.seen, now) != now
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn work_beats_and_a_step_that_hangs_does_not() {
        let done = Cell::new(7);
        let mut pulse = Pulse { seen: 7, progress: || done.get() };
        assert!(!pulse.beats());
        done.set(8);
        assert!(pulse.beats());
        assert!(!pulse.beats(), "the same work counts once");
        done.set(0);
        assert!(pulse.beats(), "a count may begin again");
    }
}
