//! A stream on the CPU, for tests of those who put work in order. Nothing runs before somebody waits for it, and then only as
//! much as is waited for: who counts on something that is not there yet finds that it is not. Refuses to know what runs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use candle_core::{Error, Result};
use half::{bf16, f16};

use super::call::{Element, Gpu};
use super::check::{Held, Machine};
use super::emulator::{Emulator, Host};
use super::kept::{CHUNK_BYTES, Spare};
use super::params::Ptr;
use super::product::{Library, Out};
use super::stream::{Memory, Stream, Work, check_copy};

pub struct Emulated {
    emulator: Emulator,
    queue: RefCell<VecDeque<Queued>>,
    /// How many were queued, and how many of them have run.
    queued: Cell<u64>,
    ran: Cell<u64>,
    /// All there ever was: whatever is queued finds it.
    memory: RefCell<Vec<Rc<Host>>>,
    /// What of it a device would have to have.
    device_bytes: Rc<Cell<usize>>,
}

enum Queued {
    Run(Work),
    Write(Ptr, Vec<u8>),
    Copy { from: Ptr, to: Ptr, bytes: usize },
}

pub struct Plain {
    host: Rc<Host>,
    bytes: usize,
}

/// Memory of the host that the stream copies from and to.
pub struct Staged {
    memory: Plain,
    /// Number of the last thing queued that concerns it.
    after: u64,
}

impl Memory for Plain {
    fn ptr(&self) -> Ptr {
        self.host.address()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Emulated {
    pub fn new(emulator: Emulator) -> Emulated {
        let (queue, memory, device_bytes) = (RefCell::default(), RefCell::default(), Rc::default());
        Emulated { emulator, queue, queued: Cell::new(0), ran: Cell::new(0), memory, device_bytes }
    }

    /// How much of a device's memory was taken so far.
    pub fn device_bytes(&self) -> Rc<Cell<usize>> {
        self.device_bytes.clone()
    }

    fn memory(&self, bytes: usize) -> Plain {
        let host = Rc::new(Host::of(vec![0; bytes.div_ceil(16)]));
        self.memory.borrow_mut().push(host.clone());
        Plain { host, bytes }
    }

    fn queue(&self, what: Queued) -> u64 {
        self.queue.borrow_mut().push_back(what);
        self.queued.set(self.queued.get() + 1);
        self.queued.get()
    }

    /// Runs the queue up to number `last`.
    fn run_to(&self, last: u64) -> Result<()> {
        while self.ran.get() < last {
            let Some(next) = self.queue.borrow_mut().pop_front() else { break };
            self.ran.set(self.ran.get() + 1);
            match next {
                // The order in which a kernel's threads take turns is another one every time.
                Queued::Run(Work::Call(call)) => self.emulator.try_run(&call, self.ran.get()).map_err(Error::msg)?,
                Queued::Run(Work::Library(product)) => library(&product),
                Queued::Write(to, bytes) => copy(Ptr(bytes.as_ptr() as u64), to, bytes.len()),
                Queued::Copy { from, to, bytes } => copy(from, to, bytes),
            }
        }
        Ok(())
    }
}

fn copy(from: Ptr, to: Ptr, bytes: usize) {
    // SAFETY: both are memory of the stream, which it keeps, or of the caller, as long as was asked for.
    unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, bytes) }
}

impl Stream for Emulated {
    type Memory = Plain;
    type Staged = Staged;
    type Captured = Vec<Work>;

    fn gpu(&self) -> Gpu {
        self.emulator.gpu()
    }

    fn zeros(&self, bytes: usize) -> Result<Plain> {
        self.device_bytes.set(self.device_bytes.get() + bytes);
        Ok(self.memory(bytes))
    }

    fn write(&self, memory: &mut Plain, at: usize, bytes: &[u8]) -> Result<()> {
        if at + bytes.len() > memory.bytes {
            candle_core::bail!("{} bytes at {at} of {}", bytes.len(), memory.bytes);
        }
        self.queue(Queued::Write(memory.ptr().at(at), bytes.to_vec()));
        Ok(())
    }

    fn read(&self, memory: &Plain, bytes: usize) -> Result<Vec<u8>> {
        self.wait()?;
        if bytes > memory.bytes {
            candle_core::bail!("{bytes} bytes of {}", memory.bytes);
        }
        Ok(memory.host.content().into_iter().flat_map(u128::to_ne_bytes).take(bytes).collect())
    }

    unsafe fn run(&self, work: &Work) -> Result<()> {
        self.queue(Queued::Run(work.clone()));
        Ok(())
    }

    unsafe fn capture(&self, work: &[Work]) -> Result<Vec<Work>> {
        work.iter().for_each(|work| {
            self.queue(Queued::Run(work.clone()));
        });
        Ok(work.to_vec())
    }

    unsafe fn replay(&self, captured: &Vec<Work>) -> Result<()> {
        captured.iter().for_each(|work| {
            self.queue(Queued::Run(work.clone()));
        });
        Ok(())
    }

    fn staged(&self, bytes: usize) -> Result<Staged> {
        Ok(Staged { memory: self.memory(bytes.next_multiple_of(8)), after: 0 })
    }

    fn ready<'a>(&self, staged: &'a mut Staged) -> Result<&'a mut [u64]> {
        self.run_to(staged.after)?;
        // SAFETY: whole u64s, and nothing that is queued concerns them.
        Ok(unsafe { std::slice::from_raw_parts_mut(staged.memory.ptr().0 as *mut u64, staged.memory.bytes / 8) })
    }

    fn staged_bytes(&self, staged: &Staged) -> usize {
        staged.memory.bytes
    }

    fn spare(&self) -> Rc<Spare<Staged>> {
        thread_local! {
            static SPARE: Rc<Spare<Staged>> = Rc::new(Spare::new(CHUNK_BYTES));
        }
        SPARE.with(Rc::clone)
    }

    unsafe fn send_to(&self, staged: &mut Staged, at: usize, bytes: usize, to: Ptr) -> Result<()> {
        staged.after = self.queue(Queued::Copy { from: staged.memory.ptr().at(at), to, bytes });
        Ok(())
    }

    unsafe fn fetch_from(&self, from: Ptr, bytes: usize, staged: &mut Staged, at: usize) -> Result<()> {
        staged.after = self.queue(Queued::Copy { from, to: staged.memory.ptr().at(at), bytes });
        Ok(())
    }

    fn copy(&self, from: &Plain, to: &mut Plain) -> Result<()> {
        check_copy(from, to)?;
        self.queue(Queued::Copy { from: from.ptr(), to: to.ptr(), bytes: from.bytes });
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.run_to(self.queued.get())
    }
}

/// What a library's product is, in f64 from one end to the other.
fn library(product: &Library) {
    let Library { element, rows, k, out, x, w, y, y_stride, kind } = *product;
    // SAFETY: as large as `Library` says.
    let values = |at: Ptr, count: usize| unsafe { std::slice::from_raw_parts(at.0 as *const u16, count) };
    let value = |bits: u16| match element {
        Element::Bf16 => bf16::from_bits(bits).to_f64(),
        Element::F16 => f16::from_bits(bits).to_f64(),
    };
    let unpacked = |at: Ptr, count: usize| values(at, count).iter().map(|bits| value(*bits)).collect::<Vec<f64>>();
    let (x, w) = (unpacked(x, rows * k), unpacked(w, out * k));
    for (row, x) in x.chunks_exact(k).enumerate() {
        for (column, w) in w.chunks_exact(k).enumerate() {
            let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            let at = row * y_stride + column;
            // SAFETY: as above.
            unsafe {
                match kind {
                    Out::AddF32 => *(y.0 as *mut f32).add(at) += sum as f32,
                    Out::Element => {
                        let bits = match element {
                            Element::Bf16 => bf16::from_f64(sum).to_bits(),
                            Element::F16 => f16::from_f64(sum).to_bits(),
                        };
                        *(y.0 as *mut u16).add(at) = bits;
                    }
                }
            }
        }
    }
}
