//! Rows in SQLite.
use async_trait::async_trait;
use prediction::{Id, Numbered, Prediction, Request, Timestamp};
use std::path::Path;

use crate::{Appended, CancelOutcome, Clock, Delivery, Lease, ListQuery, Page, Renewed, Store, StoreError, Token};

pub struct SqliteStore;

impl SqliteStore {
    pub async fn open(_: &Path) -> Result<Self, StoreError> {
        todo!()
    }
    pub async fn open_with(_: &Path, _: Clock) -> Result<Self, StoreError> {
        todo!()
    }
    pub async fn close(&self) {
        todo!()
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn create(&self, _: &Request) -> Result<(), StoreError> {
        todo!()
    }
    async fn get(&self, _: &Id) -> Result<Option<Prediction>, StoreError> {
        todo!()
    }
    async fn by_stream_key(&self, _: &str) -> Result<Option<Id>, StoreError> {
        todo!()
    }
    async fn list(&self, _: &ListQuery) -> Result<Page, StoreError> {
        todo!()
    }
    async fn events(&self, _: &Id, _: u64) -> Result<Vec<Numbered>, StoreError> {
        todo!()
    }
    async fn waiting(&self) -> Result<u64, StoreError> {
        todo!()
    }
    async fn lease(&self, _: &str, _: usize) -> Result<Vec<Lease>, StoreError> {
        todo!()
    }
    async fn renew(&self, _: &str, _: &[(Id, u32)]) -> Result<Vec<Renewed>, StoreError> {
        todo!()
    }
    async fn release(&self, _: &str) -> Result<u64, StoreError> {
        todo!()
    }
    async fn append(&self, _: &Id, _: u32, _: &[Numbered]) -> Result<Appended, StoreError> {
        todo!()
    }
    async fn request_cancel(&self, _: &Id) -> Result<CancelOutcome, StoreError> {
        todo!()
    }
    async fn outbox_due(&self, _: Timestamp, _: usize) -> Result<Vec<Delivery>, StoreError> {
        todo!()
    }
    async fn outbox_done(&self, _: i64) -> Result<(), StoreError> {
        todo!()
    }
    async fn outbox_retry(&self, _: i64, _: Timestamp) -> Result<(), StoreError> {
        todo!()
    }
    async fn sweep(&self, _: Timestamp) -> Result<u64, StoreError> {
        todo!()
    }
    async fn token_create(&self, _: &str) -> Result<String, StoreError> {
        todo!()
    }
    async fn token_list(&self) -> Result<Vec<Token>, StoreError> {
        todo!()
    }
    async fn token_revoke(&self, _: &str) -> Result<bool, StoreError> {
        todo!()
    }
    async fn token_check(&self, _: &str) -> Result<bool, StoreError> {
        todo!()
    }
    async fn secret(&self, _: &str) -> Result<String, StoreError> {
        todo!()
    }
}
