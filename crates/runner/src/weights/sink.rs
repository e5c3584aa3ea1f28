//! Where a source's bytes go: into the blob's `.partial`, and never more of them than the lock says. A thread beside it hashes
//! the same bytes and sets the disk to work on those that are written: receiving, hashing and the disk take the time of the
//! slowest of them, and the sync at the end finds little left to do.
//!
//! Refuses to know where they come from. A partial file survives a cut, and the next attempt, from whichever source,
//! goes on where it ended; the digest tells at the end whether that was right.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread::JoinHandle;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::Progress;
use super::cache::{Cache, remove};
use super::lock::LockedFile;

/// Read at a time, of what comes from a reader or lies in the file: it stays in the second-level cache until it is hashed.
const READ_BYTES: usize = 1 << 18;
/// Pieces that may wait for the thread that hashes: some megabytes.
const MAX_WAITING: usize = 16;
/// The disk is set to work on so much at a time.
const DISK_BYTES: u64 = 8 << 20;

/// Why a source did not deliver.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It ended early; what came is kept, and another attempt may go on from there.
    Cut(String),
    /// The bytes are wrong: all of them are thrown away.
    Wrong(String),
    /// It has nothing for us.
    Refused(String),
    /// The cache cannot be written: no other source would do better.
    Disk(String),
}

impl Fault {
    pub fn why(self) -> String {
        match self {
            Self::Cut(why) | Self::Wrong(why) | Self::Refused(why) | Self::Disk(why) => why,
        }
    }
}

pub(super) struct Sink<'a> {
    cache: &'a Cache,
    locked: &'a LockedFile,
    source: &'a str,
    file: File,
    hashing: Hashing,
    done: u64,
    /// Bytes that were there before this attempt: they may be somebody else's.
    inherited: u64,
}

impl<'a> Sink<'a> {
    /// Opens what an earlier attempt left, and goes on behind it.
    pub fn open(cache: &'a Cache, locked: &'a LockedFile, source: &'a str) -> io::Result<Self> {
        let path = cache.partial(locked);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let hashing = Hashing::start(&file)?;
        let mut sink = Self { cache, locked, source, file, hashing, done: 0, inherited: 0 };
        let left = sink.file.metadata()?.len();
        if left > locked.size {
            sink.restart()?;
        } else {
            sink.file.seek(SeekFrom::Start(left))?;
            sink.hashing.take(Piece::There(left));
            (sink.done, sink.inherited) = (left, left);
        }
        Ok(sink)
    }

    /// From the first byte again.
    pub fn restart(&mut self) -> io::Result<()> {
        if self.done > 0 || self.file.metadata()?.len() > 0 {
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.hashing = Hashing::start(&self.file)?;
        }
        (self.done, self.inherited) = (0, 0);
        Ok(())
    }

    pub fn file(&self) -> &'a LockedFile {
        self.locked
    }

    /// Bytes that are there already.
    pub fn done(&self) -> u64 {
        self.done
    }

    pub fn inherited(&self) -> u64 {
        self.inherited
    }

    pub fn write(&mut self, bytes: Bytes, report: &mut dyn FnMut(Progress)) -> Result<(), Fault> {
        if self.done + bytes.len() as u64 > self.locked.size {
            return Err(Fault::Wrong(format!("it sends more than the {} bytes that the lock says", self.locked.size)));
        }
        self.file.write_all(&bytes).map_err(|e| self.disk(&e))?;
        self.done += bytes.len() as u64;
        self.hashing.take(Piece::New(bytes));
        let (file, total) = (self.locked.path.as_str(), self.locked.size);
        report(Progress::Bytes { file, source: self.source, done: self.done, total });
        Ok(())
    }

    /// Everything that a reader has.
    pub fn copy(&mut self, mut from: impl Read, report: &mut dyn FnMut(Progress)) -> Result<(), Fault> {
        loop {
            let mut piece = BytesMut::zeroed(READ_BYTES);
            match from.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    piece.truncate(read);
                    self.write(piece.freeze(), report)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Fault::Cut(e.to_string())),
            }
        }
    }

    /// The source has no more: are these the bytes? Then they become the blob.
    pub fn finish(self) -> Result<(), Fault> {
        let size = self.locked.size;
        if self.done < size {
            return Err(Fault::Cut(format!("it was cut after {} of {size} bytes", self.done)));
        }
        let got = self.hashing.finish();
        let got = got.map_err(|e| Fault::Disk(format!("the cache at {}: {e}", self.cache.root().display())))?;
        if got != self.locked.hex() {
            return Err(Fault::Wrong(format!("wrong content: expected sha256 {}, got {got}", self.locked.hex())));
        }
        let kept = self.cache.keep(self.locked, &self.file);
        kept.map_err(|e| Fault::Disk(format!("the cache at {}: {e}", self.cache.root().display())))
    }

    fn disk(&self, e: &io::Error) -> Fault {
        let (root, size) = (self.cache.root().display(), self.locked.size);
        Fault::Disk(format!("the cache at {root}: {e} (after {} of {size} bytes)", self.done))
    }

    /// Forgets the partial file of a source that sent the wrong thing.
    pub fn forget(cache: &Cache, locked: &LockedFile) -> io::Result<()> {
        remove(&cache.partial(locked))
    }
}

/// The next bytes of the file.
enum Piece {
    /// They are in it already, up to here: an earlier attempt left them.
    There(u64),
    /// They were written just now.
    New(Bytes),
}

/// Hashes a file beside whoever writes it.
struct Hashing {
    pieces: mpsc::SyncSender<Piece>,
    thread: JoinHandle<io::Result<Sha256>>,
}

impl Hashing {
    fn start(file: &File) -> io::Result<Self> {
        let (file, (pieces, taken)) = (file.try_clone()?, mpsc::sync_channel(MAX_WAITING));
        let thread = std::thread::Builder::new().name("hashing".into()).spawn(move || follow(&file, &taken))?;
        Ok(Self { pieces, thread })
    }

    fn take(&self, piece: Piece) {
        // It goes early only with an error, which `finish` tells.
        let _ = self.pieces.send(piece);
    }

    /// The digest of everything that was taken, in hex.
    fn finish(self) -> io::Result<String> {
        drop(self.pieces);
        let hasher = self.thread.join().map_err(|_| io::Error::other("the thread that hashes has panicked"))??;
        Ok(hex::encode(hasher.finalize()))
    }
}

fn follow(file: &File, pieces: &mpsc::Receiver<Piece>) -> io::Result<Sha256> {
    let (mut hasher, mut at, mut at_the_disk) = (Sha256::new(), 0, 0);
    for piece in pieces {
        match piece {
            Piece::There(until) => {
                at = hash_up_to(file, until, &mut hasher)?;
                at_the_disk = at;
            }
            Piece::New(bytes) => {
                hasher.update(&bytes);
                at += bytes.len() as u64;
            }
        }
        if at - at_the_disk >= DISK_BYTES {
            begin_to_store(file, at_the_disk, at - at_the_disk);
            at_the_disk = at;
        }
    }
    Ok(hasher)
}

fn hash_up_to(file: &File, until: u64, hasher: &mut Sha256) -> io::Result<u64> {
    let (mut at, mut buffer) = (0, vec![0; READ_BYTES]);
    while at < until {
        let most = buffer.len().min(usize::try_from(until - at).unwrap_or(usize::MAX));
        match file.read_at(&mut buffer[..most], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

/// Does not wait until they are stored, and promises nothing: the sync at the end does, and tells what went wrong.
#[cfg(target_os = "linux")]
fn begin_to_store(file: &File, from: u64, bytes: u64) {
    use std::os::fd::AsRawFd;
    if let (Ok(from), Ok(bytes)) = (from.try_into(), bytes.try_into()) {
        // SAFETY: the descriptor is open; no memory is touched.
        unsafe { libc::sync_file_range(file.as_raw_fd(), from, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn begin_to_store(_: &File, _: u64, _: u64) {}
