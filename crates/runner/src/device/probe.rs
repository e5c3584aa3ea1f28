//! Asks NVIDIA's driver what there is: loads it at run time, so that nothing links to it. A broken driver may crash or
//! hang whoever asks: run this in a process of its own and give it a time. Tells what the driver said; refuses to judge it.
//!
//! Source: CUDA driver API, its functions with the versions of their names that every driver since CUDA 11 exports.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

use libloading::{Library, Symbol};
use serde::{Deserialize, Serialize};

use super::{Capability, CudaVersion};

/// The driver's library, as the system's loader finds it.
pub const LIBRARY: &str = "libcuda.so.1";
/// Where the kernel's part of the driver tells its release, e.g. 580.65.06.
const RELEASE: &str = "/sys/module/nvidia/version";
/// Bytes of a GPU's name, its end included.
const NAME_BYTES: usize = 256;

/// What the driver answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Of the kernel's part, where it tells.
    pub release: Option<String>,
    pub driver: Driver,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Driver {
    /// `LIBRARY` is not there or cannot be loaded.
    Absent {
        why: String,
    },
    /// A call failed.
    Failed {
        call: String,
        code: i32,
        name: String,
        version: Option<CudaVersion>,
    },
    Ready {
        version: CudaVersion,
        gpus: Vec<Gpu>,
    },
}

/// One GPU that this process may use. `CUDA_VISIBLE_DEVICES` was obeyed and is counted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// As in `cuda:N`.
    pub number: u32,
    pub name: String,
    pub capability: Capability,
    pub total_bytes: u64,
    /// None where nobody asked, or where no context could be made.
    pub free_bytes: Option<u64>,
}

type Device = c_int;
type Context = *mut c_void;

/// A call that failed: its name and the driver's code.
struct Refused(&'static str, i32);

const SUCCESS: i32 = 0;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;

/// `free`: also make a context on every GPU, which takes a moment, and ask how much of its memory is free.
pub fn ask(free: bool) -> Probe {
    let release = std::fs::read_to_string(Path::new(RELEASE)).ok().map(|text| text.trim().to_owned());
    // SAFETY: what the library does when it is loaded is the driver's own; that is why nobody else is in this process.
    let driver = match unsafe { Library::new(LIBRARY) } {
        Err(error) => Driver::Absent { why: reason(&error) },
        Ok(library) => {
            let cuda = Cuda(library);
            match cuda.gpus(free) {
                Ok(driver) => driver,
                Err(Refused(call, code)) => {
                    let (call, name) = (call.to_owned(), cuda.name_of(code));
                    Driver::Failed { call, code, name, version: cuda.version().ok() }
                }
            }
        }
    };
    Probe { release, driver }
}

/// Holds a context on one GPU and gives its free bytes to `tell`, again and again, until that answers false.
pub fn watch(number: u32, mut tell: impl FnMut(u64) -> bool) -> Result<(), String> {
    // SAFETY: as in `ask`.
    let cuda = Cuda(unsafe { Library::new(LIBRARY) }.map_err(|error| reason(&error))?);
    let mut watched = || -> Result<(), Refused> {
        cuda.init()?;
        let device = cuda.device(number)?;
        cuda.in_context(device, || {
            while tell(cuda.free_bytes()?) {}
            Ok(())
        })
    };
    watched().map_err(|Refused(call, code)| format!("{call}: {} ({code})", cuda.name_of(code)))
}

/// In the loader's own words, which name the file.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |loader| loader.to_string())
}

struct Cuda(Library);

impl Cuda {
    /// One of the driver's functions, called by `call`; one that is not there answers as CUDA_ERROR_NOT_FOUND.
    fn call<F>(&self, name: &'static str, call: impl FnOnce(Symbol<F>) -> i32) -> Result<(), Refused> {
        const NOT_FOUND: i32 = 500;
        // SAFETY: every caller names the function's own type.
        let code = match unsafe { self.0.get::<F>(name.as_bytes()) } {
            Ok(function) => call(function),
            Err(_) => NOT_FOUND,
        };
        if code == SUCCESS { Ok(()) } else { Err(Refused(name, code)) }
    }

    fn init(&self) -> Result<(), Refused> {
        // SAFETY: a number goes in.
        self.call::<unsafe extern "C" fn(u32) -> i32>("cuInit", |f| unsafe { f(0) })
    }

    fn version(&self) -> Result<CudaVersion, Refused> {
        let mut version = 0;
        // SAFETY: the number outlives the call.
        self.call::<unsafe extern "C" fn(*mut c_int) -> i32>("cuDriverGetVersion", |f| unsafe { f(&mut version) })?;
        Ok(CudaVersion(version.unsigned_abs()))
    }

    fn gpus(&self, free: bool) -> Result<Driver, Refused> {
        let version = self.version()?;
        self.init()?;
        let mut count = 0;
        // SAFETY: the number outlives the call.
        self.call::<unsafe extern "C" fn(*mut c_int) -> i32>("cuDeviceGetCount", |f| unsafe { f(&mut count) })?;
        let gpus = (0..count.unsigned_abs()).map(|number| self.gpu(number, free)).collect::<Result<_, _>>()?;
        Ok(Driver::Ready { version, gpus })
    }

    fn device(&self, number: u32) -> Result<Device, Refused> {
        let mut device = 0;
        let get = |f: Symbol<unsafe extern "C" fn(*mut Device, c_int) -> i32>| unsafe {
            // SAFETY: the handle outlives the call.
            f(&mut device, number as c_int)
        };
        self.call("cuDeviceGet", get)?;
        Ok(device)
    }

    fn gpu(&self, number: u32, free: bool) -> Result<Gpu, Refused> {
        let device = self.device(number)?;
        let mut name = [0u8; NAME_BYTES];
        let get = |f: Symbol<unsafe extern "C" fn(*mut c_char, c_int, Device) -> i32>| unsafe {
            // SAFETY: the driver writes at most the length that it is given.
            f(name.as_mut_ptr().cast(), NAME_BYTES as c_int, device)
        };
        self.call("cuDeviceGetName", get)?;
        let mut total = 0usize;
        let get = |f: Symbol<unsafe extern "C" fn(*mut usize, Device) -> i32>| unsafe {
            // SAFETY: the number outlives the call.
            f(&mut total, device)
        };
        self.call("cuDeviceTotalMem_v2", get)?;
        let major = self.attribute(COMPUTE_CAPABILITY_MAJOR, device)?;
        let minor = self.attribute(COMPUTE_CAPABILITY_MINOR, device)?;
        let free = free.then(|| self.in_context(device, || self.free_bytes()).ok()).flatten();
        let name =
            CStr::from_bytes_until_nul(&name).map_or_else(|_| String::new(), |n| n.to_string_lossy().into_owned());
        let capability = Capability::new(major, minor);
        Ok(Gpu { number, name, capability, total_bytes: total as u64, free_bytes: free })
    }

    fn attribute(&self, attribute: c_int, device: Device) -> Result<u32, Refused> {
        let mut value: c_int = 0;
        let get = |f: Symbol<unsafe extern "C" fn(*mut c_int, c_int, Device) -> i32>| unsafe {
            // SAFETY: the number outlives the call.
            f(&mut value, attribute, device)
        };
        self.call("cuDeviceGetAttribute", get)?;
        Ok(value.unsigned_abs())
    }

    fn in_context<T>(&self, device: Device, work: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
        let mut context: Context = std::ptr::null_mut();
        let retain = |f: Symbol<unsafe extern "C" fn(*mut Context, Device) -> i32>| unsafe {
            // SAFETY: the handle outlives the call.
            f(&mut context, device)
        };
        self.call("cuDevicePrimaryCtxRetain", retain)?;
        // SAFETY: the context was just given to us.
        let done = self
            .call::<unsafe extern "C" fn(Context) -> i32>("cuCtxSetCurrent", |f| unsafe { f(context) })
            .and_then(|()| work());
        // SAFETY: it was retained above; nothing of it is used any more.
        let _ =
            self.call::<unsafe extern "C" fn(Device) -> i32>("cuDevicePrimaryCtxRelease_v2", |f| unsafe { f(device) });
        done
    }

    /// Of the device whose context is current.
    fn free_bytes(&self) -> Result<u64, Refused> {
        let (mut free, mut total) = (0usize, 0usize);
        let get = |f: Symbol<unsafe extern "C" fn(*mut usize, *mut usize) -> i32>| unsafe {
            // SAFETY: both numbers outlive the call.
            f(&mut free, &mut total)
        };
        self.call("cuMemGetInfo_v2", get)?;
        Ok(free as u64)
    }

    /// `CUDA_ERROR_...`, as the driver calls it.
    fn name_of(&self, code: i32) -> String {
        let mut name: *const c_char = std::ptr::null();
        let get = |f: Symbol<unsafe extern "C" fn(c_int, *mut *const c_char) -> i32>| unsafe {
            // SAFETY: the pointer outlives the call.
            f(code, &mut name)
        };
        if self.call("cuGetErrorName", get).is_err() || name.is_null() {
            return format!("CUDA error {code}");
        }
        // SAFETY: the driver's names are constants that end with a zero.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}
