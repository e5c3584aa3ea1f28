//! Where a model's calls go, one after the other: a GPU's stream or, in the tests, the emulator's. Memory with fixed addresses,
//! launches, calls that are captured once and sent many times as one, and the host's memory for the ways up and down, which
//! lets the host be ahead of the device. Refuses to know what the calls compute.

use candle_core::Result;

use super::call::{Call, Gpu};
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

    /// Begins to copy its first `bytes` to `at` in `to`; an error where they do not fit.
    fn send(&self, staged: &mut Self::Staged, bytes: usize, to: &mut Self::Memory, at: usize) -> Result<()>;

    /// Begins to copy all of a memory into another one of the same size.
    fn copy(&self, from: &Self::Memory, to: &mut Self::Memory) -> Result<()>;

    /// Waits for everything.
    fn wait(&self) -> Result<()>;

    /// Begins to copy the first `bytes` of `from` into it.
    fn fetch(&self, from: &Self::Memory, bytes: usize, staged: &mut Self::Staged) -> Result<()>;
}

/// Whether so many bytes are staged, and have room from `at` on.
pub fn check_send(bytes: usize, staged: usize, (at, room): (usize, usize)) -> Result<()> {
    if bytes > staged || at.checked_add(bytes).is_none_or(|end| end > room) {
        candle_core::bail!("{bytes} bytes of {staged} staged ones to {at} of {room}");
    }
    Ok(())
}
