//! Bundles there and back, and bundles that lie.

use super::*;
use crate::weights::{Own, lock_path};

fn options(folder: &Path) -> Options {
    Options {
        offline: true,
        cache_dir: folder.to_owned(),
        weights_dir: None,
        hub_endpoint: String::new(),
        hub_token: None,
        hub_cache: None,
    }
}

fn set(folder: &Path) -> Entry {
    fs::create_dir_all(folder.join("unet")).unwrap();
    fs::write(folder.join("unet/w"), b"weights").unwrap();
    fs::write(folder.join("unet/again"), b"weights").unwrap();
    fs::write(folder.join("config.json"), b"{}").unwrap();
    lock_path("tiny", folder).unwrap()
}

fn bundled(folder: &Path, entry: &Entry) -> Vec<u8> {
    let to = folder.join("tiny.bundle");
    let bundle = Bundle { sets: vec![(entry.clone(), folder.join("w"))], manifest: Some("native: {}".into()) };
    bundle.write(&to, &mut |_| {}).unwrap();
    fs::read(to).unwrap()
}

/// A tar of these files, in order.
fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_bundle_brings_a_set_into_an_empty_cache() {
    let folder = tempfile::tempdir().unwrap();
    let entry = set(&folder.path().join("w"));
    let bytes = bundled(folder.path(), &entry);
    assert_eq!(bytes, bundled(folder.path(), &entry), "the same weights, the same bundle");
    let names = tar::Archive::new(&bytes[..])
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned())
        .collect::<Vec<_>>();
    assert_eq!(names.len(), 4, "each content once: {names:?}");

    let options = options(&folder.path().join("cache"));
    let imported = import(&bytes[..], "b", &options, &mut |_| {}).unwrap();
    assert_eq!(imported.lock.weights, std::slice::from_ref(&entry));
    assert_eq!(imported.manifest.as_deref(), Some("native: {}"));
    let here = Cache::at(&options.cache_dir).ready(&entry).unwrap();
    assert_eq!(fs::read(here.join("unet/w")).unwrap(), b"weights");
    import(&bytes[..], "b", &options, &mut |_| panic!("what is here is not read again")).unwrap();
    // From a cog.yaml whose folder is not on this machine.
    let own = Own { entry, base: "/no/such/folder".into() };
    assert_eq!(own.ensure(&options, &mut |_| {}).unwrap(), here);
}

#[test]
fn altered_weights_make_no_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let entry = set(&folder.path().join("w"));
    fs::write(folder.path().join("w/unet/w"), b"Weights").unwrap();
    fs::write(folder.path().join("w/unet/again"), b"Weights").unwrap();
    let to = folder.path().join("b");
    let said =
        Bundle { sets: vec![(entry, folder.path().join("w"))], manifest: None }.write(&to, &mut |_| {}).unwrap_err();
    assert!(said.text().contains("was altered"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left of it");
}

#[test]
fn a_bundle_that_lies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let entry = set(&folder.path().join("w"));
    let lock = Lock::new(vec![entry.clone()]).to_json();
    let blob = |file: usize| format!("{BLOBS}{}", entry.files[file].hex());
    let (config, weights) = (blob(0), blob(1));
    let edited = lock.replacen("\"size\": 7", "\"size\": 8", 1);
    let whole = tar_of(&[(LOCK, lock.as_bytes()), (&config, b"{}"), (&weights, b"weights")]);
    for (bytes, expected) in [
        (b"not a tar".to_vec(), "not a"),
        (tar_of(&[(&config, b"{}")]), "its first file is not weights.lock"),
        (tar_of(&[(LOCK, edited.as_bytes())]), "size is"),
        (tar_of(&[(LOCK, lock.as_bytes()), ("etc/passwd", b"x")]), "\"etc/passwd\" is in no set of its lock"),
        (tar_of(&[(LOCK, lock.as_bytes()), (&weights, b"weight")]), "has 6 bytes; the lock says 7"),
        (tar_of(&[(LOCK, lock.as_bytes()), (&weights, b"Weights")]), "wrong content: expected sha256"),
        (tar_of(&[(LOCK, lock.as_bytes()), (&config, b"{}")]), "is locked, and is not in it"),
        (whole[..whole.len() - 1024 - 510].to_vec(), "b: "),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let said = import(&bytes[..], "b", &options(cache.path()), &mut |_| {}).unwrap_err();
        assert!(said.text().contains(expected), "{said}\n  should contain: {expected}");
    }
    let cache = tempfile::tempdir().unwrap();
    import(&whole[..], "b", &options(cache.path()), &mut |_| {}).unwrap();
}

#[test]
fn a_link_in_a_bundle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lock = Lock::new(vec![set(&folder.path().join("w"))]).to_json();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(lock.len() as u64);
    tar.append_data(&mut header, LOCK, lock.as_bytes()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Symlink);
    tar.append_link(&mut header, "blobs/sha256/aa", "/etc/passwd").unwrap();
    let bytes = tar.into_inner().unwrap();
    let said = import(&bytes[..], "b", &options(&folder.path().join("c")), &mut |_| {}).unwrap_err();
    assert!(said.text().contains("a bundle has plain files only"), "{said}");
}
