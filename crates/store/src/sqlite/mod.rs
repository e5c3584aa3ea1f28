//! Rows in SQLite: one writer, a few readers, any number of handles on the same file.
//!
//! Writes go to `writer`, which commits whatever waits as one transaction with one fsync; what they do to rows is in
//! `changes`. Reads go to a small pool and never wait for a writer. Refuses to know what is in an event.

mod changes;
mod checkpoint;
mod files;
mod open;
mod reads;
mod rows;
mod writer;

use std::path::Path;

use async_trait::async_trait;
use prediction::{Id, Numbered, Prediction, Request, Run, Timestamp};
use sqlx::SqlitePool;

use crate::{
    Appended, CancelOutcome, Clock, Delivery, Lease, ListQuery, Page, Renewed, Store, StoreError, Token, secret,
    system_clock,
};
use changes::{append, create, leases, outbox, runs, sweep, tokens};
use writer::Writer;

pub struct SqliteStore {
    readers: SqlitePool,
    writer: Writer,
    clock: Clock,
}

impl SqliteStore {
    /// Opens the database file, made on first use with its folder, and brings its tables up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, system_clock()).await
    }

    /// With another sense of time, for tests.
    pub async fn open_with(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        let connections = open::open(path).await?;
        let writer = Writer::start(connections.writer, connections.checkpoints);
        Ok(Self { readers: connections.readers, writer, clock })
    }

    /// Commits what waits and tidies the file up. Calls after it fail; dropping without it loses nothing either.
    pub async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn create(&self, request: &Request) -> Result<(), StoreError> {
        self.writer.commit(create::Create::new(request)?).await
    }

    async fn get(&self, id: &Id) -> Result<Option<Prediction>, StoreError> {
        reads::get(&self.readers, id).await
    }

    async fn by_stream_key(&self, key: &str) -> Result<Option<Id>, StoreError> {
        reads::by_stream_key(&self.readers, key).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        reads::list(&self.readers, query).await
    }

    async fn events(&self, id: &Id, after: u64) -> Result<Vec<Numbered>, StoreError> {
        reads::events(&self.readers, id, after).await
    }

    async fn waiting(&self) -> Result<u64, StoreError> {
        reads::waiting(&self.readers, self.now()).await
    }

    async fn lease(&self, owner: &str, max: usize) -> Result<Vec<Lease>, StoreError> {
        let lease = leases::Take { owner: owner.to_owned(), max, now: self.now() };
        self.writer.commit(lease).await
    }

    async fn renew(&self, owner: &str, held: &[(Id, u32)]) -> Result<Vec<Renewed>, StoreError> {
        let renew = leases::Renew { owner: owner.to_owned(), held: held.to_vec(), now: self.now() };
        self.writer.commit(renew).await
    }

    async fn release(&self, owner: &str) -> Result<u64, StoreError> {
        self.writer.commit(leases::Release { owner: owner.to_owned() }).await
    }

    async fn append(&self, id: &Id, attempt: u32, events: &[Numbered]) -> Result<Appended, StoreError> {
        self.writer.commit(append::Append::new(id, attempt, events)?).await
    }

    async fn request_cancel(&self, id: &Id) -> Result<CancelOutcome, StoreError> {
        self.writer.commit(append::Cancel { id: id.clone(), now: self.now() }).await
    }

    async fn note_run(&self, id: &Id, run: &Run) -> Result<(), StoreError> {
        self.writer.commit(runs::Note::new(id, run)?).await
    }

    async fn run(&self, id: &Id) -> Result<Option<Run>, StoreError> {
        reads::run(&self.readers, id).await
    }

    async fn outbox_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        reads::outbox_due(&self.readers, now, limit).await
    }

    async fn outbox_done(&self, key: i64) -> Result<(), StoreError> {
        self.writer.commit(outbox::Done { key }).await
    }

    async fn outbox_retry(&self, key: i64, next: Timestamp) -> Result<(), StoreError> {
        self.writer.commit(outbox::Retry { key, next }).await
    }

    async fn sweep(&self, ended_before: Timestamp) -> Result<u64, StoreError> {
        let mut swept = 0;
        loop {
            let some = self.writer.commit(sweep::Sweep { ended_before }).await?;
            swept += some;
            if some < sweep::PREDICTIONS_AT_ONCE {
                return Ok(swept);
            }
        }
    }

    async fn token_create(&self, name: &str) -> Result<String, StoreError> {
        let token = secret::new_token();
        self.writer.commit(tokens::Create::new(name, &token, self.now())).await?;
        Ok(token)
    }

    async fn token_list(&self) -> Result<Vec<Token>, StoreError> {
        reads::tokens(&self.readers).await
    }

    async fn token_revoke(&self, name: &str) -> Result<bool, StoreError> {
        self.writer.commit(tokens::Revoke { name: name.to_owned(), now: self.now() }).await
    }

    async fn token_check(&self, token: &str) -> Result<bool, StoreError> {
        reads::token_is_known(&self.readers, &secret::token_hash(token)).await
    }

    async fn secret(&self, name: &str) -> Result<String, StoreError> {
        match reads::secret(&self.readers, name).await? {
            Some(secret) => Ok(secret),
            None => self.writer.commit(tokens::Secret::new(name)).await,
        }
    }
}

#[cfg(test)]
mod tests;
