//! Rows of files: questions here, changes in `changes::files`.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::SqliteStore;
use super::changes::files::{Create, Delete, Expire};
use super::reads::column;
use super::rows::{self, unavailable};
use crate::files::{File, FilePage, FileRows};
use crate::words::around;
use crate::{Cursor, StoreError};

const OLDER: &str = "SELECT file, key FROM files WHERE kind = 'upload' AND expires_at > ? \
     AND created_at <= ? AND (created_at, key) < (?, ?) ORDER BY created_at DESC, key DESC LIMIT ?";

const NEWER: &str = "SELECT file, key FROM files WHERE kind = 'upload' AND expires_at > ? \
     AND created_at >= ? AND (created_at, key) > (?, ?) ORDER BY created_at, key LIMIT ?";

fn file(row: &SqliteRow) -> Result<File, StoreError> {
    rows::parse(column(row, 0)?)
}

#[async_trait]
impl FileRows for SqliteStore {
    async fn file_create(&self, file: &File) -> Result<(), StoreError> {
        self.writer.commit(Create::new(file)?).await
    }

    async fn file_get(&self, id: &str) -> Result<Option<File>, StoreError> {
        let found = sqlx::query("SELECT file FROM files WHERE id = ? AND expires_at > ?").bind(id).bind(self.now().0);
        let row = found.fetch_optional(&self.readers).await.map_err(|why| unavailable(&why))?;
        row.as_ref().map(file).transpose()
    }

    async fn file_list(&self, cursor: Option<Cursor>, page_size: usize) -> Result<FilePage, StoreError> {
        let back = cursor.is_some_and(|cursor| cursor.back);
        let (created_at, key) = cursor.map_or((i64::MAX, i64::MAX), |cursor| (cursor.created_at.0, cursor.key));
        let found = sqlx::query(if back { NEWER } else { OLDER });
        let found = found.bind(self.now().0).bind(created_at).bind(created_at).bind(key).bind(page_size as i64 + 1);
        let found = found.fetch_all(&self.readers).await.map_err(|why| unavailable(&why))?;
        let item = |row: &SqliteRow| Ok::<_, StoreError>((column(row, 1)?, file(row)?));
        let items = found.iter().take(page_size).map(item).collect::<Result<Vec<_>, _>>()?;
        let (files, next, previous) = around(cursor, items, found.len() > page_size, |file: &File| file.created_at);
        Ok(FilePage { files, next, previous })
    }

    async fn file_delete(&self, id: &str) -> Result<bool, StoreError> {
        self.writer.commit(Delete { id: id.to_owned(), now: self.now() }).await
    }

    async fn file_ids(&self) -> Result<Vec<String>, StoreError> {
        let found = sqlx::query("SELECT id FROM files").fetch_all(&self.readers).await;
        let found = found.map_err(|why| unavailable(&why))?;
        found.iter().map(|row| row.try_get(0).map_err(|why| StoreError::Broken(why.to_string()))).collect()
    }

    async fn files_expire(&self) -> Result<Vec<String>, StoreError> {
        self.writer.commit(Expire { now: self.now() }).await
    }
}
