//! A new prediction.

use prediction::{Prediction, Request};
use sqlx::sqlite::SqliteConnection;

use crate::sqlite::rows;
use crate::sqlite::writer::{Change, Failure};
use crate::{StoreError, rules};

pub(in crate::sqlite) struct Create {
    id: prediction::Id,
    stream_key: String,
    created_at: i64,
    request: String,
    input: String,
    state: String,
}

impl Create {
    pub(in crate::sqlite) fn new(new: &Request) -> Result<Self, StoreError> {
        let (request, input) = rows::write_request(new)?;
        let state = rows::write_state(Prediction::new(new.clone()))?;
        let (id, stream_key, created_at) = (new.id.clone(), new.stream_key.clone(), new.created_at.0);
        Ok(Self { id, stream_key, created_at, request, input, state })
    }
}

impl Change for Create {
    type Answer = ();

    fn is_durable(&self) -> bool {
        true
    }

    fn bytes(&self) -> usize {
        self.request.len() + self.input.len() + self.state.len()
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<(), Failure> {
        // Two statements in one go. The second adds nothing where the first met a known id.
        let insert = sqlx::query(
            "INSERT INTO predictions (kind, id, stream_key, created_at, request, state) \
             VALUES ('prediction', ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING; \
             INSERT INTO inputs (prediction, input) SELECT last_insert_rowid(), ? WHERE changes() = 1",
        );
        let insert = insert.bind(self.id.as_str()).bind(&self.stream_key).bind(self.created_at).bind(&self.request);
        let done = insert.bind(&self.state).bind(&self.input).execute(rows).await?;
        if done.rows_affected() > 0 { Ok(()) } else { Err(rules::exists(&self.id).into()) }
    }
}
