//! Retention: what was said is removed, that it happened stays.

use prediction::Timestamp;
use sqlx::sqlite::SqliteConnection;

use crate::sqlite::reads::column;
use crate::sqlite::rows;
use crate::sqlite::writer::{Change, Failure};

/// In one transaction, so that a long sweep lets others in between.
pub(in crate::sqlite) const PREDICTIONS_AT_ONCE: u64 = 64;

pub(in crate::sqlite) struct Sweep {
    pub(in crate::sqlite) ended_before: Timestamp,
}

impl Change for Sweep {
    type Answer = u64;

    fn is_durable(&self) -> bool {
        false
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<u64, Failure> {
        let found = sqlx::query(
            "SELECT key, request, state FROM predictions \
             WHERE ended_at IS NOT NULL AND data_removed = 0 AND ended_at < ? \
             AND NOT EXISTS (SELECT 1 FROM outbox WHERE prediction = predictions.key) ORDER BY ended_at LIMIT ?",
        );
        let found = found.bind(self.ended_before.0).bind(PREDICTIONS_AT_ONCE as i64).fetch_all(&mut *rows).await?;
        let mut emptied = Vec::new();
        for row in &found {
            let mut prediction = rows::read(column(row, 1)?, column(row, 2)?, None)?;
            prediction.remove_data();
            emptied.push((column::<i64>(row, 0)?, rows::write_state(prediction)?));
        }
        for (key, state) in &emptied {
            let empty = sqlx::query(
                "UPDATE predictions SET state = ?, data_removed = 1 WHERE key = ?; \
                 DELETE FROM inputs WHERE prediction = ?; DELETE FROM events WHERE prediction = ?",
            );
            empty.bind(state).bind(key).bind(key).bind(key).execute(&mut *rows).await?;
        }
        Ok(emptied.len() as u64)
    }
}
