//! Calls of attention over the paged cache (`crates/kernels/cuda/{cache,decode,prefill}.cuh`). Refuses to know who holds a block.

use super::call::{Call, Element};
use super::params::{self, Ptr};

/// Positions per block of the cache.
pub const BLOCK: usize = 64;
const DECODE_THREADS: u32 = 64;
const DECODE_HEADS: usize = 8;
/// The most segments that one row's positions are split into.
const MOST_SEGMENTS: usize = 32;
const PREFILL_THREADS: u32 = 128;
const PREFILL_PAIRS: usize = 64;

/// How a layer's keys and values lie, and whose rows are written.
#[derive(Clone, Copy, Debug)]
pub struct Paged {
    /// `[blocks, kv_heads, 64, dim]`
    pub keys: Ptr,
    /// `[blocks, kv_heads, dim, 64]`
    pub values: Ptr,
    /// `[rows, table_blocks]` u32
    pub tables: Ptr,
    /// `[rows]` u32; `u32::MAX` where a row is not in use.
    pub positions: Ptr,
    pub table_blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Of a head; a multiple of 16.
    pub dim: usize,
}

impl Paged {
    pub(super) fn params(&self) -> params::Cache {
        let int = |v: usize| v as i32;
        params::Cache {
            keys: self.keys,
            values: self.values,
            tables: self.tables,
            positions: self.positions,
            table_blocks: int(self.table_blocks),
            heads: int(self.heads),
            kv_heads: int(self.kv_heads),
            dim: int(self.dim),
        }
    }
}

/// Bytes of the two buffers that `decode` needs for so many rows: what segments leave behind, and how many are done, which must be
/// zero before the first launch and is zero again after each.
pub fn decode_scratch(rows: usize, heads: usize, kv_heads: usize, dim: usize) -> (usize, usize) {
    let parts = (heads / kv_heads).div_ceil(DECODE_HEADS);
    (rows * heads * MOST_SEGMENTS * (dim + 2) * 4, rows * kv_heads * parts * 4)
}

fn checked(cache: &Paged) {
    let Paged { heads, kv_heads, dim, .. } = *cache;
    assert!(dim == 64 || dim == 128, "heads of {dim}; 64 or 128");
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads}");
}

pub(super) fn log2(scale: f32) -> f32 {
    scale * std::f32::consts::LOG2_E
}

/// One query per row, over all its positions; `queries` and `out` are `[rows, heads, dim]` of the element type. A row that is not in
/// use gets zeros. `segments` blocks share out a row's segments: it changes the time and no bit.
#[allow(clippy::too_many_arguments)]
pub fn decode(
    element: Element,
    cache: &Paged,
    rows: usize,
    scale: f32,
    queries: Ptr,
    (partial, done): (Ptr, Ptr),
    out: Ptr,
    segments: usize,
) -> Call {
    checked(cache);
    let parts = (cache.heads / cache.kv_heads).div_ceil(DECODE_HEADS);
    let rows_ = rows as i32;
    let params =
        params::Decode { cache: cache.params(), queries, out, partial, done, scale_log2: log2(scale), rows: rows_ };
    let grid = [segments.clamp(1, MOST_SEGMENTS) as u32, (cache.kv_heads * parts) as u32, rows as u32];
    Call::new(format!("decode_{}_{}", element.name(), cache.dim), grid, DECODE_THREADS, 0, params)
}

/// The tiles of a packed list of rows for `prefill`: `[first row, rows]` each. `runs` are the rows that follow one another in one
/// sequence at positions that do: (first row, rows).
pub fn prefill_tiles(runs: &[(usize, usize)], heads: usize, kv_heads: usize) -> Vec<[u32; 2]> {
    let most = PREFILL_PAIRS / (heads / kv_heads);
    assert!(most > 0, "{heads} heads over {kv_heads}: more than {PREFILL_PAIRS} in a group");
    let cut = |&(first, rows): &(usize, usize)| {
        (0..rows).step_by(most).map(move |at| [(first + at) as u32, (rows - at).min(most) as u32])
    };
    runs.iter().flat_map(cut).collect()
}

/// Rows of prompts, each over the positions up to its own, which must be in the cache. `tiles` holds `tile_count` of
/// `prefill_tiles` on the device.
pub fn prefill(
    element: Element,
    cache: &Paged,
    scale: f32,
    queries: Ptr,
    (tiles, tile_count): (Ptr, usize),
    out: Ptr,
) -> Call {
    checked(cache);
    let params = params::Prefill { cache: cache.params(), queries, out, tiles, scale_log2: log2(scale), rows: 0 };
    // Keys and values of two blocks.
    let shared = 2 * 2 * BLOCK * cache.dim * 2;
    let name = format!("prefill_{}_{}", element.name(), cache.dim);
    Call::new(name, [tile_count as u32, cache.kv_heads as u32, 1], PREFILL_THREADS, shared, params)
}
