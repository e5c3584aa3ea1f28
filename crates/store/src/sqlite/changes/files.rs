//! Rows of files. Their contents are somebody else's business: there before the row, gone after it.

use prediction::Timestamp;
use sqlx::sqlite::SqliteConnection;

use crate::files::File;
use crate::sqlite::reads::column;
use crate::sqlite::rows;
use crate::sqlite::writer::{Change, Failure};
use crate::{StoreError, rules};

/// In one transaction, so that a long sweep lets others in between.
const FILES_AT_ONCE: i64 = 256;

pub(in crate::sqlite) struct Create {
    id: String,
    kind: &'static str,
    created_at: Timestamp,
    expires_at: Timestamp,
    file: String,
}

impl Create {
    pub(in crate::sqlite) fn new(file: &File) -> Result<Self, StoreError> {
        let (id, kind, text) = (file.id.clone(), file.kind.as_str(), rows::write(file)?);
        Ok(Self { id, kind, created_at: file.created_at, expires_at: file.expires_at, file: text })
    }
}

impl Change for Create {
    type Answer = ();

    fn is_durable(&self) -> bool {
        true
    }

    fn bytes(&self) -> usize {
        self.file.len()
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<(), Failure> {
        let insert = sqlx::query(
            "INSERT INTO files (id, kind, created_at, expires_at, file) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (id) DO NOTHING",
        );
        let insert = insert.bind(&self.id).bind(self.kind).bind(self.created_at.0).bind(self.expires_at.0);
        let created = insert.bind(&self.file).execute(rows).await?.rows_affected();
        if created == 1 { Ok(()) } else { Err(rules::file_exists(&self.id).into()) }
    }
}

pub(in crate::sqlite) struct Delete {
    pub(in crate::sqlite) id: String,
    pub(in crate::sqlite) now: Timestamp,
}

impl Change for Delete {
    type Answer = bool;

    /// Its content goes next, and a row without content must not come back.
    fn is_durable(&self) -> bool {
        true
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<bool, Failure> {
        let delete = sqlx::query("DELETE FROM files WHERE id = ? AND expires_at > ?").bind(&self.id).bind(self.now.0);
        Ok(delete.execute(rows).await?.rows_affected() > 0)
    }
}

pub(in crate::sqlite) struct Expire {
    pub(in crate::sqlite) now: Timestamp,
}

impl Change for Expire {
    type Answer = Vec<String>;

    /// A row that came back would be as expired as before.
    fn is_durable(&self) -> bool {
        false
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<Vec<String>, Failure> {
        let expire = sqlx::query(
            "DELETE FROM files WHERE key IN (SELECT key FROM files WHERE expires_at <= ? LIMIT ?) RETURNING id",
        );
        let gone = expire.bind(self.now.0).bind(FILES_AT_ONCE).fetch_all(rows).await?;
        Ok(gone.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?)
    }
}
