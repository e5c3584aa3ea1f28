//! Memory of a device, copied to the host and back: a tape of bytes in chunks of page-locked memory. A model that left comes back
//! as fast as the bus is, without a file that is read or a weight that is packed again. Page-locking costs more than copying, so
//! chunks of copies that are gone wait for the next one (`Spare`); all are of one size, so whoever bounds the copies bounds
//! what is page-locked. Refuses to know what the bytes are, and which copies are worth their room.
//!
//! Floor: (bytes) / (the bus: 25 GB/s of PCIe 4, 50 GB/s of PCIe 5); the first time, page-locking beside it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use candle_core::Result;

use super::params::Ptr;
use super::stream::Stream;
use crate::pool;

/// Large enough that the last one, half empty, wastes little of a model; small enough for the system to find.
pub const CHUNK_BYTES: usize = 64 << 20;

/// Chunks that nobody uses now.
pub struct Spare<T> {
    chunk_bytes: usize,
    free: RefCell<Vec<T>>,
    made: Cell<usize>,
}

impl<T> Spare<T> {
    /// Of chunks of so many bytes.
    pub fn new(chunk_bytes: usize) -> Self {
        Self { chunk_bytes, free: RefCell::default(), made: Cell::new(0) }
    }

    /// All that is page-locked, used or not.
    pub fn page_locked_bytes(&self) -> usize {
        self.made.get() * self.chunk_bytes
    }

    fn take(&self, stream: &impl Stream<Staged = T>) -> Result<T> {
        // Of hundreds of gigabytes this takes longer than anybody may be silent.
        pool::advance();
        // Released before anything is made.
        let free = self.free.borrow_mut().pop();
        if let Some(chunk) = free {
            return Ok(chunk);
        }
        let chunk = stream.staged(self.chunk_bytes)?;
        self.made.set(self.made.get() + 1);
        Ok(chunk)
    }

    /// Gives the system back what nobody uses.
    fn shrink(&self) {
        let free = self.free.take();
        self.made.set(self.made.get() - free.len());
    }
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub at: Ptr,
    pub bytes: usize,
}

/// What page-locked memory a copy of so many bytes takes, in chunks of `CHUNK_BYTES`.
pub fn bytes_for(bytes: u64) -> u64 {
    bytes.next_multiple_of(CHUNK_BYTES as u64)
}

/// What spans of a device's memory held, one behind the other.
pub struct HostCopy<S: Stream> {
    chunks: Vec<S::Staged>,
    /// Bytes of each span.
    sizes: Vec<usize>,
    spare: Rc<Spare<S::Staged>>,
}

impl<S: Stream> HostCopy<S> {
    /// Copies these spans in chunks of `spare`, all of them under way before it waits.
    ///
    /// # Safety
    /// The spans are memory of this stream.
    pub unsafe fn of(stream: &S, spare: &Rc<Spare<S::Staged>>, spans: &[Span]) -> Result<Self> {
        let sizes: Vec<usize> = spans.iter().map(|span| span.bytes).collect();
        let count = sizes.iter().sum::<usize>().div_ceil(spare.chunk_bytes);
        let mut copy = Self { chunks: Vec::with_capacity(count), sizes, spare: spare.clone() };
        for _ in 0..count {
            match spare.take(stream) {
                Ok(chunk) => copy.chunks.push(chunk),
                Err(error) => {
                    // The host has no more: what it gave for nothing it gets back.
                    drop(copy);
                    spare.shrink();
                    return Err(error);
                }
            }
        }
        // SAFETY: the caller's promise.
        copy.pass(stream, spans, |chunk, at, span| unsafe { stream.fetch_from(span.at, span.bytes, chunk, at) })?;
        Ok(copy)
    }

    /// Copies what the spans held to others of the same sizes in the same order; an error where they are not.
    ///
    /// # Safety
    /// The spans are memory of this stream, which nobody else uses.
    pub unsafe fn put_back(&mut self, stream: &S, spans: &[Span]) -> Result<()> {
        let differ = spans.iter().zip(&self.sizes).find(|(span, size)| span.bytes != **size);
        if spans.len() != self.sizes.len() {
            candle_core::bail!("a copy of {} spans for {}", self.sizes.len(), spans.len());
        }
        if let Some((span, size)) = differ {
            candle_core::bail!("{size} copied bytes for a span of {}", span.bytes);
        }
        // SAFETY: the caller's promise.
        self.pass(stream, spans, |chunk, at, span| unsafe { stream.send_to(chunk, at, span.bytes, span.at) })
    }

    /// Page-locked memory that it takes.
    pub fn bytes(&self) -> u64 {
        (self.chunks.len() * self.spare.chunk_bytes) as u64
    }

    /// Every span in pieces that lie in one chunk each, with where in that; then waits, whatever came of it: nothing is under way
    /// afterwards.
    fn pass(
        &mut self,
        stream: &S,
        spans: &[Span],
        mut act: impl FnMut(&mut S::Staged, usize, Span) -> Result<()>,
    ) -> Result<()> {
        let (each, mut tape) = (self.spare.chunk_bytes, 0);
        let mut all = || {
            for span in spans {
                let mut done = 0;
                while done < span.bytes {
                    let at = tape % each;
                    let bytes = (each - at).min(span.bytes - done);
                    act(&mut self.chunks[tape / each], at, Span { at: span.at.at(done), bytes })?;
                    (tape, done) = (tape + bytes, done + bytes);
                }
            }
            Ok(())
        };
        let passed = all();
        stream.wait().and(passed)
    }
}

impl<S: Stream> Drop for HostCopy<S> {
    fn drop(&mut self) {
        self.spare.free.borrow_mut().append(&mut self.chunks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::emulated::{Emulated, Plain, Staged};
    use crate::cuda::emulator::emulator;
    use crate::cuda::stream::Memory;

    const CHUNK: usize = 64;

    /// Memories of these sizes, every byte another one than its neighbours.
    fn filled(stream: &Emulated, sizes: &[usize]) -> Vec<Plain> {
        let memory = |(number, &bytes): (usize, &usize)| {
            let mut memory = stream.zeros(bytes).unwrap();
            let content: Vec<u8> = (0..bytes).map(|at| (at * 7 + number * 13 + 1) as u8).collect();
            stream.write(&mut memory, 0, &content).unwrap();
            memory
        };
        sizes.iter().enumerate().map(memory).collect()
    }

    fn spans(memories: &[Plain]) -> Vec<Span> {
        memories.iter().map(|memory| Span { at: memory.ptr(), bytes: memory.bytes() }).collect()
    }

    fn copy(stream: &Emulated, spare: &Rc<Spare<Staged>>, from: &[Plain]) -> HostCopy<Emulated> {
        // SAFETY: memory of this stream.
        unsafe { HostCopy::of(stream, spare, &spans(from)) }.unwrap()
    }

    fn put_back(copy: &mut HostCopy<Emulated>, stream: &Emulated, to: &[Plain]) -> Result<()> {
        // SAFETY: as above.
        unsafe { copy.put_back(stream, &spans(to)) }
    }

    fn content(stream: &Emulated, memories: &[Plain]) -> Vec<Vec<u8>> {
        memories.iter().map(|memory| stream.read(memory, memory.bytes()).unwrap()).collect()
    }

    #[test]
    fn planes_smaller_and_larger_than_a_chunk_come_back_as_they_were() {
        let Some(stream) = emulator().map(Emulated::new) else { return };
        for sizes in [vec![1], vec![CHUNK], vec![10, 200, 0, 54, 1, 64, 63, 130], vec![3 * CHUNK + 1, 5], vec![]] {
            let spare = Rc::new(Spare::new(CHUNK));
            let from = filled(&stream, &sizes);
            let mut copy = copy(&stream, &spare, &from);
            let chunks = sizes.iter().sum::<usize>().div_ceil(CHUNK);
            assert_eq!((copy.bytes(), spare.page_locked_bytes()), ((chunks * CHUNK) as u64, chunks * CHUNK));
            let to: Vec<Plain> = sizes.iter().map(|&bytes| stream.zeros(bytes).unwrap()).collect();
            put_back(&mut copy, &stream, &to).unwrap();
            assert_eq!(content(&stream, &to), content(&stream, &from), "{sizes:?}");
        }
    }

    #[test]
    fn memory_of_a_copy_that_is_gone_is_the_next_ones() {
        let Some(stream) = emulator().map(Emulated::new) else { return };
        let spare = Rc::new(Spare::new(CHUNK));
        let (large, small) = (filled(&stream, &[5 * CHUNK]), filled(&stream, &[CHUNK, CHUNK]));
        drop(copy(&stream, &spare, &large));
        let mut kept = copy(&stream, &spare, &small);
        let other = copy(&stream, &spare, &filled(&stream, &[3 * CHUNK]));
        assert_eq!(spare.page_locked_bytes(), 5 * CHUNK, "two and three of the five");
        let to: Vec<Plain> = (0..2).map(|_| stream.zeros(CHUNK).unwrap()).collect();
        put_back(&mut kept, &stream, &to).unwrap();
        assert_eq!(content(&stream, &to), content(&stream, &small), "one copy is nobody else's");
        let more = copy(&stream, &spare, &large[..0]);
        assert_eq!((more.bytes(), other.bytes()), (0, 3 * CHUNK as u64));
        drop((kept, other));
        drop(copy(&stream, &spare, &filled(&stream, &[6 * CHUNK])));
        assert_eq!(spare.page_locked_bytes(), 6 * CHUNK);
    }

    #[test]
    fn every_chunk_that_is_taken_is_progress() {
        let Some(stream) = emulator().map(Emulated::new) else { return };
        let spare = Rc::new(Spare::new(CHUNK));
        for _ in 0..2 {
            let before = pool::elsewhere();
            drop(copy(&stream, &spare, &filled(&stream, &[2 * CHUNK])));
            assert!(pool::elsewhere() >= before + 2, "new ones and those that were there");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let Some(stream) = emulator().map(Emulated::new) else { return };
        let spare = Rc::new(Spare::new(CHUNK));
        let from = filled(&stream, &[10, 100]);
        let mut copy = copy(&stream, &spare, &from);
        let refused = |copy: &mut HostCopy<Emulated>, sizes: &[usize]| {
            put_back(copy, &stream, &filled(&stream, sizes)).unwrap_err().to_string()
        };
        assert!(refused(&mut copy, &[10]).starts_with("a copy of 2 spans for 1"));
        assert!(refused(&mut copy, &[10, 90]).starts_with("100 copied bytes for a span of 90"));
        let (mut staged, mut to) = (stream.staged(16).unwrap(), stream.zeros(16).unwrap());
        let why = stream.fetch(&from[1], 17, &mut staged).unwrap_err().to_string();
        assert!(why.starts_with("17 bytes of 100 into 16 staged ones"), "{why}");
        let why = stream.fetch(&from[0], 12, &mut staged).unwrap_err().to_string();
        assert!(why.starts_with("12 bytes of 10 into 16 staged ones"), "{why}");
        let why = stream.copy(&from[0], &mut to).unwrap_err().to_string();
        assert!(why.starts_with("a copy of 10 bytes into 16"), "{why}");
    }

    #[test]
    fn what_a_copy_takes_is_whole_chunks() {
        let chunk = CHUNK_BYTES as u64;
        assert_eq!([0, 1, chunk, chunk + 1].map(bytes_for), [0, chunk, chunk, 2 * chunk]);
    }
}
