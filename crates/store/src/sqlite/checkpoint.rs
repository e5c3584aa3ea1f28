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

/// A checkpoint is due after about this many bytes of log.
const BYTES_BETWEEN: usize = 4 << 20;
/// What a change writes beside its own bytes: it touches about three pages of tables and indexes.
const BYTES_OF_A_CHANGE: usize = 12 << 10;
/// Pages of 4 KiB that the log may hold before the writer helps: 16 MiB.
const LOG_PAGES: i64 = 4096;

pub(super) struct Checkpoints {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
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
                    let log_pages = checkpoint(&mut rows).await;
                    shared.writer_must_help.store(log_pages > LOG_PAGES, Ordering::Relaxed);
                }
            }
        });
        Self { shared, task, bytes: 0 }
    }

    /// Called after every group, with the writer's connection in no transaction.
    pub(super) async fn wrote(&mut self, changes: usize, bytes: usize, writer: &mut SqliteConnection) {
        self.bytes += changes * BYTES_OF_A_CHANGE + bytes;
        if self.bytes >= BYTES_BETWEEN {
            self.bytes = 0;
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

/// How many pages the log held when it began. All of them are in the database file now, unless a reader is still in
/// an older state, but the log starts over only if the writer comes before it has grown again.
async fn checkpoint(rows: &mut SqliteConnection) -> i64 {
    let answer = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(rows).await;
    answer.and_then(|row| row.try_get(1)).unwrap_or_else(|why| {
        // The log grows until the next try; nothing is lost.
        tracing::warn!("cannot checkpoint the store: {why}");
        0
    })
}
