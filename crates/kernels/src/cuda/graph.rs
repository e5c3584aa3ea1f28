//! A decode step as one launch: what the host tells it goes up in one copy, the calls run as a captured graph, the tokens come
//! down in one copy. The host may prepare the next step, and read the last one's tokens, while a step runs. Refuses to know which
//! calls a step is made of.
//!
//! A step reads at fixed addresses, so a graph serves every step of its bucket: a batch is padded up to the next of
//! `BUCKETS`, rows that are not in use stand at position `u32::MAX`. Floor: nothing but the launch, 2 us of the host's time and
//! (bytes of the inputs) / 25 GB/s: 0.1 us for one row of 8k context, 6 us for 256.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaGraph, CudaStream, PinnedHostSlice, sys};
use candle_core::{Error, Result};

use super::device::{Kernels, Memory};
use super::inputs::{Inputs, Layout};
use super::params::Ptr;

/// The batches that have a graph.
pub const BUCKETS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// The smallest bucket that holds so many rows.
pub fn bucket(rows: usize) -> Option<usize> {
    BUCKETS.into_iter().find(|bucket| *bucket >= rows)
}

/// Calls, captured: one launch for all of them.
pub struct Captured(CudaGraph);

impl Captured {
    /// Runs `calls` once, to load what loads lazily, and once more to capture them. They launch on the kernels' stream, and neither
    /// allocate nor copy.
    pub fn new(kernels: &Kernels, mut calls: impl FnMut(&Kernels) -> Result<()>) -> Result<Captured> {
        calls(kernels)?;
        kernels.synchronize()?;
        let stream: &Arc<CudaStream> = kernels.stream();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).map_err(Error::wrap)?;
        let captured = calls(kernels);
        // The capture ends, whatever the calls said; else the stream is of no use to anybody.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(Error::wrap);
        captured?;
        let Some(graph) = graph? else { candle_core::bail!("nothing to capture") };
        graph.upload().map_err(Error::wrap)?;
        Ok(Captured(graph))
    }

    pub fn launch(&self) -> Result<()> {
        self.0.launch().map_err(Error::wrap)
    }
}

/// The calls of one decode step.
pub struct DecodeGraph {
    calls: Captured,
    layout: Layout,
}

impl DecodeGraph {
    /// `calls` read their inputs where `layout` puts them in `Exchange::inputs`. They run once before they are captured: as long as
    /// nothing was sent, the inputs say that no row is in use, and nothing is written that anybody reads.
    pub fn capture(
        kernels: &Kernels,
        exchange: &mut Exchange,
        layout: Layout,
        mut calls: impl FnMut(&Kernels, &Layout) -> Result<()>,
    ) -> Result<DecodeGraph> {
        exchange.send_unused(kernels, &layout)?;
        Ok(DecodeGraph { calls: Captured::new(kernels, |kernels| calls(kernels, &layout))?, layout })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// The way up and the way down, for all buckets: two of each on the host, so that a step can be told while one runs.
pub struct Exchange {
    inputs: Memory,
    chosen: Memory,
    up: [Staged; 2],
    down: [Staged; 2],
    next: usize,
    rows: usize,
}

/// Page-locked memory of the host, and the event after which it is free (up) or filled (down).
struct Staged {
    memory: PinnedHostSlice<u64>,
    event: CudaEvent,
}

impl Staged {
    fn new(kernels: &Kernels, bytes: usize) -> Result<Staged> {
        let context = kernels.stream().context();
        // SAFETY: filled before it is read.
        let mut memory =
            unsafe { context.alloc_pinned_with_flags::<u64>(bytes.div_ceil(8), 0) }.map_err(Error::wrap)?;
        memory.as_mut_slice().map_err(Error::wrap)?.fill(0);
        Ok(Staged { memory, event: context.new_event(None).map_err(Error::wrap)? })
    }

    fn ready(&mut self) -> Result<&mut [u64]> {
        // Of our own: with candle's tracking off, the memory's event is never recorded.
        self.event.synchronize().map_err(Error::wrap)?;
        self.memory.as_mut_slice().map_err(Error::wrap)
    }
}

/// A step that was sent off.
#[derive(Debug)]
#[must_use = "its tokens are there once"]
pub struct Sent {
    slot: usize,
    rows: usize,
}

impl Exchange {
    /// Room for steps of at most `largest`.
    pub fn new(kernels: &Kernels, largest: &Layout) -> Result<Exchange> {
        let (bytes, rows) = (largest.bytes(), largest.rows);
        let staged = |bytes| Ok::<_, Error>([Staged::new(kernels, bytes)?, Staged::new(kernels, bytes)?]);
        let (inputs, chosen) = (Memory::zeros(kernels, bytes)?, Memory::zeros(kernels, rows * 4)?);
        Ok(Exchange { inputs, chosen, up: staged(bytes)?, down: staged(rows * 4)?, next: 0, rows })
    }

    /// Where a step's inputs are, for `Layout`'s offsets.
    pub fn inputs(&self) -> Ptr {
        self.inputs.ptr()
    }

    /// u32 `[rows]`: where a step leaves its tokens, and the next one finds them.
    pub fn chosen(&self) -> Ptr {
        self.chosen.ptr()
    }

    fn room_for(&self, layout: &Layout) -> Result<()> {
        if layout.rows > self.rows || layout.bytes() > self.inputs.bytes() {
            candle_core::bail!("a step of {} rows; there is room for {}", layout.rows, self.rows);
        }
        Ok(())
    }

    /// Writes inputs with no row in use, and waits for them.
    fn send_unused(&mut self, kernels: &Kernels, layout: &Layout) -> Result<()> {
        self.room_for(layout)?;
        let mut words = vec![0u64; layout.bytes() / 8];
        layout.inputs(&mut words).clear();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.inputs.write(kernels, 0, &bytes)?;
        kernels.synchronize()
    }

    /// Sends off a step: `fill` writes its inputs, which start as "no row in use". Waits for nothing but the copy of the inputs of the
    /// step before the last. At most two steps may be under way: take the tokens of the one before the last first.
    pub fn send(&mut self, kernels: &Kernels, graph: &DecodeGraph, fill: impl FnOnce(&mut Inputs)) -> Result<Sent> {
        let (slot, layout, stream) = (self.next, graph.layout, kernels.stream());
        self.room_for(&layout)?;
        self.next ^= 1;
        let up = self.up[slot].ready()?;
        let mut inputs = layout.inputs(up);
        inputs.clear();
        fill(&mut inputs);
        let bytes = layout.bytes();
        // SAFETY: u64s as bytes, and no more of them than there are.
        let sent = unsafe { std::slice::from_raw_parts(up.as_ptr().cast::<u8>(), bytes) };
        self.inputs.send(kernels, sent)?;
        self.up[slot].event.record(stream).map_err(Error::wrap)?;
        graph.calls.launch()?;
        self.chosen.fetch(kernels, self.down[slot].ready()?, layout.rows * 4)?;
        self.down[slot].event.record(stream).map_err(Error::wrap)?;
        Ok(Sent { slot, rows: layout.rows })
    }

    /// Waits for a step and gives its tokens, one per row of its bucket; `u32::MAX` where the logits were broken.
    pub fn tokens(&mut self, sent: Sent) -> Result<Vec<u32>> {
        let words = self.down[sent.slot].ready()?;
        Ok(words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).take(sent.rows).collect())
    }
}
