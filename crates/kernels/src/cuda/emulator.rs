//! The kernels on the CPU: compiles their source with the machine's C++ compiler, once per test run and kept by its content,
//! and calls it. Refuses to know what a kernel computes.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::call::{Call, Element, Gpu};
use super::check::{Held, Machine};
use super::params::Ptr;

type Launch = unsafe extern "C" fn(*const c_char, u32, u32, u32, u32, u64, *const c_void, u64, u64) -> *const c_char;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

const RTLD_NOW: c_int = 2;

/// The emulator, or none where there is no C++ compiler: then a test says so and passes. CI sets `CI`, and there it must be.
pub fn emulator() -> Option<Emulator> {
    static LAUNCH: OnceLock<Result<Launch, String>> = OnceLock::new();
    match LAUNCH.get_or_init(|| build().and_then(|library| open(&library))) {
        Ok(launch) => Some(Emulator { launch: *launch }),
        Err(why) if why.starts_with(NO_COMPILER) && std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED, the CUDA kernels were not tested: {why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

const NO_COMPILER: &str = "no C++ compiler";

/// Compiles the library unless one of the same source is there. Returns its path.
fn build() -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&source).map_err(|e| e.to_string())?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut hash = DefaultHasher::new();
    for file in &files {
        (file.file_name(), read(file)?).hash(&mut hash);
    }
    // Beside the test program, so that it goes when the build does.
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let library = program.with_file_name(format!("cuda-emulated-{:016x}.so", hash.finish()));
    if library.exists() {
        return Ok(library);
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let work = tempfile(&library)?;
    let flags =
        ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-DPINION_EMULATE", "-DPINION_BF16"];
    let sources = files.iter().filter(|f| f.extension().is_some_and(|e| e == "cu" || e == "cpp"));
    let objects: Vec<PathBuf> =
        sources.clone().map(|f| work.join(f.file_stem().unwrap_or_default()).with_extension("o")).collect();
    let mut running = Vec::new();
    for (file, object) in sources.zip(&objects) {
        let child =
            Command::new(&compiler).args(flags).args(["-x", "c++", "-c"]).arg(file).arg("-o").arg(object).spawn();
        running.push(child.map_err(|e| format!("{NO_COMPILER}: {compiler}: {e}"))?);
    }
    for mut child in running {
        if !child.wait().map_err(|e| e.to_string())?.success() {
            return Err(format!("{compiler} does not compile the kernels"));
        }
    }
    let linked = work.join("linked.so");
    let status = Command::new(&compiler).arg("-shared").args(&objects).arg("-o").arg(&linked).status();
    if !status.map_err(|e| e.to_string())?.success() {
        return Err(format!("{compiler} does not link the kernels"));
    }
    std::fs::rename(&linked, &library).map_err(|e| e.to_string())?;
    std::fs::remove_dir_all(&work).map_err(|e| e.to_string())?;
    Ok(library)
}

fn tempfile(library: &Path) -> Result<PathBuf, String> {
    let work = library.with_extension(format!("{}", std::process::id()));
    std::fs::create_dir_all(&work).map_err(|e| e.to_string())?;
    Ok(work)
}

fn open(library: &Path) -> Result<Launch, String> {
    let path = CString::new(library.to_string_lossy().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: the library is ours and runs nothing but the registration of kernels when loaded; the symbol has this type.
    unsafe {
        let handle = dlopen(path.as_ptr(), RTLD_NOW);
        if handle.is_null() {
            return Err(CStr::from_ptr(dlerror()).to_string_lossy().into_owned());
        }
        let symbol = dlsym(handle, c"pinion_emulate".as_ptr());
        if symbol.is_null() {
            return Err("the library has no pinion_emulate".into());
        }
        Ok(std::mem::transmute::<*mut c_void, Launch>(symbol))
    }
}

#[derive(Clone, Copy)]
pub struct Emulator {
    launch: Launch,
}

impl Emulator {
    /// Runs a call. `order` is the one in which blocks and threads take turns.
    pub(crate) fn try_run(&self, call: &Call, order: u64) -> Result<(), String> {
        let name = CString::new(call.kernel.as_str()).map_err(|e| e.to_string())?;
        let [x, y, z] = call.grid;
        // SAFETY: the parameters are of the size that the kernel checks, and every address in them is of memory held here.
        unsafe {
            let (params, bytes) = (call.params().cast(), call.params_bytes() as u64);
            let why =
                (self.launch)(name.as_ptr(), x, y, z, call.threads, call.shared_bytes.into(), params, bytes, order);
            if why.is_null() { Ok(()) } else { Err(CStr::from_ptr(why).to_string_lossy().into_owned()) }
        }
    }
}

impl Machine for Emulator {
    fn gpu(&self) -> Gpu {
        // Odd on purpose: tiles never divide evenly among the blocks.
        Gpu { multiprocessors: 3, shared_bytes_per_block: 100 << 10 }
    }

    fn elements(&self) -> &'static [Element] {
        &[Element::Bf16, Element::F16]
    }

    fn hold(&self, content: Vec<u128>) -> Box<dyn Held> {
        Box::new(Host::of(content))
    }

    fn run(&self, call: &Call, order: u64) {
        if let Err(why) = self.try_run(call, order) {
            panic!("{}, order {order}: {why}", call.kernel);
        }
    }
}

/// Cells, since kernels write through the address.
pub(super) struct Host(Vec<UnsafeCell<u128>>);

impl Host {
    pub(super) fn of(content: Vec<u128>) -> Host {
        Host(content.into_iter().map(UnsafeCell::new).collect())
    }
}

impl Held for Host {
    fn address(&self) -> Ptr {
        Ptr(self.0.as_ptr() as u64)
    }

    fn content(&self) -> Vec<u128> {
        // SAFETY: no kernel runs meanwhile.
        self.0.iter().map(|word| unsafe { *word.get() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::params::Swiglu;

    #[test]
    fn a_call_that_does_not_fit_its_kernel_is_refused() {
        let Some(emulator) = emulator() else { return };
        let params = Swiglu { gate_up: Ptr::NONE, hidden: Ptr::NONE, ff: 0, rows: 0 };
        let run = |kernel: &str, threads| emulator.try_run(&Call::new(kernel.into(), [1, 1, 1], threads, 0, params), 1);
        assert_eq!(run("swiglu_f16", 256), Ok(()));
        assert_eq!(run("swiglu_f8", 256).unwrap_err(), "no kernel is called swiglu_f8");
        assert_eq!(run("swiglu_f16", 64).unwrap_err(), "the kernel has 256 threads, not 64");
        assert_eq!(run("norm_f16", 256).unwrap_err(), "the parameters are 40 bytes, not 24");
    }
}
