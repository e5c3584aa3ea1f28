//! Calls of the few-row products (`crates/kernels/cuda/product.cuh` has the floors). Refuses to know the layers of a model.

use super::attention::Paged;
use super::call::{Call, Element, Gpu};
use super::params::{self, Ptr};
use super::weight::{CHUNK, Packing};

const THREADS: u32 = 256;
/// Blocks a multiprocessor holds at once: 256 threads of at most 128 registers.
const BLOCKS_EACH: u32 = 2;
/// The most rows a product norms itself, and the most it takes at all.
pub const FUSED_ROWS: usize = 8;
pub const MOST_ROWS: usize = 32;

/// A weight `[rows, k]` on the device, packed by `weight.rs`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub packing: Packing,
    pub rows: usize,
    pub k: usize,
    pub quants: Ptr,
    pub scales: Ptr,
}

impl Matrix {
    pub(super) fn params(&self) -> params::Weight {
        let Matrix { packing, rows, k, quants, scales } = *self;
        params::Weight { quants, scales, rows: rows as i32, groups: packing.groups(k) as i32 }
    }
}

/// The rows that are multiplied.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// The f32 residual stream `[rows, k]`, normed on the way in: at most `FUSED_ROWS`, and no more than shared memory holds.
    Stream { x: Ptr, gamma: Ptr, eps: f32, rows: usize },
    /// `[rows, k]` of the element type, as they are: at most `MOST_ROWS`.
    Ready { x: Ptr, rows: usize },
}

impl Input {
    pub fn rows(&self) -> usize {
        match *self {
            Input::Stream { rows, .. } | Input::Ready { rows, .. } => rows,
        }
    }
}

/// The bytes of shared memory that norming `rows` rows of `k` takes.
fn normed_bytes(packing: Packing, rows: usize, k: usize) -> (usize, usize) {
    let row = packing.groups(k) * packing.group() * 2;
    // Two rows half a line apart: eight lanes that read 16 bytes of each then touch all the banks.
    let row = if row.is_multiple_of(128) { row + 64 } else { row };
    (row, rows * row)
}

/// Whether `rows` rows of a stream of `k` can be normed inside a product on this machine.
pub fn norms_itself(gpu: &Gpu, packing: Packing, rows: usize, k: usize) -> bool {
    // The kernel's own sums, 8.5 kB, count too.
    rows <= FUSED_ROWS && normed_bytes(packing, rows, k).1 + 9 * 1024 <= gpu.shared_bytes_per_block
}

struct Launch {
    product: params::Product,
    suffix: &'static str,
    shared: usize,
}

fn launch(gpu: &Gpu, matrix: &Matrix, input: &Input) -> Launch {
    let Matrix { packing, k, .. } = *matrix;
    assert!(k > 0 && k.is_multiple_of(CHUNK), "k is {k}, no multiple of {CHUNK}");
    let weight = matrix.params();
    let rows = input.rows();
    assert!((1..=MOST_ROWS).contains(&rows), "{rows} rows; at most {MOST_ROWS}");
    let int = |v: usize| v as i32;
    match *input {
        Input::Stream { x, gamma, eps, .. } => {
            assert!(norms_itself(gpu, packing, rows, k), "{rows} rows of {k} are too many to norm on the way in");
            let (row_bytes, shared) = normed_bytes(packing, rows, k);
            let product = params::Product { weight, x, gamma, eps, rows: int(rows), k: int(k), row_bytes: int(row_bytes) };
            Launch { product, suffix: "8", shared }
        }
        Input::Ready { x, .. } => {
            let product =
                params::Product { weight, x, gamma: Ptr::NONE, eps: 0.0, rows: int(rows), k: int(k), row_bytes: 0 };
            Launch { product, suffix: "32", shared: 0 }
        }
    }
}

fn call<P: params::Params>(gpu: &Gpu, matrix: &Matrix, op: &str, element: Element, tiles: usize, from: Launch, params: P) -> Call {
    let name = format!("{op}_{}_{}_{}", matrix.packing.name(), element.name(), from.suffix);
    let grid = (gpu.multiprocessors * BLOCKS_EACH).min(tiles as u32);
    Call::new(name, [grid, 1, 1], THREADS, from.shared, params)
}

/// `stream[n] += W x[n]`: `stream` is f32 `[rows, out]`, `x` of the element type.
pub fn add(gpu: &Gpu, element: Element, matrix: &Matrix, x: Ptr, rows: usize, stream: Ptr) -> Call {
    let mut from = launch(gpu, matrix, &Input::Ready { x, rows });
    // No norm, so that the small one serves whoever has few rows.
    if rows <= FUSED_ROWS {
        from.suffix = "8";
    }
    let params = params::ProductTo { product: from.product, to: stream };
    call(gpu, matrix, "add", element, matrix.rows.div_ceil(16), from, params)
}

/// `logits[n] = W x[n]`, f32 `[rows, out]`.
pub fn head(gpu: &Gpu, element: Element, matrix: &Matrix, input: &Input, logits: Ptr) -> Call {
    let from = launch(gpu, matrix, input);
    let params = params::ProductTo { product: from.product, to: logits };
    call(gpu, matrix, "head", element, matrix.rows.div_ceil(16), from, params)
}

/// `hidden[n] = SiLU(gate x[n]) * (up x[n])`, of the element type `[rows, out / 2]`; the gate's rows stand above the up's.
pub fn gate_up(gpu: &Gpu, element: Element, matrix: &Matrix, input: &Input, hidden: Ptr) -> Call {
    assert!(matrix.rows.is_multiple_of(16), "{} rows of gate and up, no multiple of 16", matrix.rows);
    let from = launch(gpu, matrix, input);
    let params = params::ProductTo { product: from.product, to: hidden };
    call(gpu, matrix, "gate_up", element, matrix.rows / 16, from, params)
}

/// Queries, turned, of the element type `[rows, heads, dim]`; keys, turned, and values into the cache. `rope` is f32
/// `[positions, dim]`: a position's cosines, then its sines.
pub fn qkv(gpu: &Gpu, element: Element, matrix: &Matrix, input: &Input, cache: &Paged, rope: Ptr, queries: Ptr) -> Call {
    let Paged { heads, kv_heads, dim, .. } = *cache;
    assert!(dim.is_multiple_of(16), "heads of {dim}, no multiple of 16");
    assert_eq!(matrix.rows, (heads + 2 * kv_heads) * dim, "rows of queries, keys and values");
    let from = launch(gpu, matrix, input);
    let params = params::Qkv { product: from.product, cache: cache.params(), rope, queries };
    call(gpu, matrix, "qkv", element, matrix.rows / 16, from, params)
}
