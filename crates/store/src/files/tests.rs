//! Rows and contents together, over both stores' rows where it matters: what a crash or a sweep leaves on disk.

use std::path::Path;

use super::*;
use crate::MemoryStore;
use crate::conformance::HandClock;

fn about(name: &str) -> About {
    About {
        kind: FileKind::Upload,
        name: name.into(),
        content_type: "text/plain".into(),
        metadata: Map::new(),
        lives_seconds: 60,
    }
}

async fn upload(files: &Files, bytes: &[u8]) -> File {
    let mut content = files.receive().await.unwrap();
    for piece in bytes.chunks(2) {
        content.write(piece).await.unwrap();
    }
    files.keep(content, about("a.txt")).await.unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_kept_file_has_its_sums_and_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::open(Arc::new(MemoryStore::new()), folder.path()).await.unwrap();
    let file = upload(&files, b"hello").await;
    assert_eq!((file.size, file.md5.as_str()), (5, "5d41402abc4b2a76b9719d911017c592"));
    assert_eq!(file.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert_eq!(std::fs::read(files.path(&file)).unwrap(), b"hello");
    assert_eq!(files.get(&file.id).await.unwrap(), Some(file.clone()));
    assert!(files.delete(&file.id).await.unwrap() && !files.delete(&file.id).await.unwrap());
    assert_eq!((files.get(&file.id).await.unwrap(), names(folder.path())), (None, vec![]));
}

#[tokio::test]
async fn content_that_nobody_kept_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::open(Arc::new(MemoryStore::new()), folder.path()).await.unwrap();
    let mut content = files.receive().await.unwrap();
    content.write(b"half").await.unwrap();
    assert_eq!(names(folder.path()).len(), 1);
    drop(content);
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_start_removes_what_has_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let rows = Arc::new(MemoryStore::new());
    let files = Files::open(rows.clone(), folder.path()).await.unwrap();
    let file = upload(&files, b"kept").await;
    for orphan in ["coming.0123", "0123456789"] {
        std::fs::write(folder.path().join(orphan), "left by a crash").unwrap();
    }
    drop(files);
    Files::open(rows, folder.path()).await.unwrap();
    assert_eq!(names(folder.path()), [file.id]);
}

#[tokio::test]
async fn a_sweep_removes_the_content_of_what_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let clock = HandClock::default();
    let rows = Arc::new(MemoryStore::with_clock(clock.as_clock()));
    let files = Files::open(rows, folder.path()).await.unwrap();
    let file = upload(&files, b"short").await;
    assert_eq!(files.sweep().await.unwrap(), 0);
    clock.advance_seconds((file.expires_at.0 - clock.now().0) / 1_000_000 + 1);
    assert_eq!(files.get(&file.id).await.unwrap(), None, "expired is gone, swept or not");
    assert_eq!(names(folder.path()).len(), 1);
    assert_eq!((files.sweep().await.unwrap(), names(folder.path())), (1, vec![]));
}

#[tokio::test]
async fn a_row_that_is_refused_leaves_no_content() {
    struct Full(MemoryStore);
    #[async_trait]
    impl FileRows for Full {
        async fn file_create(&self, _: &File) -> Result<(), StoreError> {
            Err(StoreError::Unavailable("disk full".into()))
        }
        async fn file_get(&self, id: &str) -> Result<Option<File>, StoreError> {
            self.0.file_get(id).await
        }
        async fn file_list(&self, cursor: Option<Cursor>, page_size: usize) -> Result<FilePage, StoreError> {
            self.0.file_list(cursor, page_size).await
        }
        async fn file_delete(&self, id: &str) -> Result<bool, StoreError> {
            self.0.file_delete(id).await
        }
        async fn file_ids(&self) -> Result<Vec<String>, StoreError> {
            self.0.file_ids().await
        }
        async fn files_expire(&self) -> Result<Vec<String>, StoreError> {
            self.0.files_expire().await
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let files = Files::open(Arc::new(Full(MemoryStore::new())), folder.path()).await.unwrap();
    let content = files.receive().await.unwrap();
    assert!(files.keep(content, about("a.txt")).await.is_err());
    assert_eq!(names(folder.path()), Vec::<String>::new());
}
