//! Under what a prediction ran.

use prediction::{Id, Run};
use sqlx::sqlite::SqliteConnection;

use crate::StoreError;
use crate::sqlite::rows;
use crate::sqlite::writer::{Change, Failure};

pub(in crate::sqlite) struct Note {
    id: Id,
    run: String,
}

impl Note {
    pub(in crate::sqlite) fn new(id: &Id, run: &Run) -> Result<Self, StoreError> {
        Ok(Self { id: id.clone(), run: rows::write(run)? })
    }
}

impl Change for Note {
    type Answer = ();

    /// What runs again after a crash is noted again.
    fn is_durable(&self) -> bool {
        false
    }

    fn bytes(&self) -> usize {
        self.run.len()
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<(), Failure> {
        let note = sqlx::query(
            "INSERT INTO runs (prediction, run) SELECT key, ? FROM predictions WHERE id = ? \
             ON CONFLICT (prediction) DO UPDATE SET run = excluded.run",
        );
        note.bind(&self.run).bind(self.id.as_str()).execute(rows).await?;
        Ok(())
    }
}
