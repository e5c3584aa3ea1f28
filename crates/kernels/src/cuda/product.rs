//! Calls of the products (`crates/kernels/cuda/{product,batch}.cuh` have the floors). Refuses to know the layers of a model.

use super::attention::Paged;
use super::call::{Call, Element, Gpu};
use super::params::{self, Ptr};
use super::weight::{CHUNK, Packing};

const THREADS: u32 = 256;
/// Blocks of the small kernel that a multiprocessor holds at once: 256 threads of at most 128 registers.
const BLOCKS_EACH: u32 = 2;
/// The most rows that the small kernel takes, which norms them itself; any number goes through the other one.
pub const FUSED_ROWS: usize = 8;
/// Rows of x and tiles of 16 weight rows that a block of the large one takes.
const BATCH_ROWS: usize = 64;
const BATCH_TILES: usize = 4;
/// Two buffers of two halves of 64 rows of 128 values.
const BATCH_SHARED_BYTES: usize = 2 * 2 * BATCH_ROWS * 128 * 2;

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
    /// `[rows, k]` of the element type, as they are: any number.
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

fn product(gpu: &Gpu, matrix: &Matrix, input: &Input) -> params::Product {
    let Matrix { packing, k, .. } = *matrix;
    assert!(k > 0 && k.is_multiple_of(CHUNK), "k is {k}, no multiple of {CHUNK}");
    let (weight, rows) = (matrix.params(), input.rows());
    assert!(rows > 0, "a product of no rows");
    let (rows_, k_) = (rows as i32, k as i32);
    match *input {
        Input::Stream { x, gamma, eps, .. } => {
            assert!(norms_itself(gpu, packing, rows, k), "{rows} rows of {k} are too many to norm on the way in");
            let row_bytes = normed_bytes(packing, rows, k).0 as i32;
            params::Product { weight, x, gamma, eps, rows: rows_, k: k_, row_bytes }
        }
        Input::Ready { x, .. } => {
            params::Product { weight, x, gamma: Ptr::NONE, eps: 0.0, rows: rows_, k: k_, row_bytes: 0 }
        }
    }
}

/// The small kernel for what is normed on the way in, or is `few`; else the large one. `tiles` are of 16 weight rows.
fn call<P: params::Params>(
    gpu: &Gpu,
    matrix: &Matrix,
    (op, element): (&str, Element),
    tiles: usize,
    few: Option<usize>,
    rows: usize,
    params: P,
) -> Call {
    let name = |kind: &str| format!("{op}_{}_{}_{kind}", matrix.packing.name(), element.name());
    if let Some(shared) = few {
        let grid = (gpu.multiprocessors * BLOCKS_EACH).min(tiles as u32);
        return Call::new(name("8"), [grid, 1, 1], THREADS, shared, params);
    }
    // Those who read the same weights stand side by side.
    let grid = [rows.div_ceil(BATCH_ROWS) as u32, tiles.div_ceil(BATCH_TILES) as u32, 1];
    Call::new(name("64"), grid, THREADS, BATCH_SHARED_BYTES, params)
}

/// The shared memory of the small kernel, if the input is for it.
fn few(matrix: &Matrix, input: &Input) -> Option<usize> {
    match *input {
        Input::Stream { rows, .. } => Some(normed_bytes(matrix.packing, rows, matrix.k).1),
        Input::Ready { .. } => None,
    }
}

/// `stream[n] += W x[n]`: `stream` is f32 `[rows, out]`, `x` of the element type.
pub fn add(gpu: &Gpu, element: Element, matrix: &Matrix, x: Ptr, rows: usize, stream: Ptr) -> Call {
    let params = params::ProductTo { product: product(gpu, matrix, &Input::Ready { x, rows }), to: stream };
    // There is no norm, so that the small one takes rows as they are.
    let few = (rows <= FUSED_ROWS).then_some(0);
    call(gpu, matrix, ("add", element), matrix.rows.div_ceil(16), few, rows, params)
}

/// `logits[n] = W x[n]`, f32 `[rows, out]`.
pub fn head(gpu: &Gpu, element: Element, matrix: &Matrix, input: &Input, logits: Ptr) -> Call {
    let params = params::ProductTo { product: product(gpu, matrix, input), to: logits };
    call(gpu, matrix, ("head", element), matrix.rows.div_ceil(16), few(matrix, input), input.rows(), params)
}

/// `hidden[n] = SiLU(gate x[n]) * (up x[n])`, of the element type `[rows, out / 2]`; the gate's rows stand above the up's.
pub fn gate_up(gpu: &Gpu, element: Element, matrix: &Matrix, input: &Input, hidden: Ptr) -> Call {
    assert!(matrix.rows.is_multiple_of(16), "{} rows of gate and up, no multiple of 16", matrix.rows);
    let params = params::ProductTo { product: product(gpu, matrix, input), to: hidden };
    call(gpu, matrix, ("gate_up", element), matrix.rows / 16, few(matrix, input), input.rows(), params)
}

/// Queries, turned, of the element type `[rows, heads, dim]`; keys, turned, and values into the cache. `rope` is f32
/// `[positions, dim]`: a position's cosines, then its sines.
pub fn qkv(
    gpu: &Gpu,
    element: Element,
    matrix: &Matrix,
    input: &Input,
    cache: &Paged,
    rope: Ptr,
    queries: Ptr,
) -> Call {
    let Paged { heads, kv_heads, dim, .. } = *cache;
    assert!(dim.is_multiple_of(16), "heads of {dim}, no multiple of 16");
    assert_eq!(matrix.rows, (heads + 2 * kv_heads) * dim, "rows of queries, keys and values");
    let params = params::Qkv { product: product(gpu, matrix, input), cache: cache.params(), rope, queries };
    call(gpu, matrix, ("qkv", element), matrix.rows / 16, few(matrix, input), input.rows(), params)
}

/// `y = x w^T`, or `y += ...`, by the device's library, for more rows than the products here take: `x` is `[rows, k]` and `w`
/// `[out, k]` of the element type, `y` `[rows, out]` of it or f32, its rows `y_stride` values apart. Its sums hang on the number of
/// rows.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    pub element: Element,
    pub rows: usize,
    pub k: usize,
    pub out: usize,
    pub x: Ptr,
    pub w: Ptr,
    pub y: Ptr,
    pub y_stride: usize,
    pub kind: Out,
}

/// What becomes of the library's product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    Element,
    AddF32,
}
