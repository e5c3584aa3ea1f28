//! Digests of files outside the cache, remembered in it: a server that starts again on the same weights does not read tens
//! of gigabytes for an id. A digest counts as long as path, size, time and inode are what they were.
//!
//! Knows nothing of locks. What is remembered is a convenience: if it cannot be kept, the file is read again next time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::cache::{self, Stamp};

/// A file that was changed this short a while ago may be changed again without its time showing it.
const SETTLED: Duration = Duration::from_secs(2);

/// The sha256 of a file's bytes, in hex, and how many there are: as remembered under `cache`, else read. `seen` is told the
/// bytes read so far.
pub(super) fn hash(cache: &Path, path: &Path, seen: &mut dyn FnMut(u64)) -> io::Result<(String, u64)> {
    let record = record(cache, path)?;
    let about = fs::metadata(path)?;
    if let Kept::Same(hex) = kept(&record, &about) {
        return Ok((hex, about.len()));
    }
    let stamp = Stamp::of(&about).to_text();
    let (hex, size) = cache::hash(path, seen)?;
    let after = fs::metadata(path)?;
    let settled = SystemTime::now().duration_since(after.modified()?).is_ok_and(|age| age >= SETTLED);
    if settled
        && Stamp::of(&after).to_text() == stamp
        && let Err(error) = keep(&record, &format!("{stamp}{hex}"))
    {
        tracing::debug!("{}: its digest is not remembered: {error}", path.display());
    }
    Ok((hex, size))
}

/// What is remembered of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Nothing,
    /// It is as it was when it had this digest.
    Same(String),
    /// It was another one then.
    Changed,
}

/// The same without reading the file.
pub(super) fn look(cache: &Path, path: &Path) -> io::Result<Kept> {
    Ok(kept(&record(cache, path)?, &fs::metadata(path)?))
}

fn kept(record: &Path, about: &fs::Metadata) -> Kept {
    let Ok(kept) = fs::read_to_string(record) else { return Kept::Nothing };
    match kept.strip_prefix(&Stamp::of(about).to_text()).filter(|hex| is_digest(hex)) {
        Some(hex) => Kept::Same(hex.to_owned()),
        None => Kept::Changed,
    }
}

/// Where the digest of this file is remembered.
fn record(cache: &Path, path: &Path) -> io::Result<PathBuf> {
    let path = path.canonicalize()?;
    Ok(cache.join("known").join(hex::encode(Sha256::digest(path.as_os_str().as_encoded_bytes()))))
}

fn keep(record: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(record.parent().unwrap_or(Path::new("")))?;
    // The process id keeps two servers apart.
    let fresh = record.with_extension(format!("{}-new", std::process::id()));
    fs::write(&fresh, text)?;
    fs::rename(fresh, record)
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cache: &Path, path: &Path) -> io::Result<(String, u64)> {
        hash(cache, path, &mut |_| {})
    }

    /// A file that was written an hour ago.
    fn settled(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    }

    #[test]
    fn a_file_that_did_not_change_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, file) = (folder.path().join("cache"), folder.path().join("weights"));
        settled(&file, "one");
        let first = read(&cache, &file).unwrap();
        assert_eq!(first, (hex::encode(Sha256::digest("one")), 3));
        // What is remembered is what is answered: a false digest shows that the file was not read.
        let record = record(&cache, &file).unwrap();
        let told = fs::read_to_string(&record).unwrap().replace(&first.0, &"0".repeat(64));
        fs::write(&record, told).unwrap();
        assert_eq!(read(&cache, &file).unwrap(), ("0".repeat(64), 3));
    }

    #[test]
    fn a_file_that_changed_or_moved_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, file) = (folder.path().join("cache"), folder.path().join("weights"));
        settled(&file, "one");
        read(&cache, &file).unwrap();
        fs::write(&file, "two").unwrap();
        assert_eq!(read(&cache, &file).unwrap().0, hex::encode(Sha256::digest("two")));
        fs::remove_file(&file).unwrap();
        settled(&file, "three");
        assert_eq!(read(&cache, &file).unwrap(), (hex::encode(Sha256::digest("three")), 5));
        assert!(read(&cache, &folder.path().join("absent")).is_err());
    }

    #[test]
    fn a_look_says_what_is_remembered_and_reads_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, file) = (folder.path().join("cache"), folder.path().join("weights"));
        settled(&file, "one");
        assert_eq!(look(&cache, &file).unwrap(), Kept::Nothing);
        let (hex, _) = read(&cache, &file).unwrap();
        assert_eq!(look(&cache, &file).unwrap(), Kept::Same(hex));
        fs::write(&file, "two").unwrap();
        assert_eq!(look(&cache, &file).unwrap(), Kept::Changed);
        assert!(look(&cache, &folder.path().join("absent")).is_err());
    }

    #[test]
    fn a_file_that_was_written_just_now_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, file) = (folder.path().join("cache"), folder.path().join("weights"));
        fs::write(&file, "one").unwrap();
        read(&cache, &file).unwrap();
        assert!(!cache.exists());
    }

    #[test]
    fn a_cache_that_cannot_be_written_costs_a_reading_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, file) = (folder.path().join("cache"), folder.path().join("weights"));
        fs::write(&cache, "a file stands there").unwrap();
        settled(&file, "one");
        assert_eq!(read(&cache, &file).unwrap().1, 3);
    }
}
