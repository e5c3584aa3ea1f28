//! From a path to connections: options, migrations, and words for what can be wrong with a file.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, SqlSafeStr};

use crate::StoreError;

/// How long a writer waits for the writer of another handle.
const BUSY_SECONDS: u64 = 5;
/// Reads at once. Each is a thread and a page cache of 2 MB at most.
const READ_CONNECTIONS: u32 = 4;
/// What a write-ahead log that has grown is cut back to when it starts over.
const KEPT_LOG_BYTES: u64 = 16 << 20;

/// In the order in which they are applied. One that was released never changes.
pub(super) const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "predictions", include_str!("../../migrations/0001_predictions.sql")),
    (2, "files", include_str!("../../migrations/0002_files.sql")),
    (3, "runs", include_str!("../../migrations/0003_runs.sql")),
];

pub(super) struct Connections {
    pub(super) writer: SqliteConnection,
    pub(super) checkpoints: SqliteConnection,
    pub(super) readers: SqlitePool,
}

pub(super) async fn open(path: &Path) -> Result<Connections, StoreError> {
    let refuse = |why: String| StoreError::Open(format!("cannot open the store {}: {why}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|why| refuse(why.to_string()))?;
        check_writable(folder, path).map_err(|why| refuse(why.to_string()))?;
    }
    create_private(path).map_err(|why| refuse(why.to_string()))?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(BUSY_SECONDS))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(false)
        // Checkpoints are `checkpoint`'s business: here they would stand in the way of a commit.
        .pragma("wal_autocheckpoint", "0")
        .pragma("journal_size_limit", KEPT_LOG_BYTES.to_string())
        .disable_statement_logging();
    let mut writer = options.connect().await.map_err(|why| refuse(why.to_string()))?;
    migrate(&mut writer).await.map_err(refuse)?;
    let checkpoints = options.connect().await.map_err(|why| refuse(why.to_string()))?;
    let readers = SqlitePoolOptions::new()
        .min_connections(1)
        .max_connections(READ_CONNECTIONS)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.pragma("query_only", "on"))
        .await
        .map_err(|why| refuse(why.to_string()))?;
    Ok(Connections { writer, checkpoints, readers })
}

/// SQLite's own words for a folder or file it may not write name neither.
fn check_writable(folder: &Path, path: &Path) -> std::io::Result<()> {
    let probe = folder.join(format!(".pinion-{}", prediction::secret_text(8)));
    std::fs::File::create_new(&probe)?;
    std::fs::remove_file(&probe)?;
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

/// Inputs, outputs, stream keys and the secret that webhooks are signed with are its owner's business only. SQLite takes
/// an empty file for a new one, and gives its log the file's mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

/// Under one write transaction, so that two handles that open a new file together apply each migration once.
async fn migrate(writer: &mut SqliteConnection) -> Result<(), String> {
    let known = MIGRATIONS.iter().map(|&(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let migrator = Migrator::with_migrations(known.collect());
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.map_err(|why| why.to_string())?;
    migrator.run(&mut *transaction).await.map_err(|why| match why {
        sqlx::migrate::MigrateError::VersionMissing(version) => {
            let newest = MIGRATIONS[MIGRATIONS.len() - 1].0;
            format!(
                "a newer program wrote it: it has tables of version {version}, this one knows versions up to {newest}"
            )
        }
        why => why.to_string(),
    })?;
    transaction.commit().await.map_err(|why| why.to_string())
}
