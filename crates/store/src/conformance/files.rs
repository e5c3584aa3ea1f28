//! Rows of files.

use prediction::{Map, Timestamp};

use super::{Handles, START};
use crate::StoreError;
use crate::files::{File, FileKind};

/// Created `number` seconds after the start, for a minute.
fn file(number: i64, kind: FileKind) -> File {
    let created_at = START.plus_millis(number * 1000);
    File {
        id: format!("f{number}"),
        kind,
        name: "a talk.wav".into(),
        content_type: "audio/wav".into(),
        size: 5,
        sha256: "s".into(),
        md5: "m".into(),
        metadata: Map::from_iter([("customer".to_owned(), 123.into())]),
        created_at,
        expires_at: created_at.plus_millis(60_000),
    }
}

fn ids(files: &[File]) -> Vec<&str> {
    files.iter().map(|file| file.id.as_str()).collect()
}

pub async fn a_file_is_read_back_until_it_is_deleted(handles: Handles) {
    let [one, two] = &handles.files;
    let made = file(1, FileKind::Output);
    assert_eq!(one.file_get("f1").await.unwrap(), None);
    one.file_create(&made).await.unwrap();
    assert_eq!(two.file_get("f1").await.unwrap(), Some(made.clone()));
    assert_eq!(two.file_create(&made).await.unwrap_err(), StoreError::Exists("file f1".into()));
    assert_eq!(two.file_ids().await.unwrap(), ["f1"]);
    assert!(two.file_delete("f1").await.unwrap() && !one.file_delete("f1").await.unwrap());
    assert_eq!((one.file_get("f1").await.unwrap(), one.file_ids().await.unwrap()), (None, vec![]));
}

pub async fn a_file_that_has_expired_is_gone_and_swept_once(handles: Handles) {
    let [one, two] = &handles.files;
    for number in [0, 1] {
        one.file_create(&file(number, FileKind::Upload)).await.unwrap();
    }
    handles.clock.advance_seconds(60);
    assert_eq!(one.file_get("f0").await.unwrap(), None, "its last moment has come");
    assert!(one.file_get("f1").await.unwrap().is_some());
    assert!(!one.file_delete("f0").await.unwrap());
    assert_eq!(ids(&two.file_list(None, 9).await.unwrap().files), ["f1"]);
    assert_eq!(two.files_expire().await.unwrap(), ["f0"]);
    assert_eq!(one.files_expire().await.unwrap(), Vec::<String>::new());
    assert_eq!(one.file_ids().await.unwrap(), ["f1"]);
}

pub async fn a_list_of_files_is_newest_first_in_pages_and_without_outputs(handles: Handles) {
    let [one, two] = &handles.files;
    for number in 0..5 {
        one.file_create(&file(number, FileKind::Upload)).await.unwrap();
    }
    one.file_create(&file(9, FileKind::Output)).await.unwrap();
    let twin = File { id: "twin".into(), created_at: Timestamp(START.0 + 2_000_000), ..file(2, FileKind::Upload) };
    two.file_create(&twin).await.unwrap();
    let first = two.file_list(None, 2).await.unwrap();
    assert_eq!((ids(&first.files), first.previous), (vec!["f4", "f3"], None));
    let second = two.file_list(first.next, 2).await.unwrap();
    assert_eq!(ids(&second.files), ["twin", "f2"]);
    let third = one.file_list(second.next, 2).await.unwrap();
    assert_eq!((ids(&third.files), third.next), (vec!["f1", "f0"], None));
    let back = one.file_list(third.previous, 2).await.unwrap();
    assert_eq!((ids(&back.files), back.next.is_some()), (vec!["twin", "f2"], true));
    let start = one.file_list(back.previous, 9).await.unwrap();
    assert_eq!((ids(&start.files), start.previous), (vec!["f4", "f3"], None));
}
