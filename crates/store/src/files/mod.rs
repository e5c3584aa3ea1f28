//! Files: what callers sent and what models made, each for a while.
//!
//! A file is a row and its content, which lies in a folder beside the database under the file's id. The content is whole
//! and on disk before the row, and goes after it: a crash leaves content without a row at most, and the next start removes
//! that. Memory: one piece of a file, whatever its size. Refuses to know HTTP, models, and where content comes from.

mod content;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use prediction::{Map, Timestamp};

pub use content::Incoming;
pub use words::{File, FileKind, FilePage, referred};

use crate::{Cursor, StoreError};
use content::Folder;

/// The rows of files. Every store of predictions is one too; `conformance` tests both. An expired file is as good as gone.
#[async_trait]
pub trait FileRows: Send + Sync + 'static {
    /// A new file, durable when this returns. A known id is `StoreError::Exists`.
    async fn file_create(&self, file: &File) -> Result<(), StoreError>;

    async fn file_get(&self, id: &str) -> Result<Option<File>, StoreError>;

    /// Uploads, newest first.
    async fn file_list(&self, cursor: Option<Cursor>, page_size: usize) -> Result<FilePage, StoreError>;

    /// False if there was none.
    async fn file_delete(&self, id: &str) -> Result<bool, StoreError>;

    /// Every row's id, of expired ones too.
    async fn file_ids(&self) -> Result<Vec<String>, StoreError>;

    /// Removes some of the rows that have expired and names them; none are left when it names none.
    async fn files_expire(&self) -> Result<Vec<String>, StoreError>;
}

/// What somebody says about a file whose content has come.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    pub kind: FileKind,
    pub name: String,
    pub content_type: String,
    pub metadata: Map,
    pub lives_seconds: u64,
}

/// Rows and contents together. Cheap to clone.
#[derive(Clone)]
pub struct Files {
    rows: Arc<dyn FileRows>,
    folder: Arc<Folder>,
}

impl Files {
    /// Opens the folder, made on first use, and removes what an earlier life left there without a row.
    pub async fn open(rows: Arc<dyn FileRows>, folder: &Path) -> Result<Self, StoreError> {
        let files = Self { rows, folder: Arc::new(Folder::open(folder)?) };
        files.sweep().await?;
        let known = files.rows.file_ids().await?.into_iter().collect();
        files.folder.remove_all_but(known).await?;
        Ok(files)
    }

    /// Takes content in. Dropped before `keep`, nothing of it stays.
    pub async fn receive(&self) -> Result<Incoming, StoreError> {
        self.folder.receive().await
    }

    /// Content that is complete becomes a file: durable when this returns.
    pub async fn keep(&self, content: Incoming, about: About) -> Result<File, StoreError> {
        let now = Timestamp::now();
        let lives = i64::try_from(about.lives_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        let (size, sha256, md5) = content.sums();
        let file = File {
            id: about.kind.new_id(),
            kind: about.kind,
            name: about.name,
            content_type: about.content_type,
            size,
            sha256,
            md5,
            metadata: about.metadata,
            created_at: now,
            expires_at: now.plus_millis(lives),
        };
        content.place(&file.id).await?;
        if let Err(error) = self.rows.file_create(&file).await {
            self.folder.remove(&file.id).await;
            return Err(error);
        }
        Ok(file)
    }

    pub async fn get(&self, id: &str) -> Result<Option<File>, StoreError> {
        self.rows.file_get(id).await
    }

    pub async fn list(&self, cursor: Option<Cursor>, page_size: usize) -> Result<FilePage, StoreError> {
        self.rows.file_list(cursor, page_size).await
    }

    /// False if there was none. Whoever reads the content at the moment reads on.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let was_there = self.rows.file_delete(id).await?;
        if was_there {
            self.folder.remove(id).await;
        }
        Ok(was_there)
    }

    /// Where the content lies, for whoever reads it on this machine.
    pub fn path(&self, file: &File) -> PathBuf {
        self.folder.path(&file.id)
    }

    /// Removes what has expired; how many.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let mut swept = 0;
        loop {
            let expired = self.rows.files_expire().await?;
            if expired.is_empty() {
                return Ok(swept);
            }
            for id in &expired {
                self.folder.remove(id).await;
            }
            swept += expired.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests;
