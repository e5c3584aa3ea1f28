//! The suite over every store here.

use std::sync::Arc;

use crate::conformance::{HandClock, Handles};
use crate::files::FileRows;
use crate::{MemoryStore, SqliteStore};

pub async fn two_sqlite_handles() -> Handles {
    let folder = tempfile::tempdir().unwrap();
    let (clock, path) = (HandClock::default(), folder.path().join("new/store.db"));
    let one = Arc::new(SqliteStore::open_with(&path, clock.as_clock()).await.unwrap());
    let two = Arc::new(SqliteStore::open_with(&path, clock.as_clock()).await.unwrap());
    Handles { files: [one.clone(), two.clone()], one, two, clock, keep: Box::new(folder) }
}

pub async fn memory() -> Handles {
    let clock = HandClock::default();
    let store = Arc::new(MemoryStore::with_clock(clock.as_clock()));
    let files = [store.clone() as Arc<dyn FileRows>, store.clone()];
    Handles { files, one: store.clone(), two: store, clock, keep: Box::new(()) }
}

mod sqlite_conforms {
    crate::conformance!(crate::tests::two_sqlite_handles);
}

mod memory_conforms {
    crate::conformance!(crate::tests::memory);
}

mod agree;
mod forgets;
