//! The kernels on the CPU: compiles their source with the machine's C++ compiler, once per test run and kept by its content,
//! and calls it. Refuses to know what a kernel computes.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::call::{Call, Gpu};
use super::params::Ptr;

/// Odd on purpose: tiles never divide evenly among the blocks.
pub const GPU: Gpu = Gpu { multiprocessors: 3, shared_bytes_per_block: 100 << 10 };

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
    let flags = ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-DPINION_EMULATE", "-DPINION_BF16"];
    let sources = files.iter().filter(|f| f.extension().is_some_and(|e| e == "cu" || e == "cpp"));
    let objects: Vec<PathBuf> = sources.clone().map(|f| work.join(f.file_stem().unwrap_or_default()).with_extension("o")).collect();
    let mut running = Vec::new();
    for (file, object) in sources.zip(&objects) {
        let child = Command::new(&compiler).args(flags).args(["-x", "c++", "-c"]).arg(file).arg("-o").arg(object).spawn();
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
    /// Runs a call whose addresses are those of `Buffer`s. `seed` is the order in which blocks and threads take turns.
    pub fn try_run(&self, call: &Call, seed: u64) -> Result<(), String> {
        let name = CString::new(call.kernel.as_str()).map_err(|e| e.to_string())?;
        let [x, y, z] = call.grid;
        // SAFETY: the parameters are of the size that the kernel checks, and every address in them is a buffer's.
        unsafe {
            let (params, bytes) = (call.params().cast(), call.params_bytes() as u64);
            let why = (self.launch)(name.as_ptr(), x, y, z, call.threads, call.shared_bytes.into(), params, bytes, seed);
            if why.is_null() { Ok(()) } else { Err(CStr::from_ptr(why).to_string_lossy().into_owned()) }
        }
    }

    pub fn run(&self, call: &Call, seed: u64) {
        if let Err(why) = self.try_run(call, seed) {
            panic!("{}, seed {seed}: {why}", call.kernel);
        }
    }
}

/// Memory a kernel may use, between two guards that it may not: reading one gives NaN, writing one fails the test.
pub struct Buffer {
    words: Vec<u128>,
    bytes: usize,
}

const GUARD_WORDS: usize = 16;

impl Buffer {
    /// Filled with NaN: what a kernel forgets to write shows.
    pub fn poisoned(bytes: usize) -> Buffer {
        Buffer { words: vec![u128::MAX; bytes.div_ceil(16) + 2 * GUARD_WORDS], bytes }
    }

    pub fn of<T: Copy>(values: &[T]) -> Buffer {
        let mut buffer = Buffer::poisoned(size_of_val(values));
        // SAFETY: plain values, and the buffer is as long.
        unsafe {
            let to = buffer.words.as_mut_ptr().add(GUARD_WORDS).cast::<T>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
        buffer
    }

    pub fn ptr(&self) -> Ptr {
        Ptr(self.words[GUARD_WORDS..].as_ptr() as u64)
    }

    /// What is in it now. Checks the guards.
    pub fn read<T: Copy>(&self) -> Vec<T> {
        // SAFETY: the bytes of the words, all of them.
        let all = unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast::<u8>(), self.words.len() * 16) };
        let (before, after) = (GUARD_WORDS * 16, GUARD_WORDS * 16 + self.bytes);
        let whole = all[..before].iter().chain(&all[after..]).all(|byte| *byte == 0xff);
        assert!(whole, "a kernel wrote outside its buffer");
        // SAFETY: numbers, for which every bit pattern is a value.
        unsafe { std::slice::from_raw_parts(self.words[GUARD_WORDS..].as_ptr().cast::<T>(), self.bytes / size_of::<T>()) }
            .to_vec()
    }
}
