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

#[cfg(test)]
mod tests {
    use prediction::{Event, Id, Map, Numbered, Output, Prediction, Request};

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn left(events: Vec<Event>, attempt: u32) -> Lease {
        let mut prediction = Prediction::new(Request {
            id: Id::from("p"),
            model: "pinion/echo".into(),
            version: "v".into(),
            target: "echo".into(),
            input: Map::new(),
            seed: 1,
            created_at: Timestamp(0),
            deadline: None,
            webhook: None,
            webhook_events_filter: None,
            origin: "http://127.0.0.1:5000".into(),
            stream_key: "k".into(),
            streams: true,
        });
        for (seq, event) in (1..).zip(events) {
            let _ = prediction.apply(&Numbered { seq, at: Timestamp(1), event });
        }
        Lease { prediction, attempt, cancel_requested: false }
    }

    fn due(mut lease: Lease) -> Lease {
        lease.prediction.request.deadline = Some(NOW);
        lease
    }

    #[test]
    fn what_becomes_of_an_unfinished_prediction() {
        let begun = || vec![Event::Started, Event::Log("hm".into())];
        let heard = || vec![Event::Output(Output::text("a"))];
        let (wait, repeat) = (Verdict::Wait { repeats: false }, Verdict::Wait { repeats: true });
        let over = || Verdict::End(interrupted());
        let table = [
            ("never began", left(vec![], 2), wait),
            ("began and said nothing", left(begun(), RUN_ATTEMPTS), repeat),
            ("began in two lives", left(begun(), RUN_ATTEMPTS + 1), over()),
            ("was heard", left(heard(), 2), over()),
            ("only ever waited, for too many lives", left(vec![], WAIT_ATTEMPTS + 1), over()),
            ("its deadline passed while it waited", due(left(vec![], 2)), Verdict::End(Outcome::Aborted)),
            ("its deadline passed after it began", due(left(begun(), 2)), Verdict::End(Outcome::Canceled)),
            (
                "somebody cancelled it",
                Lease { cancel_requested: true, ..left(heard(), 2) },
                Verdict::End(Outcome::Canceled),
            ),
        ];
        for (what, lease, becomes) in table {
            assert_eq!(verdict(&lease, NOW), becomes, "{what}");
        }
    }
}
