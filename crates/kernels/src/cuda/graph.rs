//! Calls captured as one graph: a step is then one launch. Refuses to know which calls a step is made of. Floor: the launch, 2 us
//! of the host's time.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, sys};
use candle_core::{Error, Result};

use super::device::Kernels;

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
