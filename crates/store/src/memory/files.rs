//! Rows of files in memory.

use async_trait::async_trait;

use super::MemoryStore;
use crate::files::{File, FileKind, FilePage, FileRows};
use crate::words::around;
use crate::{Cursor, StoreError, rules};

#[async_trait]
impl FileRows for MemoryStore {
    async fn file_create(&self, file: &File) -> Result<(), StoreError> {
        let mut rows = self.rows();
        if rows.files.values().any(|known| known.id == file.id) {
            return Err(rules::file_exists(&file.id));
        }
        rows.file_keys += 1;
        let key = rows.file_keys;
        rows.files.insert(key, file.clone());
        Ok(())
    }

    async fn file_get(&self, id: &str) -> Result<Option<File>, StoreError> {
        let now = (self.clock)();
        Ok(self.rows().files.values().find(|file| file.id == id && file.expires_at > now).cloned())
    }

    async fn file_list(&self, cursor: Option<Cursor>, page_size: usize) -> Result<FilePage, StoreError> {
        let (rows, now) = (self.rows(), (self.clock)());
        let listed = rows.files.iter().filter(|(_, file)| file.kind == FileKind::Upload && file.expires_at > now);
        let mut places: Vec<_> = listed.map(|(key, file)| (file.created_at, *key)).collect();
        places.sort_unstable();
        match cursor {
            Some(Cursor { created_at, key, back: true }) => places.retain(|place| *place > (created_at, key)),
            Some(Cursor { created_at, key, back: false }) => {
                places.retain(|place| *place < (created_at, key));
                places.reverse();
            }
            None => places.reverse(),
        }
        let more = places.len() > page_size;
        let items = places.into_iter().take(page_size);
        let items = items.filter_map(|(_, key)| Some((key, rows.files.get(&key)?.clone()))).collect();
        let (files, next, previous) = around(cursor, items, more, |file: &File| file.created_at);
        Ok(FilePage { files, next, previous })
    }

    async fn file_delete(&self, id: &str) -> Result<bool, StoreError> {
        let (mut rows, now) = (self.rows(), (self.clock)());
        let found = rows.files.iter().find(|(_, file)| file.id == id && file.expires_at > now).map(|(key, _)| *key);
        Ok(found.is_some_and(|key| rows.files.remove(&key).is_some()))
    }

    async fn file_ids(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.rows().files.values().map(|file| file.id.clone()).collect())
    }

    async fn files_expire(&self) -> Result<Vec<String>, StoreError> {
        let now = (self.clock)();
        let expired =
            self.rows().files.extract_if(.., |_, file| file.expires_at <= now).map(|(_, file)| file.id).collect();
        Ok(expired)
    }
}
