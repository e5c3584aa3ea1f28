//! What a store is asked and what it answers.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prediction::{Id, Numbered, Prediction, Timestamp};

/// How long a lease holds without a renewal.
pub const LEASE_SECONDS: i64 = 30;

/// The store's time. Leases compare against it and nothing else.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{0} exists already")]
    Exists(String),
    /// Time or the operator can heal it (disk full, busy, unreadable): the same call may work later. Nothing was changed.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// It cannot be opened: the text names the path.
    #[error("{0}")]
    Open(String),
    /// A row or a call that cannot be right: a defect, or a damaged file.
    #[error("the store holds or was given what cannot be: {0}")]
    Broken(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    pub prediction: Prediction,
    /// 1 for the first; above that an earlier holder was lost.
    pub attempt: u32,
    /// Somebody asked to cancel it while an earlier holder had it.
    pub cancel_requested: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    pub id: Id,
    /// It ended or somebody else has it: stop working on it.
    pub lost: bool,
    pub cancel_requested: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Appended {
    Applied,
    /// It ended before, or another attempt has it: nothing was changed, and nothing from this attempt ever will.
    Fenced,
}

#[derive(Debug, Clone, PartialEq)]
pub enum CancelOutcome {
    NotFound,
    /// It had ended before: nothing changed.
    Ended,
    /// It was waiting; this event ended it.
    Canceled(Numbered),
    /// Somebody holds it and will see the wish.
    Requested,
}

/// One completed webhook that is still to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub key: i64,
    pub id: Id,
    /// The same over all retries.
    pub msg_id: String,
    pub url: String,
    /// Tries so far that failed.
    pub attempts: u32,
    /// When the prediction ended.
    pub first_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub name: String,
    pub created_at: Timestamp,
    pub last_four: String,
    pub revoked: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Where the page begins; none is the newest.
    pub cursor: Option<Cursor>,
    pub page_size: usize,
    /// Inclusive.
    pub created_after: Option<Timestamp>,
    /// Exclusive.
    pub created_before: Option<Timestamp>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Newest first.
    pub predictions: Vec<Prediction>,
    /// Towards older ones.
    pub next: Option<Cursor>,
    /// Towards newer ones.
    pub previous: Option<Cursor>,
}

impl Page {
    /// From what was read in the cursor's direction (`more`: there is yet another), each with its key.
    pub(crate) fn around(cursor: Option<Cursor>, items: Vec<(i64, Prediction)>, more: bool) -> Self {
        let (predictions, next, previous) = around(cursor, items, more, |prediction| prediction.request.created_at);
        Self { predictions, next, previous }
    }
}

/// A page in the list's order, and the cursors to its neighbours, from what was read in the cursor's direction.
pub(crate) fn around<T>(
    cursor: Option<Cursor>,
    mut items: Vec<(i64, T)>,
    more: bool,
    created_at: impl Fn(&T) -> Timestamp,
) -> (Vec<T>, Option<Cursor>, Option<Cursor>) {
    let back = cursor.is_some_and(|cursor| cursor.back);
    if back {
        items.reverse();
    }
    let place = |item: Option<&(i64, T)>, back| {
        item.map(|(key, item)| Cursor { created_at: created_at(item), key: *key, back })
    };
    // Whoever followed a cursor here left something behind on the other side.
    let next = if back || more { place(items.last(), false) } else { None };
    let previous = if (back && more) || (!back && cursor.is_some()) { place(items.first(), true) } else { None };
    (items.into_iter().map(|(_, item)| item).collect(), next, previous)
}

/// A place in the list, itself not on the page it leads to. Opaque to clients; positions outlive restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub created_at: Timestamp,
    pub key: i64,
    /// Towards newer ones.
    pub back: bool,
}

impl Cursor {
    pub fn encode(&self) -> String {
        let direction = if self.back { 'r' } else { 'p' };
        URL_SAFE_NO_PAD.encode(format!("{direction}={}.{}", self.created_at.0, self.key))
    }

    /// None if we did not write it.
    pub fn decode(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (direction, place) = text.split_once('=')?;
        let (created_at, key) = place.split_once('.')?;
        let back = match direction {
            "r" => true,
            "p" => false,
            _ => return None,
        };
        Some(Self { created_at: Timestamp(created_at.parse().ok()?), key: key.parse().ok()?, back })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_a_foreign_one_is_refused() {
        for back in [false, true] {
            let cursor = Cursor { created_at: Timestamp(1_700_000_000_123_456), key: 42, back };
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
        for foreign in ["", "cD0yMDIz", "%%%", "cD0x"] {
            assert_eq!(Cursor::decode(foreign), None, "{foreign}");
        }
    }
}
