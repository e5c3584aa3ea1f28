//! A store in memory whose writes fail while a switch is on.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use prediction::{Id, Numbered, Prediction, Request, Run, Timestamp};
use store::{
    Appended, CancelOutcome, Delivery, Lease, ListQuery, MemoryStore, Page, Renewed, Store, StoreError, Token,
};

#[derive(Default)]
pub struct SlowStore {
    inner: MemoryStore,
    pub failing: AtomicBool,
}

impl SlowStore {
    fn well(&self) -> Result<&MemoryStore, StoreError> {
        let failing = self.failing.load(Ordering::SeqCst);
        if failing { Err(StoreError::Unavailable("disk full".into())) } else { Ok(&self.inner) }
    }
}

#[async_trait]
impl Store for SlowStore {
    async fn create(&self, request: &Request) -> Result<(), StoreError> {
        self.well()?.create(request).await
    }
    async fn get(&self, id: &Id) -> Result<Option<Prediction>, StoreError> {
        self.inner.get(id).await
    }
    async fn by_stream_key(&self, key: &str) -> Result<Option<Id>, StoreError> {
        self.inner.by_stream_key(key).await
    }
    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.inner.list(query).await
    }
    async fn events(&self, id: &Id, after: u64) -> Result<Vec<Numbered>, StoreError> {
        self.inner.events(id, after).await
    }
    async fn waiting(&self) -> Result<u64, StoreError> {
        self.inner.waiting().await
    }
    async fn lease(&self, owner: &str, max: usize) -> Result<Vec<Lease>, StoreError> {
        self.well()?.lease(owner, max).await
    }
    async fn renew(&self, owner: &str, held: &[(Id, u32)]) -> Result<Vec<Renewed>, StoreError> {
        self.well()?.renew(owner, held).await
    }
    async fn release(&self, owner: &str) -> Result<u64, StoreError> {
        self.well()?.release(owner).await
    }
    async fn append(&self, id: &Id, attempt: u32, events: &[Numbered]) -> Result<Appended, StoreError> {
        self.well()?.append(id, attempt, events).await
    }
    async fn request_cancel(&self, id: &Id) -> Result<CancelOutcome, StoreError> {
        self.well()?.request_cancel(id).await
    }
    async fn note_run(&self, id: &Id, run: &Run) -> Result<(), StoreError> {
        self.well()?.note_run(id, run).await
    }
    async fn run(&self, id: &Id) -> Result<Option<Run>, StoreError> {
        self.inner.run(id).await
    }
    async fn outbox_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        self.inner.outbox_due(now, limit).await
    }
    async fn outbox_done(&self, key: i64) -> Result<(), StoreError> {
        self.inner.outbox_done(key).await
    }
    async fn outbox_retry(&self, key: i64, next: Timestamp) -> Result<(), StoreError> {
        self.inner.outbox_retry(key, next).await
    }
    async fn sweep(&self, ended_before: Timestamp) -> Result<u64, StoreError> {
        self.inner.sweep(ended_before).await
    }
    async fn token_create(&self, name: &str) -> Result<String, StoreError> {
        self.inner.token_create(name).await
    }
    async fn token_list(&self) -> Result<Vec<Token>, StoreError> {
        self.inner.token_list().await
    }
    async fn token_revoke(&self, name: &str) -> Result<bool, StoreError> {
        self.inner.token_revoke(name).await
    }
    async fn token_check(&self, token: &str) -> Result<bool, StoreError> {
        self.inner.token_check(token).await
    }
    async fn secret(&self, name: &str) -> Result<String, StoreError> {
        self.inner.secret(name).await
    }
}
