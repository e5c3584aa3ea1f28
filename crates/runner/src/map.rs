//! A weight file in memory: mapped, read-only, given back to the system page by page once it was repacked.
//!
//! Knows nothing of formats. A file that somebody truncates while it is mapped ends the process (SIGBUS), as with every
//! program that maps files; the cache writes its blobs read-only and replaces them by rename for that reason.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};
use prediction::PredictError;

pub struct Mapped {
    map: Mmap,
    path: PathBuf,
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
        Ok(Self { map, path: path.to_owned() })
    }

    /// These bytes of a file, as if they were a file of this name.
    pub fn part(path: &Path, range: Range<u64>, name: &Path) -> Result<Self, PredictError> {
        let refuse = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", name.display()));
        let file = File::open(path).map_err(|e| refuse(&e))?;
        let whole = file.metadata().map_err(|e| refuse(&e))?.len();
        if range.is_empty() || range.end > whole {
            return Err(refuse(&format_args!("lies at bytes {range:?} of a file of {whole}")));
        }
        let length = usize::try_from(range.end - range.start).map_err(|e| refuse(&e))?;
        // SAFETY: as for a whole file.
        let map = unsafe { MmapOptions::new().offset(range.start).len(length).map(&file) }.map_err(|e| refuse(&e))?;
        Ok(Self { map, path: name.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
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

fn page_bytes() -> usize {
    // SAFETY: a question without arguments that memory depends on.
    let answer = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(answer).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(4096)
}
