//! What became of a webhook. A power cut may forget it, and the webhook goes out twice with the same id: allowed.

use prediction::Timestamp;
use sqlx::sqlite::SqliteConnection;

use crate::sqlite::writer::{Change, Failure};

pub(in crate::sqlite) struct Done {
    pub(in crate::sqlite) key: i64,
}

impl Change for Done {
    type Answer = ();

    fn is_durable(&self) -> bool {
        false
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<(), Failure> {
        sqlx::query("DELETE FROM outbox WHERE key = ?").bind(self.key).execute(rows).await?;
        Ok(())
    }
}

pub(in crate::sqlite) struct Retry {
    pub(in crate::sqlite) key: i64,
    pub(in crate::sqlite) next: Timestamp,
}

impl Change for Retry {
    type Answer = ();

    fn is_durable(&self) -> bool {
        false
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<(), Failure> {
        let retry = sqlx::query("UPDATE outbox SET attempts = attempts + 1, next_at = ? WHERE key = ?");
        retry.bind(self.next.0).bind(self.key).execute(rows).await?;
        Ok(())
    }
}
