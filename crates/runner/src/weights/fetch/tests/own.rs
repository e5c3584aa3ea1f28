//! Sets in a folder of somebody's own: read in place, and only while they are what was locked.

use std::fs;

use super::*;
use crate::weights::{Own, bring, declared, pin};

fn own(folder: &Path, here: &Here) -> Own {
    fs::create_dir_all(folder.join("unet")).unwrap();
    fs::write(folder.join("config.json"), b"{}").unwrap();
    fs::write(folder.join("unet/w"), content()).unwrap();
    fs::write(folder.join("cog.yaml"), b"native: {}").unwrap();
    let set = declared("weights: [{ name: tiny, source: { uri: 'file://.' } }]\n").unwrap().remove(0);
    let entry = pin(&set, folder, None, &here.options, &mut |_| {}).unwrap();
    Own { entry, base: folder.to_owned() }
}

#[test]
fn a_folder_is_served_in_place_and_nothing_but_what_is_locked() {
    let here = Here::new();
    let folder = here.folder.path().join("mine");
    let own = own(&folder, &here);
    assert_eq!(own.entry.files.len(), 2);
    fs::write(folder.join("unet/stowaway"), b"x").unwrap();
    let path = own.note(&here.options).unwrap();
    assert!(!path.exists());
    bring(&path, &here.options, &mut |_| {}).unwrap();
    assert_eq!(fs::read(path.join("unet/w")).unwrap(), content());
    assert!(!path.join("unet/stowaway").exists() && !path.join("cog.yaml").exists());
    assert!(!here.cache().blob(&own.entry.files[1]).exists(), "nothing was copied");
    // A path of any other kind is left alone.
    bring(Path::new("/no/such"), &here.options, &mut |_| {}).unwrap();
    bring(&here.options.cache_dir.join("sets/abc"), &here.options, &mut |_| {}).unwrap();
}

#[test]
fn one_bit_a_cut_a_link_and_a_gap_are_drift() {
    let here = Here::new();
    let folder = here.folder.path().join("mine");
    let own = own(&folder, &here);
    let (file, other) = (folder.join("unet/w"), here.folder.path().join("other"));
    let mut bit = content();
    bit[150_000] ^= 1;
    fs::write(&other, &bit).unwrap();
    let path = own.note(&here.options).unwrap();
    let changes: [(&str, &dyn Fn()); 4] = [
        ("was altered: 300000 bytes", &|| fs::write(&file, &bit).unwrap()),
        ("299999 bytes and sha256:", &|| fs::write(&file, &content()[1..]).unwrap()),
        ("was altered", &|| std::os::unix::fs::symlink(&other, &file).unwrap()),
        ("unet/w is locked, and is not there", &|| ()),
    ];
    for (expected, change) in changes {
        fs::remove_file(&file).unwrap();
        fs::write(&file, content()).unwrap();
        bring(&path, &here.options, &mut |_| {}).unwrap();
        fs::remove_file(&file).unwrap();
        change();
        let said = bring(&path, &here.options, &mut |_| {}).unwrap_err();
        assert!(said.text().contains(expected), "{said}");
        let checked = own.verify(&here.options, &mut |_| {}).unwrap();
        assert!(checked[0].1.is_ok() && checked[1].1.is_err(), "{checked:?}");
        // Whatever is there now, so that it can be removed again.
        let _ = fs::remove_file(&file);
        fs::write(&file, b"").unwrap();
    }
}

#[test]
fn a_glance_refuses_what_shows_without_reading_and_notes_what_does_not() {
    let here = Here::new();
    let folder = here.folder.path().join("mine");
    let own = own(&folder, &here);
    let file = folder.join("unet/w");
    let glance = || own.glance(&here.options).map_err(|error| error.text().to_owned());
    // As of an hour ago, or its digest would not be remembered.
    let settled = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let file = fs::File::options().write(true).open(&file).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    };
    settled(&content());
    assert!(glance().unwrap().is_empty(), "nobody has read it since");
    own.ensure(&here.options, &mut |_| {}).unwrap();
    assert!(glance().unwrap().is_empty());

    let mut bit = content();
    bit[150_000] ^= 1;
    fs::write(&file, &bit).unwrap();
    let notes = glance().unwrap();
    assert!(notes.len() == 1 && notes[0].contains("unet/w changed since"), "{notes:?}");
    settled(&bit);
    own.ensure(&here.options, &mut |_| {}).unwrap_err();
    let said = glance().unwrap_err();
    assert!(said.contains("unet/w was altered: 300000 bytes and sha256:"), "read once, and refused since: {said}");
    fs::write(&file, &content()[1..]).unwrap();
    let said = glance().unwrap_err();
    assert!(said.contains("300000 bytes are locked, 299999 are there. If that was meant"), "{said}");
    fs::remove_file(&file).unwrap();
    assert!(glance().unwrap_err().contains("unet/w is locked, and is not there"));
}

#[test]
fn a_lock_that_changes_under_a_server_changes_nothing() {
    let here = Here::new();
    let folder = here.folder.path().join("mine");
    let own = own(&folder, &here);
    let path = own.note(&here.options).unwrap();
    let record = here.options.cache_dir.join("sets").join(format!("{}.json", own.entry.set_hex()));
    let edited = fs::read_to_string(&record).unwrap().replace("300000", "300001");
    fs::write(&record, edited).unwrap();
    let said = bring(&path, &here.options, &mut |_| {}).unwrap_err();
    assert!(said.text().contains("size is"), "{said}");
}

#[test]
fn a_pickle_is_neither_pinned_nor_used() {
    let mut here = Here::new();
    let folder = here.folder.path().join("mine");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("model.pt"), b"\x80\x02}q").unwrap();
    let set = declared("weights: [{ name: tiny, source: { uri: . } }]\n").unwrap().remove(0);
    let said = pin(&set, &folder, None, &here.options, &mut |_| {}).unwrap_err();
    assert!(said.text().contains("model.pt: is a Python pickle"), "{said}");
    // Somebody else's lock may list one all the same.
    let said = here.ensure(&entry(&[("model.pt", b"\x80\x02}q")]), &[path(&folder)]).unwrap_err();
    assert!(said.contains("model.pt: is a Python pickle"), "{said}");
}

#[test]
fn a_blob_replaced_by_a_link_is_fetched_again() {
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, _| ok(&body));
    let mut here = Here::new();
    let entry = entry(&[("w", &content)]);
    here.ensure(&entry, &[https(&server.url("/w"))]).unwrap();
    let (blob, elsewhere) = (here.cache().blob(&entry.files[0]), here.folder.path().join("elsewhere"));
    fs::write(&elsewhere, vec![7; 300_000]).unwrap();
    fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
    let folder = here.ensure(&entry, &[https(&server.url("/w"))]).unwrap();
    assert_eq!(fs::read(folder.join("w")).unwrap(), content);
    assert_eq!(fs::read(&elsewhere).unwrap(), vec![7; 300_000]);
    assert_eq!(server.seen().len(), 2);
}
