//! What every store decides alike, as pure functions: who waits, what an append may change, what ends with a webhook.

use prediction::{Event, Id, Numbered, Outcome, Prediction, Timestamp, Transition, WebhookEvent};

use crate::{LEASE_SECONDS, StoreError};

/// Nobody holds it: never leased, given back, or the lease ran out.
pub(crate) fn is_waiting(lease_until: Option<Timestamp>, now: Timestamp) -> bool {
    lease_until.is_none_or(|until| until <= now)
}

pub(crate) fn lease_until(now: Timestamp) -> Timestamp {
    now.plus_millis(LEASE_SECONDS * 1000)
}

/// Folds what is new into the prediction and returns which of the events that were. Numbers are without gaps: a gap is a defect of the caller, and
/// storing past it would lose the event in between for every reader.
pub(crate) fn fold(prediction: &mut Prediction, events: &[Numbered]) -> Result<Vec<usize>, StoreError> {
    let mut fresh = Vec::with_capacity(events.len());
    for (index, event) in events.iter().enumerate() {
        if event.seq > prediction.last_seq + 1 && !prediction.status.is_terminal() {
            let (id, last, seq) = (&prediction.request.id, prediction.last_seq, event.seq);
            return Err(StoreError::Broken(format!("event {seq} of prediction {id} follows event {last}")));
        }
        if prediction.apply(event) == Transition::Applied {
            fresh.push(index);
        }
    }
    Ok(fresh)
}

/// Whether a batch for an ended prediction is the one that ended it, sent again: its last event is the stored one of
/// the same number.
pub(crate) fn is_repeat(events: &[Numbered], stored: Option<&Numbered>) -> bool {
    stored.is_some() && events.last() == stored
}

/// The event that ends a waiting prediction when its caller cancels it.
pub(crate) fn cancel_event(prediction: &Prediction, now: Timestamp) -> Numbered {
    Numbered { seq: prediction.last_seq + 1, at: now, event: Event::Ended(Outcome::Canceled) }
}

/// Where the completed webhook goes and when it was due first, once the prediction has ended and if it is wanted.
pub(crate) fn completed_webhook(prediction: &Prediction) -> Option<(String, Timestamp)> {
    let ended_at = prediction.completed_at?;
    let url = prediction.request.webhook.as_ref()?;
    prediction.request.wants(WebhookEvent::Completed).then(|| (url.clone(), ended_at))
}

pub(crate) fn has_end(events: &[Numbered]) -> bool {
    events.iter().any(|numbered| matches!(numbered.event, Event::Ended(_)))
}

pub(crate) fn exists(id: &Id) -> StoreError {
    StoreError::Exists(format!("prediction {id}"))
}

pub(crate) fn token_exists(name: &str) -> StoreError {
    StoreError::Exists(format!("token {name:?}"))
}

pub(crate) fn file_exists(id: &str) -> StoreError {
    StoreError::Exists(format!("file {id}"))
}
