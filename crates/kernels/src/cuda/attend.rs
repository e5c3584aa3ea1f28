//! The call of attention over whole images and texts (`crates/kernels/cuda/attend.cuh` has the floors). Refuses to know whose keys
//! they are.

use super::attention::log2;
use super::call::{Call, Element};
use super::params::{self, Ptr};

/// The width of a head that there is a kernel for.
pub const DIM: usize = 64;
const THREADS: u32 = 128;
const ROWS: usize = 64;
/// Keys and values, two buffers of 64 rows each.
const SHARED_BYTES: usize = 2 * 2 * 64 * DIM * 2;

/// Rows of the element type, `stride` values apart; both in multiples of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub at: Ptr,
    pub stride: usize,
}

/// Queries of a batch and what they look at: `parts` times `rows` rows over `seen` positions of their part.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub parts: usize,
    pub rows: usize,
    pub seen: usize,
    pub heads: usize,
    /// Row `r` of a part sees positions up to its own, and not all of them.
    pub causal: bool,
    pub scale: f32,
}

/// `out[row] = softmax(scale q K^T) V` for each head of `DIM` neighbouring values; `out` is `[parts * rows, heads * DIM]`.
pub fn attend(element: Element, batch: &Batch, queries: Rows, keys: Rows, values: Rows, out: Ptr) -> Call {
    let Batch { parts, rows, seen, heads, causal, scale } = *batch;
    assert!(rows > 0 && seen > 0 && parts > 0 && heads > 0, "attention over nothing: {batch:?}");
    for Rows { at, stride } in [queries, keys, values] {
        assert!(at.0.is_multiple_of(16) && stride.is_multiple_of(8) && stride >= heads * DIM, "rows {stride} apart");
    }
    let int = |v: usize| v as i32;
    let params = params::Attend {
        queries: queries.at,
        keys: keys.at,
        values: values.at,
        out,
        query_stride: int(queries.stride),
        key_stride: int(keys.stride),
        value_stride: int(values.stride),
        rows: int(rows),
        seen: int(seen),
        ahead: if causal { 1 } else { int(seen) },
        scale_log2: log2(scale),
        heads: int(heads),
    };
    let grid = [rows.div_ceil(ROWS) as u32, heads as u32, parts as u32];
    Call::new(format!("attend_{}_{DIM}", element.name()), grid, THREADS, SHARED_BYTES, params)
}
