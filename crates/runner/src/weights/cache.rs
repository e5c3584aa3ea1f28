//! Where weights lie: `blobs/sha256/<hex>` once per content, `sets/<set digest>/<path>` as links to the blobs (or, of sets in a
//! folder of somebody's own, to the files there).
//!
//! Knows nothing of sources. Beside a blob stand its `.stamp` (size, time and inode it had when its bytes were last
//! hashed: equal means unchanged, so a later start reads nothing), its `.partial` (an unfinished download) and its
//! `.lock` (held by the process that works on it; the system drops it with the process). Names change by rename only.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::lock::{Entry, LockedFile};

const READ_BYTES: usize = 1 << 20;

pub(super) struct Cache {
    root: PathBuf,
}

/// What stands where a blob should.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Blob {
    Missing,
    /// The stamp fits: these are the bytes that were hashed.
    Verified,
    /// Something is there, and nothing says that it is what its name says.
    Unverified,
}

impl Cache {
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn blob(&self, file: &LockedFile) -> PathBuf {
        self.root.join("blobs/sha256").join(file.hex())
    }

    pub fn partial(&self, file: &LockedFile) -> PathBuf {
        self.blob(file).with_extension("partial")
    }

    pub fn set(&self, entry: &Entry) -> PathBuf {
        self.root.join("sets").join(entry.set_hex())
    }

    /// Scratch space on the cache's own disk, where there is room for weights.
    pub fn scratch(&self) -> io::Result<tempfile::TempDir> {
        let folder = self.root.join("scratch");
        fs::create_dir_all(&folder)?;
        tempfile::tempdir_in(folder)
    }

    /// The set's folder, if every file of it leads to a verified blob. Costs a few system calls per file.
    pub fn ready(&self, entry: &Entry) -> Option<PathBuf> {
        let set = self.set(entry);
        let fits = |file: &LockedFile| self.stamped(file, &set.join(&file.path));
        entry.files.iter().all(fits).then_some(set)
    }

    pub fn look(&self, file: &LockedFile) -> Blob {
        let blob = self.blob(file);
        if self.stamped(file, &blob) {
            Blob::Verified
        } else if fs::symlink_metadata(&blob).is_ok() {
            Blob::Unverified
        } else {
            Blob::Missing
        }
    }

    /// One process at a time works on a blob. `waiting` is called once if that is another one now.
    pub fn hold(&self, file: &LockedFile, waiting: impl FnOnce()) -> io::Result<File> {
        let path = self.blob(file).with_extension("lock");
        fs::create_dir_all(path.parent().expect("a blob has a folder"))?;
        let lock = File::options().create(true).truncate(false).write(true).open(path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                lock.lock()?;
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
        Ok(lock)
    }

    /// A finished download takes its name: from here on it is read-only, and survives a power cut.
    pub fn keep(&self, file: &LockedFile, from: &File) -> io::Result<()> {
        from.set_permissions(fs::Permissions::from_mode(0o444))?;
        from.sync_all()?;
        let blob = self.blob(file);
        fs::rename(self.partial(file), &blob)?;
        File::open(blob.parent().expect("a blob has a folder"))?.sync_all()?;
        self.stamp(file)
    }

    /// The blob was hashed just now, and was right.
    pub fn stamp(&self, file: &LockedFile) -> io::Result<()> {
        let stamp = Stamp::of(&fs::metadata(self.blob(file))?);
        let path = self.blob(file).with_extension("stamp");
        let fresh = path.with_extension("stamp-new");
        fs::write(&fresh, stamp.to_text())?;
        fs::rename(fresh, path)
    }

    /// The blob is not what its name says.
    pub fn discard(&self, file: &LockedFile) -> io::Result<()> {
        remove(&self.blob(file).with_extension("stamp"))?;
        remove(&self.blob(file))
    }

    /// Puts the blob into the set's folder, as a relative link: the cache may be moved as a whole.
    pub fn link(&self, entry: &Entry, file: &LockedFile) -> io::Result<()> {
        let up = "../".repeat(2 + file.path.matches('/').count());
        self.link_to(entry, file, Path::new(&format!("{up}blobs/sha256/{}", file.hex())))
    }

    /// Puts a file into the set's folder, as a link.
    pub fn link_to(&self, entry: &Entry, file: &LockedFile, target: &Path) -> io::Result<()> {
        let at = self.set(entry).join(&file.path);
        if fs::read_link(&at).is_ok_and(|now| now == target) {
            return Ok(());
        }
        let folder = at.parent().expect("a file has a folder");
        fs::create_dir_all(folder)?;
        // The process id keeps two that link the same set apart.
        let fresh = folder.join(format!(".{}-{}.link", &file.hex()[..16], std::process::id()));
        remove(&fresh)?;
        symlink(target, &fresh)?;
        fs::rename(fresh, at)
    }

    /// Is there room for the rest of a file? Said before it is fetched, and not at its last byte.
    pub fn room(&self, file: &LockedFile) -> io::Result<()> {
        let here = fs::metadata(self.partial(file)).map_or(0, |about| about.len());
        let needed = file.size.saturating_sub(here);
        match free_bytes(&self.root) {
            Some(free) if free < needed => {
                let why = format!("no space left: {needed} bytes are needed, {free} are free");
                Err(io::Error::new(io::ErrorKind::StorageFull, why))
            }
            _ => Ok(()),
        }
    }

    /// Does what stands at `path` have the size, time and inode that the blob's stamp recorded?
    fn stamped(&self, file: &LockedFile, path: &Path) -> bool {
        let Ok(about) = fs::metadata(path) else { return false };
        let Ok(text) = fs::read_to_string(self.blob(file).with_extension("stamp")) else { return false };
        about.is_file() && about.len() == file.size && text == Stamp::of(&about).to_text()
    }
}

#[derive(PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    modified_ns: i128,
    inode: u64,
}

impl Stamp {
    pub fn of(about: &fs::Metadata) -> Self {
        let modified_ns = i128::from(about.mtime()) * 1_000_000_000 + i128::from(about.mtime_nsec());
        Self { size: about.len(), modified_ns, inode: about.ino() }
    }

    pub fn to_text(&self) -> String {
        format!("verified size={} mtime_ns={} inode={}\n", self.size, self.modified_ns, self.inode)
    }
}

/// What this user may still write on the disk of a folder, where the system tells.
fn free_bytes(folder: &Path) -> Option<u64> {
    let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()).ok()?;
    let mut about = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends with a NUL, and the structure is the system's to fill.
    let told = unsafe { libc::statvfs(path.as_ptr(), about.as_mut_ptr()) };
    // SAFETY: zeroes are valid for it, and it was filled if the call says so.
    let about = unsafe { about.assume_init() };
    (told == 0).then(|| about.f_bavail.saturating_mul(about.f_frsize))
}

/// Removes a file if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The sha256 of a file's bytes, in hex, and how many there are. `seen` is told the bytes so far.
pub(super) fn hash(path: &Path, mut seen: impl FnMut(u64)) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut done = 0;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hex::encode(hasher.finalize()), done)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                done += read as u64;
                seen(done);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
