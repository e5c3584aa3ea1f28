//! What only a store in a file meets: other versions of it, folders that refuse, full disks, one bad change in a group.

use std::path::Path;
use std::sync::Arc;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use super::writer::{Change, Failure};
use super::{SqliteStore, open};
use crate::conformance::{request, whole_run};
use crate::{Appended, Store, StoreError};

/// Statements run as a change of their own.
struct Run(&'static str);

impl Change for Run {
    type Answer = ();

    fn is_durable(&self) -> bool {
        false
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<(), Failure> {
        sqlx::query(self.0).execute(rows).await?;
        Ok(())
    }
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

async fn new_store() -> (tempfile::TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("store.db")).await.unwrap();
    (folder, store)
}

#[tokio::test]
async fn a_file_of_a_newer_program_is_refused_with_both_versions() {
    let (folder, store) = new_store().await;
    store.close().await;
    let path = folder.path().join("store.db");
    let mut rows = raw(&path).await;
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (999, 'later', 0, 1, x'00', 0)").execute(&mut rows).await.unwrap();
    rows.close().await.unwrap();
    let Err(StoreError::Open(why)) = SqliteStore::open(&path).await else { panic!("opened") };
    let newest = format!("up to {}", open::MIGRATIONS.len());
    assert!(why.contains("store.db") && why.contains("version 999") && why.contains(&newest), "{why}");
}

/// The secret that webhooks are signed with is in it.
#[tokio::test]
async fn nobody_else_may_read_the_file_or_its_log() {
    use std::os::unix::fs::PermissionsExt;

    let (folder, store) = new_store().await;
    store.secret("webhook").await.unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", file.file_name());
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.db");
    std::fs::write(&path, "dear diary, ".repeat(500)).unwrap();
    let Err(StoreError::Open(why)) = SqliteStore::open(&path).await else { panic!("opened") };
    assert!(why.contains("notes.db") && why.contains("not a database"), "{why}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_or_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    // A file in the place of a folder, and a folder in the place of the file: refused to every user alike.
    for path in [file.join("data/store.db"), folder.path().to_owned()] {
        let Err(StoreError::Open(why)) = SqliteStore::open(&path).await else { panic!("opened {path:?}") };
        assert!(why.contains(&path.display().to_string()), "{why}");
    }
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_changes_nothing() {
    let (_folder, store) = new_store().await;
    store.create(&request(1)).await.unwrap();
    store.writer.commit(Run("PRAGMA max_page_count = 1")).await.unwrap();
    let mut big = request(2);
    big.input.insert("text".into(), "x".repeat(1 << 20).into());
    let Err(StoreError::Unavailable(why)) = store.create(&big).await else { panic!("stored") };
    assert!(why.contains("full"), "{why}");
    assert_eq!(store.get(&big.id).await.unwrap(), None);
    store.writer.commit(Run("PRAGMA max_page_count = 1000000")).await.unwrap();
    store.create(&big).await.unwrap();
    assert_eq!(store.waiting().await.unwrap(), 2);
}

#[tokio::test]
async fn a_writer_that_is_held_up_too_long_is_unavailable() {
    let (folder, store) = new_store().await;
    store.writer.commit(Run("PRAGMA busy_timeout = 0")).await.unwrap();
    let mut other = raw(&folder.path().join("store.db")).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let Err(StoreError::Unavailable(why)) = store.create(&request(1)).await else { panic!("stored") };
    assert!(why.contains("locked"), "{why}");
    assert_eq!(store.waiting().await.unwrap(), 0, "reads go on");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    store.create(&request(1)).await.unwrap();
}

#[tokio::test]
async fn one_bad_change_fails_alone() {
    let (_folder, store) = new_store().await;
    let store = Arc::new(store);
    let mut creates = tokio::task::JoinSet::new();
    // On one thread all of them wait before the writer runs: one group.
    for number in 0..10 {
        let store = store.clone();
        creates.spawn(async move { store.create(&request(number)).await });
    }
    let bad = store.writer.commit(Run("INSERT INTO inputs (prediction, input) VALUES (NULL, NULL)"));
    let (bad, creates) = tokio::join!(bad, creates.join_all());
    assert!(matches!(bad, Err(StoreError::Unavailable(_))), "{bad:?}");
    assert!(creates.iter().all(Result::is_ok), "{creates:?}");
    assert_eq!(store.waiting().await.unwrap(), 10);
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let (folder, store) = new_store().await;
    store.create(&request(1)).await.unwrap();
    store.close().await;
    assert_eq!(store.create(&request(2)).await, Err(StoreError::Unavailable("it is closed".into())));
    let again = SqliteStore::open(&folder.path().join("store.db")).await.unwrap();
    assert_eq!(again.waiting().await.unwrap(), 1);
}

#[tokio::test]
async fn the_log_stays_bounded_while_writes_go_on() {
    let (folder, store) = new_store().await;
    let mut asked = request(0);
    asked.input.insert("text".into(), "x".repeat(1 << 20).into());
    for number in 0..64 {
        asked.id = prediction::Id(format!("p{number}"));
        store.create(&asked).await.unwrap();
        assert_eq!(store.append(&asked.id, 0, &whole_run(&["a"])).await.unwrap(), Appended::Applied);
    }
    let log = std::fs::metadata(folder.path().join("store.db-wal")).unwrap().len();
    assert!(log < 48 << 20, "{} MiB of log after 64 MiB of writes", log >> 20);
}
