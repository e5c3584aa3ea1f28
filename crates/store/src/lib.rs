//! Rows, events, leases, outbox, tokens, files; and the live tail that readers follow.
//!
//! Knows how a prediction is kept and who may change it. State, events and outbox commit together, and what a client is
//! told is on disk first. Refuses to know HTTP, models, workers and how a webhook is sent.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod feed;
pub mod files;
mod memory;
mod rules;
mod secret;
mod sqlite;
mod words;

use async_trait::async_trait;
use prediction::{Id, Numbered, Prediction, Request, Run, Timestamp};

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;
pub use words::{
    Appended, CancelOutcome, Clock, Cursor, Delivery, LEASE_SECONDS, Lease, ListQuery, Page, Renewed, StoreError,
    Token, system_clock,
};

/// Where predictions are kept. Every implementation passes `conformance`, with two handles open where it can be shared.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// A new prediction, durable when this returns. A known id is `StoreError::Exists`.
    async fn create(&self, request: &Request) -> Result<(), StoreError>;

    async fn get(&self, id: &Id) -> Result<Option<Prediction>, StoreError>;

    /// Whose stream URL holds this key.
    async fn by_stream_key(&self, key: &str) -> Result<Option<Id>, StoreError>;

    /// Newest first.
    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError>;

    /// The events with numbers above `after`, in order. None are left after the sweep.
    async fn events(&self, id: &Id, after: u64) -> Result<Vec<Numbered>, StoreError>;

    /// How many have not ended and are held by nobody.
    async fn waiting(&self) -> Result<u64, StoreError>;

    /// Takes up to `max` predictions that nobody holds, oldest first, for `LEASE_SECONDS`. Each gets the next attempt
    /// number, which fences every earlier holder.
    async fn lease(&self, owner: &str, max: usize) -> Result<Vec<Lease>, StoreError>;

    /// Holds on to leases for another `LEASE_SECONDS`; one answer for each of `held`, in order.
    async fn renew(&self, owner: &str, held: &[(Id, u32)]) -> Result<Vec<Renewed>, StoreError>;

    /// Gives back everything this owner holds, at a clean stop or after a crash of the same owner. Returns how many.
    async fn release(&self, owner: &str) -> Result<u64, StoreError>;

    /// Folds events in, in one transaction with the rows they change. Repeats are no-ops, so a caller that got an error
    /// may send the same again. Durable when it returns if `Ended` is among them; otherwise in order, soon.
    async fn append(&self, id: &Id, attempt: u32, events: &[Numbered]) -> Result<Appended, StoreError>;

    /// Ends a waiting prediction here, or notes the wish where somebody holds it. A holder that numbers events in
    /// memory must have appended them before it asks: the number of the end is one after the last that is stored.
    async fn request_cancel(&self, id: &Id) -> Result<CancelOutcome, StoreError>;

    /// Notes under what it runs, in place of what was noted for an earlier attempt.
    async fn note_run(&self, id: &Id, run: &Run) -> Result<(), StoreError>;

    /// Under what it ran last.
    async fn run(&self, id: &Id) -> Result<Option<Run>, StoreError>;

    /// Completed webhooks to send at `now`, the longest due first.
    async fn outbox_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, StoreError>;

    /// Delivered, or given up.
    async fn outbox_done(&self, key: i64) -> Result<(), StoreError>;

    /// Counts one attempt; due again at `next`.
    async fn outbox_retry(&self, key: i64, next: Timestamp) -> Result<(), StoreError>;

    /// Removes input, output, logs and events of predictions that ended before the moment. One whose completed webhook
    /// is still to be sent keeps them until it was. Returns how many were emptied.
    async fn sweep(&self, ended_before: Timestamp) -> Result<u64, StoreError>;

    /// A new API token. The text is returned once and kept only as a hash. A name in use is `StoreError::Exists`.
    async fn token_create(&self, name: &str) -> Result<String, StoreError>;

    async fn token_list(&self) -> Result<Vec<Token>, StoreError>;

    /// False if no token in use has the name.
    async fn token_revoke(&self, name: &str) -> Result<bool, StoreError>;

    async fn token_check(&self, token: &str) -> Result<bool, StoreError>;

    /// A signing secret, made on first use: `whsec_` and standard base64, which never holds another `_`.
    async fn secret(&self, name: &str) -> Result<String, StoreError>;
}

#[cfg(test)]
mod tests;
