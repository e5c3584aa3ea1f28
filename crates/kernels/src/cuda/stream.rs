//! Where a model's calls go, one after the other: a GPU's stream or, in the tests, the emulator's. Memory with fixed addresses,
//! launches, calls that are captured once and sent many times as one, and the host's memory for the ways up and down, which
//! lets the host be ahead of the device. Refuses to know what the calls compute.

use std::rc::Rc;

use candle_core::Result;

use super::call::{Call, Gpu};
use super::kept::Spare;
use super::params::Ptr;
use super::product::Library;

/// One thing to run.
#[derive(Clone, Debug)]
pub enum Work {
    /// A kernel of ours.
    Call(Call),
    /// A product by the device's library.
    Library(Library),
}

/// Memory of the device at one address for as long as it lives.
pub trait Memory {
    fn ptr(&self) -> Ptr;

    fn bytes(&self) -> usize;
}

/// Runs what it is given in the order in which it was given, at some time before it is waited for.
pub trait Stream {
    type Memory: Memory;
    /// Memory of the host that the device copies from or to while the host goes on.
    type Staged;
    /// Work that is sent as one.
    type Captured;

    fn gpu(&self) -> Gpu;

    fn zeros(&self, bytes: usize) -> Result<Self::Memory>;

    /// Copies the host's bytes to `at`, in the stream's order.
    fn write(&self, memory: &mut Self::Memory, at: usize, bytes: &[u8]) -> Result<()>;

    /// Waits, and copies the first `bytes`.
    fn read(&self, memory: &Self::Memory, bytes: usize) -> Result<Vec<u8>>;

    /// # Safety
    /// Every address is memory of this stream, as large as the documentation of the work says, and lives until the stream has
    /// passed it.
    unsafe fn run(&self, work: &Work) -> Result<()>;

    /// Runs `work` once, to load what loads lazily, and captures it.
    ///
    /// # Safety
    /// As of `run`, for as long as what was captured is replayed.
    unsafe fn capture(&self, work: &[Work]) -> Result<Self::Captured>;

    /// # Safety
    /// As of `capture`.
    unsafe fn replay(&self, captured: &Self::Captured) -> Result<()>;

    fn staged(&self, bytes: usize) -> Result<Self::Staged>;

    /// Waits until the device has done with it; then it is the host's to read and write.
    fn ready<'a>(&self, staged: &'a mut Self::Staged) -> Result<&'a mut [u64]>;

    fn staged_bytes(&self, staged: &Self::Staged) -> usize;

    /// Staged memory of this thread and this device that was used for copies of models and waits for the next.
    fn spare(&self) -> Rc<Spare<Self::Staged>>;

    /// Begins to copy `bytes` of it, from `at` on, to the device. Several of one staged memory may be under way.
    ///
    /// # Safety
    /// The staged memory has as many from `at` on, and so has this stream's memory from `to` on, until the stream has passed it.
    unsafe fn send_to(&self, staged: &mut Self::Staged, at: usize, bytes: usize, to: Ptr) -> Result<()>;

    /// Begins to copy `bytes` of the device into it, to `at`.
    ///
    /// # Safety
    /// As of `send_to`.
    unsafe fn fetch_from(&self, from: Ptr, bytes: usize, staged: &mut Self::Staged, at: usize) -> Result<()>;

    /// Begins to copy its first `bytes` to `at` in `to`; an error where they do not fit.
    fn send(&self, staged: &mut Self::Staged, bytes: usize, to: &mut Self::Memory, at: usize) -> Result<()> {
        let (room, there) = (to.bytes(), self.staged_bytes(staged));
        if bytes > there || at.checked_add(bytes).is_none_or(|end| end > room) {
            candle_core::bail!("{bytes} bytes of {there} staged ones to {at} of {room}");
        }
        // SAFETY: there are as many here and there, as was looked.
        unsafe { self.send_to(staged, 0, bytes, to.ptr().at(at)) }
    }

    /// Begins to copy the first `bytes` of `from` into it; an error where they do not fit.
    fn fetch(&self, from: &Self::Memory, bytes: usize, staged: &mut Self::Staged) -> Result<()> {
        let (there, room) = (from.bytes(), self.staged_bytes(staged));
        if bytes > there || bytes > room {
            candle_core::bail!("{bytes} bytes of {there} into {room} staged ones");
        }
        // SAFETY: as above.
        unsafe { self.fetch_from(from.ptr(), bytes, staged, 0) }
    }

    /// Begins to copy all of a memory into another one of the same size; an error where it is not.
    fn copy(&self, from: &Self::Memory, to: &mut Self::Memory) -> Result<()>;

    /// Waits for everything.
    fn wait(&self) -> Result<()>;
}

/// Whether all of a memory is copied into all of another.
pub fn check_copy(from: &impl Memory, to: &impl Memory) -> Result<()> {
    if from.bytes() != to.bytes() {
        candle_core::bail!("a copy of {} bytes into {}", from.bytes(), to.bytes());
    }
    Ok(())
}
