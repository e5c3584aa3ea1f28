//! A model's memory on its way to the host and back: that it comes back as it was, and how fast, the first time, when the host's memory
//! is page-locked too, and the next.

use std::time::Instant;

use candle_core::Result;
use kernels::cuda::device::{Kernels, Memory};
use kernels::cuda::kept::{CHUNK_BYTES, HostCopy, Span};
use kernels::cuda::stream::{Memory as _, Stream};

/// Less and more than a chunk, and what ends inside of one.
const SIZES: [usize; 5] = [3, CHUNK_BYTES, 1 << 20, 2 * CHUNK_BYTES + 5, 4096];
/// What is timed.
const LARGE_BYTES: usize = 2 << 30;

fn spans(memories: &[Memory]) -> Vec<Span> {
    memories.iter().map(|memory| Span { at: memory.ptr(), bytes: memory.bytes() }).collect()
}

/// Whether every byte comes back.
pub fn check(kernels: &Kernels) -> Result<bool> {
    let content = |bytes: usize| (0..bytes).map(|at| (at * 7 + at / 251 + bytes) as u8).collect::<Vec<u8>>();
    let there = SIZES.iter().map(|&bytes| Memory::of(kernels, &content(bytes))).collect::<Result<Vec<_>>>()?;
    // SAFETY: memory of this stream.
    let mut copy = unsafe { HostCopy::of(kernels, &kernels.spare(), &spans(&there)) }?;
    drop(there);
    let back = SIZES.iter().map(|&bytes| Memory::zeros(kernels, bytes)).collect::<Result<Vec<_>>>()?;
    // SAFETY: as above.
    unsafe { copy.put_back(kernels, &spans(&back)) }?;
    let same = back.iter().map(|memory| Ok(memory.read(kernels, memory.bytes())? == content(memory.bytes())));
    Ok(same.collect::<Result<Vec<bool>>>()?.into_iter().all(|same| same))
}

pub fn measure(kernels: &Kernels) -> Result<()> {
    let memory = [Memory::zeros(kernels, LARGE_BYTES)?];
    let spare = kernels.spare();
    let timed = |what: &str, act: &mut dyn FnMut() -> Result<()>| {
        kernels.wait()?;
        let began = Instant::now();
        act()?;
        println!("{what:<44} {:6.1} GB/s", LARGE_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9);
        Ok::<_, candle_core::Error>(())
    };
    // SAFETY: memory of this stream.
    let copied = || unsafe { HostCopy::of(kernels, &spare, &spans(&memory)) };
    timed("to the host, page-locking its memory", &mut || copied().map(drop))?;
    timed("to the host, page-locked before", &mut || copied().map(drop))?;
    let mut copy = copied()?;
    // SAFETY: as above.
    timed("back to the device", &mut || unsafe { copy.put_back(kernels, &spans(&memory)) })
}
