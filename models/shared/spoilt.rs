//! For tests of what is not read: files whose tensors are rubbish while all that tells one file from another stays as it was.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Every safetensors file below the folder.
fn weights(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    files.chain(folders.iter().flat_map(|folder| weights(folder))).collect()
}

/// Overwrites every tensor below the folder with what is no number in any precision, in place; headers, sizes and times stay.
pub fn spoil(folder: &Path) {
    for path in weights(folder) {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let about = file.metadata().unwrap();
        let mut header = [0; 8];
        file.read_exact_at(&mut header, 0).unwrap();
        let start = 8 + u64::from_le_bytes(header);
        file.write_all_at(&vec![0xff; (about.len() - start) as usize], start).unwrap();
        file.set_modified(about.modified().unwrap()).unwrap();
    }
}

/// Every weight file is of now: what is in it stays.
pub fn touch(folder: &Path) {
    for path in weights(folder) {
        let file = File::options().write(true).open(&path).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.set_modified(before + std::time::Duration::from_secs(1)).unwrap();
    }
}
