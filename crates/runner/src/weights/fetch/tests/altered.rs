//! What happens to weights that somebody changed after they were verified.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::weights::{Progress, verify_with};

/// A set of one file in a cache, and a server that still has it.
fn fetched() -> (Here, Entry, Server, PathBuf) {
    let content = content();
    let entry = entry(&[("w", &content)]);
    let server = Server::start(move |_, _| ok(&content));
    let mut here = Here::new();
    here.ensure(&entry, &[https(&server.url("/w"))]).unwrap();
    let blob = here.cache().blob(&entry.files[0]);
    (here, entry, server, blob)
}

fn write(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_blob_is_read_only() {
    let (_here, _, _server, blob) = fetched();
    assert_eq!(fs::metadata(blob).unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn one_bit_altered_is_noticed_and_fetched_again() {
    let (mut here, entry, server, blob) = fetched();
    let mut wrong = content();
    wrong[0] ^= 1;
    write(&blob, &wrong);
    assert_eq!(here.cache().ready(&entry), None);
    let folder = here.ensure(&entry, &[https(&server.url("/w"))]).unwrap();
    assert_eq!(fs::read(folder.join("w")).unwrap(), content());
    assert_eq!(server.seen().len(), 2);
    assert!(
        here.notes.iter().any(|note| note.contains("failed cache: was altered: expected sha256")),
        "{:?}",
        here.notes
    );
}

#[test]
fn one_bit_altered_is_refused_offline() {
    let (mut here, entry, _server, blob) = fetched();
    let mut wrong = content();
    wrong[299_999] ^= 128;
    write(&blob, &wrong);
    here.options.offline = true;
    let said = here.ensure(&entry, &[]).unwrap_err();
    assert!(said.contains("the network may not be used"), "{said}");
}

#[test]
fn a_truncated_blob_is_fetched_again() {
    let (mut here, entry, server, blob) = fetched();
    write(&blob, &content()[..1_000]);
    here.ensure(&entry, &[https(&server.url("/w"))]).unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn a_blob_that_was_only_touched_is_read_again_and_kept() {
    let (mut here, entry, server, blob) = fetched();
    write(&blob, &content());
    let newer = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    fs::File::options().write(true).open(&blob).unwrap().set_modified(newer).unwrap();
    assert_eq!(here.cache().ready(&entry), None);
    here.ensure(&entry, &[]).unwrap();
    assert!(here.cache().ready(&entry).is_some());
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_file_of_the_set_that_was_replaced_leads_to_the_blob_again() {
    let (mut here, entry, server, _) = fetched();
    let file = here.cache().set(&entry).join("w");
    let elsewhere = here.folder.path().join("elsewhere");
    fs::write(&elsewhere, vec![7; 300_000]).unwrap();
    for replace in [
        &(|| fs::write(&file, vec![7; 300_000]).unwrap()) as &dyn Fn(),
        &|| std::os::unix::fs::symlink(&elsewhere, &file).unwrap(),
        &|| (),
    ] {
        fs::remove_file(&file).unwrap();
        replace();
        assert_eq!(here.cache().ready(&entry), None);
        here.ensure(&entry, &[]).unwrap();
        assert_eq!(fs::read(&file).unwrap(), content());
    }
    assert_eq!(server.seen().len(), 1);
    assert_eq!(fs::read(&elsewhere).unwrap(), vec![7; 300_000]);
}

#[test]
fn verify_reads_every_byte_and_forgets_what_is_wrong() {
    let (here, entry, _server, blob) = fetched();
    let mut last = 0;
    let mut report = |progress: Progress| {
        if let Progress::Bytes { done, .. } = progress {
            last = done;
        }
    };
    assert_eq!(verify_with(&entry, &here.options, &mut report).unwrap(), [("w".to_owned(), Ok(()))]);
    assert_eq!(last, 300_000);
    let mut wrong = content();
    wrong[150_000] ^= 1;
    write(&blob, &wrong);
    let found = verify_with(&entry, &here.options, &mut |_| {}).unwrap();
    let why = found[0].1.clone().unwrap_err();
    let expected =
        format!("was altered: expected {}, got sha256:{}", entry.files[0].digest, hex::encode(Sha256::digest(&wrong)));
    assert!(why.starts_with(&expected), "{why}");
    let found = verify_with(&entry, &here.options, &mut |_| {}).unwrap();
    assert!(found[0].1.clone().unwrap_err().starts_with("is not in the cache at"));
}
