//! What becomes of a prediction that an earlier life left unfinished. One pure function; knows no store.

use prediction::{Outcome, Timestamp};
use store::Lease;

/// The text that clients of the hosted service know and match.
pub const INTERRUPTED: &str = "Prediction interrupted; please retry (code: PA)";
/// Lives that may take up a prediction which began to run: the first, and once more.
pub const RUN_ATTEMPTS: u32 = 2;
/// Lives that may take up one that never began: only a life that dies before the first event is stored counts against
/// it wrongly, so a few.
pub const WAIT_ATTEMPTS: u32 = 6;

#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Its turn comes again. `repeats` if it had begun.
    Wait {
        repeats: bool,
    },
    End(Outcome),
}

pub fn verdict(lease: &Lease, now: Timestamp) -> Verdict {
    let prediction = &lease.prediction;
    let began = prediction.started_at.is_some();
    let allowed = if began { RUN_ATTEMPTS } else { WAIT_ATTEMPTS };
    if lease.cancel_requested {
        return Verdict::End(Outcome::Canceled);
    }
    if prediction.request.deadline.is_some_and(|deadline| deadline <= now) {
        return Verdict::End(if began { Outcome::Canceled } else { Outcome::Aborted });
    }
    // Somebody may have read the output: it is not taken back and said again.
    if prediction.output.is_some() || lease.attempt > allowed {
        return Verdict::End(interrupted());
    }
    Verdict::Wait { repeats: began }
}

pub fn interrupted() -> Outcome {
    Outcome::Failed { error: INTERRUPTED.to_owned() }
}
