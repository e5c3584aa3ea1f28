//! Where a source's bytes go: into the blob's `.partial`, hashed on the way, and never more of them than the lock says.
//!
//! Refuses to know where they come from. A partial file survives a cut, and the next attempt, from whichever source,
//! goes on where it ended; the digest tells at the end whether that was right.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use sha2::{Digest, Sha256};

use super::Progress;
use super::cache::{Cache, remove};
use super::lock::LockedFile;

/// Why a source did not deliver.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It ended early; what came is kept, and another attempt may go on from there.
    Cut(String),
    /// The bytes are wrong: all of them are thrown away.
    Wrong(String),
    /// It has nothing for us.
    Refused(String),
}

impl Fault {
    pub fn why(self) -> String {
        match self {
            Self::Cut(why) | Self::Wrong(why) | Self::Refused(why) => why,
        }
    }
}

pub(super) struct Sink<'a> {
    cache: &'a Cache,
    locked: &'a LockedFile,
    source: &'a str,
    file: File,
    hasher: Sha256,
    done: u64,
    /// Bytes that were there before this attempt: they may be somebody else's.
    inherited: u64,
}

impl<'a> Sink<'a> {
    /// Opens what an earlier attempt left, and hashes it.
    pub fn open(cache: &'a Cache, locked: &'a LockedFile, source: &'a str) -> io::Result<Self> {
        let path = cache.partial(locked);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut sink = Self { cache, locked, source, file, hasher: Sha256::new(), done: 0, inherited: 0 };
        let left = sink.file.metadata()?.len();
        if left > locked.size {
            sink.restart()?;
        } else if left > 0 {
            sink.done = io::copy(&mut (&sink.file).take(left), &mut HashOnly(&mut sink.hasher))?;
            sink.inherited = sink.done;
        }
        Ok(sink)
    }

    /// From the first byte again.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.hasher = Sha256::new();
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
        self.file.write_all(bytes).map_err(|e| Fault::Cut(format!("writing to the cache: {e}")))?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        let (file, total) = (self.locked.path.as_str(), self.locked.size);
        report(Progress::Bytes { file, source: self.source, done: self.done, total });
        Ok(())
    }

    /// Everything that a reader has.
    pub fn copy(&mut self, mut from: impl Read, report: &mut dyn FnMut(Progress)) -> Result<(), Fault> {
        let mut buffer = vec![0; 1 << 18];
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
        let got = hex::encode(self.hasher.finalize());
        if got != self.locked.hex() {
            return Err(Fault::Wrong(format!("wrong content: expected sha256 {}, got {got}", self.locked.hex())));
        }
        let kept = self.cache.keep(self.locked, &self.file);
        kept.map_err(|e| Fault::Refused(format!("the cache at {}: {e}", self.cache.root().display())))
    }

    /// Forgets the partial file of a source that sent the wrong thing.
    pub fn forget(cache: &Cache, locked: &LockedFile) -> io::Result<()> {
        remove(&cache.partial(locked))
    }
}

struct HashOnly<'a>(&'a mut Sha256);

impl Write for HashOnly<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
