//! Where a source's bytes go: into the blob's `.partial`, and never more of them than the lock says. A thread beside it
//! reads them back, from memory, and hashes them: receiving and hashing take the time of the slower one.
//!
//! Refuses to know where they come from. A partial file survives a cut, and the next attempt, from whichever source,
//! goes on where it ended; the digest tells at the end whether that was right.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::Progress;
use super::cache::{Cache, remove};
use super::lock::LockedFile;

/// The thread that hashes is told of this much at a time.
const HASH_AT_ONCE_BYTES: u64 = 1 << 20;

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
            sink.hashing.reached(left);
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

    pub fn write(&mut self, bytes: &[u8], report: &mut dyn FnMut(Progress)) -> Result<(), Fault> {
        if self.done + bytes.len() as u64 > self.locked.size {
            return Err(Fault::Wrong(format!("it sends more than the {} bytes that the lock says", self.locked.size)));
        }
        self.file.write_all(bytes).map_err(|e| self.disk(&e))?;
        self.done += bytes.len() as u64;
        self.hashing.reached(self.done);
        let (file, total) = (self.locked.path.as_str(), self.locked.size);
        report(Progress::Bytes { file, source: self.source, done: self.done, total });
        Ok(())
    }

    /// Everything that a reader has.
    pub fn copy(&mut self, mut from: impl Read, report: &mut dyn FnMut(Progress)) -> Result<(), Fault> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => self.write(&buffer[..read], report)?,
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

/// Hashes a file behind whoever writes it: the bytes are in the system's memory still.
struct Hashing {
    reached: mpsc::Sender<u64>,
    /// Bytes that the file has, and how many of them the thread was told of.
    here: u64,
    told: u64,
    thread: JoinHandle<io::Result<Sha256>>,
}

impl Hashing {
    fn start(file: &File) -> io::Result<Self> {
        let (file, (reached, told)) = (file.try_clone()?, mpsc::channel());
        let thread = std::thread::Builder::new().name("hashing".into()).spawn(move || follow(&file, &told))?;
        Ok(Self { reached, here: 0, told: 0, thread })
    }

    /// The file has so many bytes now, and they will not change. The thread is not woken up for a few of them.
    fn reached(&mut self, bytes: u64) {
        self.here = bytes;
        if bytes - self.told >= HASH_AT_ONCE_BYTES {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.told = self.here;
        // It goes early only with an error, which `finish` tells.
        let _ = self.reached.send(self.here);
    }

    /// The digest of everything up to the last byte reached, in hex.
    fn finish(mut self) -> io::Result<String> {
        self.tell();
        drop(self.reached);
        let hasher = self.thread.join().map_err(|_| io::Error::other("the thread that hashes has panicked"))??;
        Ok(hex::encode(hasher.finalize()))
    }
}

fn follow(file: &File, told: &mpsc::Receiver<u64>) -> io::Result<Sha256> {
    let (mut hasher, mut at, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    while let Ok(reached) = told.recv() {
        let reached = told.try_iter().last().unwrap_or(reached);
        while at < reached {
            let most = buffer.len().min(usize::try_from(reached - at).unwrap_or(usize::MAX));
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
    }
    Ok(hasher)
}
