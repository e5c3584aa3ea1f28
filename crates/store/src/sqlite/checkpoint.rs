//! Moves the write-ahead log into the database file, beside the writer and not in its way.
//!
//! A passive checkpoint takes no lock that a writer wants; the writer itself starts the log over once all of it was
//! moved. Under a load that never pauses the log would still grow, so past a bound the writer helps once, between groups.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A checkpoint is due after this many groups...
const GROUPS_BETWEEN: usize = 500;
/// ...or about this many bytes, whichever comes first.
const BYTES_BETWEEN: usize = 4 << 20;
/// Pages of 4 KiB that the log may hold before the writer helps: 32 MiB.
const LOG_PAGES: i64 = 8192;

pub(super) struct Checkpoints {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    groups: usize,
    bytes: usize,
}

#[derive(Default)]
struct Shared {
    due: Notify,
    writer_must_help: AtomicBool,
}

impl Checkpoints {
    pub(super) fn start(mut rows: SqliteConnection) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn({
            let shared = shared.clone();
            async move {
                loop {
                    shared.due.notified().await;
                    let pages_left = checkpoint(&mut rows).await;
                    shared.writer_must_help.store(pages_left > LOG_PAGES, Ordering::Relaxed);
                }
            }
        });
        Self { shared, task, groups: 0, bytes: 0 }
    }

    /// Called after every group, with the writer's connection in no transaction.
    pub(super) async fn wrote(&mut self, bytes: usize, writer: &mut SqliteConnection) {
        self.groups += 1;
        self.bytes += bytes;
        if self.groups >= GROUPS_BETWEEN || self.bytes >= BYTES_BETWEEN {
            (self.groups, self.bytes) = (0, 0);
            self.shared.due.notify_one();
        }
        if self.shared.writer_must_help.swap(false, Ordering::Relaxed) {
            checkpoint(writer).await;
        }
    }

    pub(super) async fn finish(self, writer: &mut SqliteConnection) {
        self.task.abort();
        let _ = self.task.await;
        checkpoint(writer).await;
    }
}

/// The pages in the log if some could not be moved (a reader is still in them, or more came), else 0.
async fn checkpoint(rows: &mut SqliteConnection) -> i64 {
    let answer = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(rows).await;
    match answer.and_then(|row| Ok((row.try_get::<i64, _>(1)?, row.try_get::<i64, _>(2)?))) {
        Ok((log, moved)) if moved < log => log,
        Ok(_) => 0,
        Err(why) => {
            // The log grows until the next try; nothing is lost.
            tracing::warn!("cannot checkpoint the store: {why}");
            0
        }
    }
}
