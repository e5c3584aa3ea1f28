//! Who holds what, until when. None of it needs the disk: after a power cut a lost lease is one that ran out early.
//! `INDEXED BY` where it would otherwise be the planner's choice to walk the whole history for the few that are open.

use std::collections::HashMap;

use prediction::{Id, Timestamp};
use sqlx::sqlite::SqliteConnection;

use crate::sqlite::reads::{self, column};
use crate::sqlite::rows;
use crate::sqlite::writer::{Change, Failure};
use crate::{Lease, Renewed, rules};

pub(in crate::sqlite) struct Take {
    pub(in crate::sqlite) owner: String,
    pub(in crate::sqlite) max: usize,
    pub(in crate::sqlite) now: Timestamp,
}

impl Change for Take {
    type Answer = Vec<Lease>;

    fn is_durable(&self) -> bool {
        false
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<Vec<Lease>, Failure> {
        let found = sqlx::query(
            "SELECT p.key, p.request, p.state, i.input, p.attempt, p.cancel_requested \
             FROM predictions p INDEXED BY predictions_open LEFT JOIN inputs i ON i.prediction = p.key \
             WHERE p.kind = 'prediction' AND p.ended_at IS NULL AND (p.lease_until IS NULL OR p.lease_until <= ?) \
             ORDER BY p.created_at, p.key LIMIT ?",
        );
        let found = found.bind(self.now.0).bind(self.max as i64).fetch_all(&mut *rows).await?;
        let (mut keys, mut leases) = (Vec::new(), Vec::new());
        for row in &found {
            let (key, prediction) = reads::prediction(row)?;
            let (attempt, cancel_requested): (u32, bool) = (column(row, 4)?, column(row, 5)?);
            keys.push(key);
            leases.push(Lease { prediction, attempt: attempt + 1, cancel_requested });
        }
        if !keys.is_empty() {
            let take = sqlx::query(
                "UPDATE predictions SET attempt = attempt + 1, owner = ?, lease_until = ? \
                 WHERE key IN (SELECT value FROM json_each(?))",
            );
            let take = take.bind(&self.owner).bind(rules::lease_until(self.now).0).bind(rows::write(&keys)?);
            take.execute(rows).await?;
        }
        Ok(leases)
    }
}

pub(in crate::sqlite) struct Renew {
    pub(in crate::sqlite) owner: String,
    pub(in crate::sqlite) held: Vec<(Id, u32)>,
    pub(in crate::sqlite) now: Timestamp,
}

impl Change for Renew {
    type Answer = Vec<Renewed>;

    fn is_durable(&self) -> bool {
        false
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<Vec<Renewed>, Failure> {
        let ids: Vec<&Id> = self.held.iter().map(|(id, _)| id).collect();
        let found = sqlx::query(
            "SELECT id, key, attempt, cancel_requested FROM predictions \
             WHERE id IN (SELECT value FROM json_each(?)) AND owner = ? AND ended_at IS NULL",
        );
        let found = found.bind(rows::write(&ids)?).bind(&self.owner).fetch_all(&mut *rows).await?;
        let mut owned = HashMap::new();
        for row in &found {
            let (key, attempt, cancel): (i64, u32, bool) = (column(row, 1)?, column(row, 2)?, column(row, 3)?);
            owned.insert(Id(column(row, 0)?), (key, attempt, cancel));
        }
        let mut keys = Vec::new();
        let renewed = self.held.iter().map(|(id, attempt)| match owned.get(id) {
            Some((key, current, cancel_requested)) if current == attempt => {
                keys.push(*key);
                Renewed { id: id.clone(), lost: false, cancel_requested: *cancel_requested }
            }
            _ => Renewed { id: id.clone(), lost: true, cancel_requested: false },
        });
        let renewed = renewed.collect();
        let renew = sqlx::query("UPDATE predictions SET lease_until = ? WHERE key IN (SELECT value FROM json_each(?))");
        renew.bind(rules::lease_until(self.now).0).bind(rows::write(&keys)?).execute(rows).await?;
        Ok(renewed)
    }
}

pub(in crate::sqlite) struct Release {
    pub(in crate::sqlite) owner: String,
}

impl Change for Release {
    type Answer = u64;

    fn is_durable(&self) -> bool {
        false
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<u64, Failure> {
        let release = sqlx::query(
            "UPDATE predictions INDEXED BY predictions_open SET owner = NULL, lease_until = NULL \
             WHERE kind = 'prediction' AND ended_at IS NULL AND owner = ?",
        );
        Ok(release.bind(&self.owner).execute(rows).await?.rows_affected())
    }
}
