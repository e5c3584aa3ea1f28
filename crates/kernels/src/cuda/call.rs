//! One launch: a kernel's name, its grid and what it is told. Knows no device; the same calls go to a GPU and, in the tests, to
//! the emulator.

use super::params::Params;

/// A launch, ready to go.
#[derive(Clone, Debug)]
pub struct Call {
    pub kernel: String,
    pub grid: [u32; 3],
    pub threads: u32,
    /// Beyond what the kernel declares itself.
    pub shared_bytes: u32,
    /// The kernel's one parameter, in words for its alignment.
    params: Vec<u64>,
    params_bytes: usize,
}

impl Call {
    pub fn new<P: Params>(kernel: String, grid: [u32; 3], threads: u32, shared_bytes: usize, params: P) -> Call {
        let params_bytes = size_of::<P>();
        let mut words = vec![0u64; params_bytes.div_ceil(8)];
        // SAFETY: `Params` has no padding, and the words are at least as long.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const params).cast::<u8>(), words.as_mut_ptr().cast(), params_bytes)
        };
        Call { kernel, grid, threads, shared_bytes: shared_bytes as u32, params: words, params_bytes }
    }

    pub fn params(&self) -> *const u64 {
        self.params.as_ptr()
    }

    pub fn params_bytes(&self) -> usize {
        self.params_bytes
    }
}

/// What a launch must know of the machine it is for.
#[derive(Clone, Copy, Debug)]
pub struct Gpu {
    pub multiprocessors: u32,
    /// The most one block may ask for.
    pub shared_bytes_per_block: usize,
}

/// The type of the activations between kernels, and of plain weights, queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Not on sm_75.
    Bf16,
    F16,
}

impl Element {
    /// As the kernels are called.
    pub fn name(self) -> &'static str {
        match self {
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
        }
    }
}

/// The types that kernels take which only move and add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Real {
    Half(Element),
    F32,
}

impl Real {
    /// As the kernels are called.
    pub fn name(self) -> &'static str {
        match self {
            Real::Half(element) => element.name(),
            Real::F32 => "f32",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Real::Half(_) => 2,
            Real::F32 => 4,
        }
    }
}
