//! The kernels on a GPU: the embedded machine code, launches, memory, and the library's product for many rows. Refuses to know the
//! order of the calls.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, result as blas, sys as blas_sys};
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError, PinnedHostSlice,
    result as copy, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::{Error, Result};

use super::call::{Call, Element, Gpu};
use super::graph::Captured;
use super::kept::{CHUNK_BYTES, Spare};
use super::params::Ptr;
use super::product::{Library, Out};
use super::stream::{self, Stream, Work, check_copy};

/// One file of machine code for all the GPUs of the build, see build.rs.
const IMAGES: [&[u8]; 6] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/plain.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/packed.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/scaled.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/rows.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/image.fatbin")),
];

/// Shared memory that a launch may bring without asking: the driver's 48 kB less what a kernel declares itself.
const SHARED_BYTES: u32 = 32 << 10;

/// The kernels, loaded into a device, and the stream they run on, which is candle's.
pub struct Kernels {
    stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    modules: Vec<Arc<CudaModule>>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    gpu: Gpu,
    name: String,
    capability: (i32, i32),
}

impl Kernels {
    /// Loads them; do it before anything else on the device, which is best made by `Device::new_cuda_with_stream`. Memory that is given back stays with the process from now on, and candle's own tracking of streams by events is
    /// off: everything here and in candle is on the one stream of `device`, and event records would break a graph's capture.
    pub fn load(device: &CudaDevice) -> Result<Kernels> {
        let stream = device.cuda_stream();
        let context = stream.context().clone();
        // SAFETY: one stream.
        unsafe { device.disable_event_tracking() };
        keep_freed_memory(&context)?;
        let modules: std::result::Result<Vec<_>, _> =
            IMAGES.iter().map(|image| context.load_module(Ptx::from_binary(image.to_vec()))).collect();
        let read = |attribute| context.attribute(attribute).map_err(Error::wrap);
        use sys::CUdevice_attribute_enum as Attribute;
        let gpu = Gpu {
            multiprocessors: read(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            shared_bytes_per_block: read(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        };
        Ok(Kernels {
            blas: device.cublas_handle(),
            modules: modules.map_err(Error::wrap)?,
            functions: Mutex::default(),
            gpu,
            name: context.name().map_err(Error::wrap)?,
            capability: context.compute_capability().map_err(Error::wrap)?,
            stream,
        })
    }

    /// Those of a device for the ops on candle's tensors: loaded when they are first asked for, and kept as long as the process.
    pub fn of(device: &CudaDevice) -> Result<Arc<Kernels>> {
        static LOADED: LazyLock<Mutex<HashMap<DeviceId, Arc<Kernels>>>> = LazyLock::new(Mutex::default);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = loaded.get(&device.id()) {
            return Ok(kernels.clone());
        }
        let kernels = Arc::new(Kernels::load(device)?);
        loaded.insert(device.id(), kernels.clone());
        Ok(kernels)
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// (8, 0) is sm_80.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// bf16 where the GPU has it, else f16.
    pub fn element(&self) -> Element {
        if self.capability.0 >= 8 { Element::Bf16 } else { Element::F16 }
    }

    fn function(&self, call: &Call) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().map_err(|e| Error::msg(e.to_string()))?;
        if let Some(function) = functions.get(&call.kernel) {
            return Ok(function.clone());
        }
        let found = self.modules.iter().find_map(|module| module.load_function(&call.kernel).ok());
        let Some(function) = found else {
            candle_core::bail!("this build has no kernel {} (compute capability {:?})", call.kernel, self.capability);
        };
        functions.insert(call.kernel.clone(), function.clone());
        Ok(function)
    }

    /// Puts a call on the stream. On sm_90 it may begin while the launch before it ends: its kernel waits for that one itself before
    /// it reads what was computed.
    ///
    /// # Safety
    /// Every address in the call is memory of this device, as large as the call's documentation says, and lives until the
    /// stream has passed it.
    pub unsafe fn launch(&self, call: &Call) -> Result<()> {
        let function = self.function(call)?;
        if call.shared_bytes > SHARED_BYTES {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            function.set_attribute(MOST, call.shared_bytes as i32).map_err(Error::wrap)?;
        }
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = call.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: call.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: call.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: u32::from(self.capability.0 >= 9),
        };
        self.stream.context().bind_to_thread().map_err(Error::wrap)?;
        let mut params = [call.params().cast_mut().cast()];
        // SAFETY: the kernel has one parameter of this size; its addresses are the caller's promise.
        let done = unsafe {
            sys::cuLaunchKernelEx(&config, function.cu_function(), params.as_mut_ptr(), std::ptr::null_mut()).result()
        };
        done.map_err(|e| Error::wrap(e).context(format!("launch of {}", call.kernel)))
    }

    /// Puts a product of the library on the stream.
    ///
    /// # Safety
    /// As of `launch`.
    unsafe fn library(&self, product: &Library) -> Result<()> {
        use blas_sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        let Library { element, rows, k, out, x, w, y, y_stride, kind } = *product;
        let of = match element {
            Element::Bf16 => blas_sys::cudaDataType_t::CUDA_R_16BF,
            Element::F16 => blas_sys::cudaDataType_t::CUDA_R_16F,
        };
        let (to, beta) = match kind {
            Out::Element => (of, 0f32),
            Out::AddF32 => (blas_sys::cudaDataType_t::CUDA_R_32F, 1f32),
        };
        let one = 1f32;
        let (m, n, k_) = (out as i32, rows as i32, k as i32);
        // Row-major [rows, out] is what cuBLAS calls [out, rows].
        // SAFETY: the caller's promise; the factors live through the call.
        let done = unsafe {
            blas::gemm_ex(
                *self.blas.handle(),
                CUBLAS_OP_T,
                CUBLAS_OP_N,
                m,
                n,
                k_,
                (&raw const one).cast(),
                w.0 as *const _,
                of,
                k_,
                x.0 as *const _,
                of,
                k_,
                (&raw const beta).cast(),
                y.0 as *mut _,
                to,
                y_stride as i32,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(|e| Error::msg(format!("a product of [{rows}, {k}] and [{out}, {k}]: {e:?}")))
    }

    /// Waits for everything that was launched.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(Error::wrap)
    }
}

/// The pool gives nothing back to the system: by default every synchronisation does, and the next step pays for it.
fn keep_freed_memory(context: &candle_core::cuda_backend::cudarc::driver::CudaContext) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut pool = std::ptr::null_mut();
    let mut most = u64::MAX;
    use sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as THRESHOLD;
    // SAFETY: the attribute is a u64.
    let done: std::result::Result<(), DriverError> = unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device())
            .result()
            .and_then(|()| sys::cuMemPoolSetAttribute(pool, THRESHOLD, (&raw mut most).cast()).result())
    };
    done.map_err(Error::wrap)
}

/// Device memory with a fixed address.
pub struct Memory {
    slice: CudaSlice<u8>,
    ptr: Ptr,
}

impl Memory {
    pub fn zeros(kernels: &Kernels, bytes: usize) -> Result<Memory> {
        let slice = kernels.stream.alloc_zeros::<u8>(bytes.max(1)).map_err(Error::wrap)?;
        let ptr = Ptr(slice.device_ptr(&kernels.stream).0);
        Ok(Memory { slice, ptr })
    }

    /// A copy of the host's bytes.
    pub fn of(kernels: &Kernels, bytes: &[u8]) -> Result<Memory> {
        let mut memory = Memory::zeros(kernels, bytes.len())?;
        memory.write(kernels, 0, bytes)?;
        Ok(memory)
    }

    /// Copies the host's bytes to `at`, in the stream's order.
    pub fn write(&mut self, kernels: &Kernels, at: usize, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut part = self.slice.slice_mut(at..at + bytes.len());
        kernels.stream.memcpy_htod(bytes, &mut part).map_err(Error::wrap)
    }

    /// Waits for the stream and copies the first `bytes`.
    pub fn read(&self, kernels: &Kernels, bytes: usize) -> Result<Vec<u8>> {
        let bytes = kernels.stream.clone_dtoh(&self.slice.slice(..bytes)).map_err(Error::wrap)?;
        kernels.synchronize()?;
        Ok(bytes)
    }

    /// Copies another memory of the same size over this one, on the device.
    pub fn copy_from(&mut self, kernels: &Kernels, other: &Memory) -> Result<()> {
        check_copy(other, self)?;
        kernels.stream.memcpy_dtod(&other.slice, &mut self.slice).map_err(Error::wrap)
    }
}

impl stream::Memory for Memory {
    fn ptr(&self) -> Ptr {
        self.ptr
    }

    fn bytes(&self) -> usize {
        self.slice.len()
    }
}

/// Page-locked memory of the host, and the event after which the device has done with it.
pub struct Staged {
    memory: PinnedHostSlice<u64>,
    event: CudaEvent,
}

impl Drop for Staged {
    /// The device may still be at it. An error has nobody to hear it: the next call on the stream tells it again.
    fn drop(&mut self) {
        let _ = self.event.synchronize();
    }
}

impl Stream for Kernels {
    type Memory = Memory;
    type Staged = Staged;
    type Captured = Captured;

    fn gpu(&self) -> Gpu {
        self.gpu
    }

    fn zeros(&self, bytes: usize) -> Result<Memory> {
        Memory::zeros(self, bytes)
    }

    fn write(&self, memory: &mut Memory, at: usize, bytes: &[u8]) -> Result<()> {
        memory.write(self, at, bytes)
    }

    fn read(&self, memory: &Memory, bytes: usize) -> Result<Vec<u8>> {
        memory.read(self, bytes)
    }

    unsafe fn run(&self, work: &Work) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match work {
                Work::Call(call) => self.launch(call),
                Work::Library(product) => self.library(product),
            }
        }
    }

    unsafe fn capture(&self, work: &[Work]) -> Result<Captured> {
        // SAFETY: the caller's promise.
        Captured::new(self, |kernels| work.iter().try_for_each(|work| unsafe { kernels.run(work) }))
    }

    unsafe fn replay(&self, captured: &Captured) -> Result<()> {
        captured.launch()
    }

    fn staged(&self, bytes: usize) -> Result<Staged> {
        let context = self.stream.context();
        // SAFETY: filled before it is read.
        let mut memory =
            unsafe { context.alloc_pinned_with_flags::<u64>(bytes.div_ceil(8), 0) }.map_err(Error::wrap)?;
        memory.as_mut_slice().map_err(Error::wrap)?.fill(0);
        Ok(Staged { memory, event: context.new_event(None).map_err(Error::wrap)? })
    }

    fn ready<'a>(&self, staged: &'a mut Staged) -> Result<&'a mut [u64]> {
        // Of our own: with candle's tracking off, the memory's event is never recorded.
        staged.event.synchronize().map_err(Error::wrap)?;
        staged.memory.as_mut_slice().map_err(Error::wrap)
    }

    fn staged_bytes(&self, staged: &Staged) -> usize {
        staged.memory.num_bytes()
    }

    fn spare(&self) -> Rc<Spare<Staged>> {
        thread_local! {
            /// By device: page-locked memory is its context's.
            static SPARE: RefCell<HashMap<usize, Rc<Spare<Staged>>>> = RefCell::default();
        }
        let device = self.stream.context().ordinal();
        let new = || Rc::new(Spare::new(CHUNK_BYTES));
        SPARE.with_borrow_mut(|spare| spare.entry(device).or_insert_with(new).clone())
    }

    unsafe fn send_to(&self, staged: &mut Staged, at: usize, bytes: usize, to: Ptr) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // Nothing to wait for: what goes into the memory and comes out of it has one order, the stream's.
        let from = staged.memory.as_ptr().map_err(Error::wrap)?.cast::<u8>();
        // SAFETY: the caller's promise.
        let sent = unsafe { std::slice::from_raw_parts(from.add(at), bytes) };
        // SAFETY: the caller's promise; the host leaves the bytes alone until the event.
        unsafe { copy::memcpy_htod_async(to.0, sent, self.stream.cu_stream()) }.map_err(Error::wrap)?;
        staged.event.record(&self.stream).map_err(Error::wrap)
    }

    unsafe fn fetch_from(&self, from: Ptr, bytes: usize, staged: &mut Staged, at: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let to = staged.memory.as_mut_ptr().map_err(Error::wrap)?.cast::<u8>();
        // SAFETY: the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(at), bytes) };
        // SAFETY: the caller's promise; nobody looks at the host's until the event.
        unsafe { copy::memcpy_dtoh_async(to, from.0, self.stream.cu_stream()) }.map_err(Error::wrap)?;
        staged.event.record(&self.stream).map_err(Error::wrap)
    }

    fn copy(&self, from: &Memory, to: &mut Memory) -> Result<()> {
        to.copy_from(self, from)
    }

    fn wait(&self) -> Result<()> {
        self.synchronize()
    }
}
