//! A weight file in memory: mapped, read-only, given back to the system page by page once it was repacked.
//!
//! Knows nothing of formats. A file that somebody truncates while it is mapped ends the process (SIGBUS), as with every
//! program that maps files; the cache writes its blobs read-only and replaces them by rename for that reason.

use std::fs::{File, Metadata};
use std::ops::{Deref, Range};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};
use prediction::PredictError;

pub struct Mapped {
    map: Mmap,
    /// What it is called.
    path: PathBuf,
    source: Source,
    identity: FileIdentity,
}

/// Where bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    file: PathBuf,
    range: Range<u64>,
}

/// Which file it was and how it stood when it was opened: one that was touched or replaced since has another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl FileIdentity {
    fn of(about: &Metadata) -> Self {
        let modified = (about.mtime(), about.mtime_nsec());
        Self { device: about.dev(), inode: about.ino(), bytes: about.len(), modified }
    }
}

impl Mapped {
    pub fn open(path: &Path) -> Result<Self, PredictError> {
        let refuse = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", path.display()));
        let file = File::open(path).map_err(|e| refuse(&e))?;
        let about = file.metadata().map_err(|e| refuse(&e))?;
        if !about.is_file() {
            return Err(refuse(&"is not a file"));
        }
        if about.len() == 0 {
            return Err(refuse(&"is empty (0 bytes)"));
        }
        // SAFETY: the mapping is read-only and private to this value; see the module's word on truncation.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| refuse(&e))?;
        let source = Source { file: path.to_owned(), range: 0..about.len() };
        Ok(Self { map, path: path.to_owned(), source, identity: FileIdentity::of(&about) })
    }

    /// These bytes of a file, as if they were a file of this name.
    pub fn part(path: &Path, range: Range<u64>, name: &Path) -> Result<Self, PredictError> {
        let refuse = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", name.display()));
        let file = File::open(path).map_err(|e| refuse(&e))?;
        let about = file.metadata().map_err(|e| refuse(&e))?;
        let whole = about.len();
        if range.is_empty() || range.end > whole {
            return Err(refuse(&format_args!("lies at bytes {range:?} of a file of {whole}")));
        }
        let length = usize::try_from(range.end - range.start).map_err(|e| refuse(&e))?;
        // SAFETY: as for a whole file.
        let map = unsafe { MmapOptions::new().offset(range.start).len(length).map(&file) }.map_err(|e| refuse(&e))?;
        let source = Source { file: path.to_owned(), range };
        Ok(Self { map, path: name.to_owned(), source, identity: FileIdentity::of(&about) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of the whole file, also where only a part is mapped.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// These bytes are not needed soon: they stop counting as this process's memory, and come back from the file when
    /// they are read again. Only whole pages inside the range are dropped, so neighbours are never touched.
    pub fn advise_drop(&self, range: Range<usize>) {
        let page = page_bytes();
        let start = range.start.next_multiple_of(page);
        let end = if range.end >= self.map.len() { self.map.len() } else { range.end / page * page };
        if start < end {
            // SAFETY: a read-only mapping of a file loses no data by this: pages are read from the file again.
            let told = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
            if let Err(e) = told {
                tracing::debug!("{}: pages could not be given back: {e}", self.path.display());
            }
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// So many files are read ahead at once.
const FILES_AT_ONCE: usize = 8;

/// Sets the disk to work on all of these files, several at once, and does not wait: whoever reads through the mappings would else
/// have it fetch some pages at a time, of one file after the other. Left alone if they take more than half of the memory that
/// is free: what is read first would be gone when it is wanted.
pub fn read_ahead(files: &[Mapped]) {
    let bytes: usize = files.iter().map(|file| file.len()).sum();
    if crate::device::memory().is_some_and(|memory| bytes as u64 <= memory.available_bytes / 2) {
        // They go on by themselves.
        drop(readers(files.iter().map(|file| file.source.clone()).collect()));
    }
}

fn readers(sources: Vec<Source>) -> Vec<JoinHandle<()>> {
    let (threads, sources) = (sources.len().min(FILES_AT_ONCE), Arc::new(Mutex::new(sources.into_iter())));
    let reader = |_| {
        let sources = sources.clone();
        let next = move || sources.lock().unwrap_or_else(PoisonError::into_inner).next();
        // A machine that gives fewer threads reads fewer files at once.
        let thread = std::thread::Builder::new().name("read ahead".into());
        thread.spawn(move || std::iter::from_fn(next).for_each(|source| will_need(&source))).ok()
    };
    (0..threads).filter_map(reader).collect()
}

/// Whatever is wrong with it, the load says.
#[cfg(target_os = "linux")]
fn will_need(Source { file, range }: &Source) {
    use std::os::fd::AsRawFd;
    let (from, length) = (range.start.try_into(), (range.end - range.start).try_into());
    if let (Ok(file), Ok(from), Ok(length)) = (File::open(file), from, length) {
        // SAFETY: the descriptor is open; no memory is touched.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), from, length, libc::POSIX_FADV_WILLNEED) };
    }
}

#[cfg(not(target_os = "linux"))]
fn will_need(_: &Source) {}

fn page_bytes() -> usize {
    // SAFETY: a question without arguments that memory depends on.
    let answer = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(answer).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_read_ahead_where_it_lies_and_not_under_its_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("trained.tar");
        std::fs::write(&archive, [7; 10_000]).unwrap();
        let part = Mapped::part(&archive, 512..9_000, Path::new("lora.safetensors")).unwrap();
        assert_eq!(part.source, Source { file: archive.clone(), range: 512..9_000 });
        assert_eq!(Mapped::open(&archive).unwrap().source, Source { file: archive, range: 0..10_000 });
    }

    #[test]
    fn a_file_that_was_touched_or_replaced_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&path, [7; 100]).unwrap();
        let identity = || Mapped::open(&path).unwrap().identity();
        let (first, time) = (identity(), std::fs::metadata(&path).unwrap().modified().unwrap());
        assert_eq!(identity(), first);
        assert_eq!(Mapped::part(&path, 10..20, Path::new("part")).unwrap().identity(), first);
        let set_time = |path: &Path, time| File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        set_time(&path, time + std::time::Duration::from_nanos(1000));
        assert_ne!(identity(), first, "another time");
        set_time(&path, time);
        assert_eq!(identity(), first);
        std::fs::write(&other, [7; 100]).unwrap();
        set_time(&other, time);
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(identity(), first, "another file of the same size and time");
    }

    #[test]
    fn more_files_than_readers_are_all_taken_and_one_that_is_gone_harms_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..2 * FILES_AT_ONCE + 1).map(|n| folder.path().join(n.to_string())).collect();
        paths.iter().for_each(|path| std::fs::write(path, [7; 10_000]).unwrap());
        let files: Vec<Mapped> = paths.iter().map(|path| Mapped::open(path).unwrap()).collect();
        read_ahead(&files);
        std::fs::remove_file(&paths[3]).unwrap();
        let readers = readers(files.iter().map(|file| file.source.clone()).collect());
        assert_eq!(readers.len(), FILES_AT_ONCE);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(files.iter().all(|file| file.iter().all(|byte| *byte == 7)));
    }
}
