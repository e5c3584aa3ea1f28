//! One layer's keys and values, in the order the attention kernel reads them. Refuses to know who holds a block.
//!
//! The layer is an arena of blocks; a block is 64 positions of all key/value heads. Keys are `[block][head][dim][64]`, so
//! that a vector lane is a position; values are `[block][head][64][width]`, `width` being `dim` rounded up to 16, so that a
//! lane is an output feature: neither product sums across lanes. The memory comes zeroed from the system and is not touched
//! before its positions are written: a cache costs what was in use at once.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::places::Places;
use crate::linear::LANES;
use crate::linear::tile::Element;
use crate::pool::{Pool, Shares};

/// Positions in a block: what the online softmax takes at once, whatever runs beside it.
pub const BLOCK: usize = 64;

const LINE_BYTES: usize = 64;

/// Rows that one unit of work stores, at least.
const ROWS_PER_UNIT: usize = 32;

/// A value the cache may hold.
pub trait Stored: Element + Send + Sync + 'static {
    fn put(from: &[f32], to: &mut [Self]);
}

impl Stored for f32 {
    fn put(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Stored for f16 {
    fn put(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
        // What f16 cannot hold becomes its largest value: an infinity would outlive its prediction in the block.
        for to in to {
            if to.is_infinite() {
                *to = if to.is_sign_negative() { f16::MIN } else { f16::MAX };
            }
        }
    }
}

/// Zeroed memory on a cache-line border that the system maps in as it is touched.
struct Zeroed<T> {
    words: Vec<u64>,
    offset: usize,
    len: usize,
    _of: std::marker::PhantomData<T>,
}

impl<T: Stored> Zeroed<T> {
    fn new(len: usize) -> Zeroed<T> {
        // A vector of zero integers comes from calloc, which hands out fresh pages untouched.
        let words = vec![0u64; (len * size_of::<T>() + LINE_BYTES).div_ceil(8)];
        let offset = words.as_ptr().align_offset(LINE_BYTES) * 8;
        Zeroed { words, offset, len, _of: std::marker::PhantomData }
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    fn slice(&self) -> &[T] {
        // SAFETY: `len` values fit behind the offset, all bits zero is a value, and f32 and f16 need less than 64 bytes'
        // alignment.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast::<u8>().add(self.offset).cast(), self.len) }
    }

    fn slice_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe {
            std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<u8>().add(self.offset).cast(), self.len)
        }
    }
}

/// The sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Of 64 positions each.
    pub blocks: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

pub struct Store<T> {
    pub shape: Shape,
    keys: Zeroed<T>,
    values: Zeroed<T>,
}

impl<T: Stored> Store<T> {
    pub fn new(shape: Shape) -> Store<T> {
        let positions = shape.blocks * shape.kv_heads * BLOCK;
        Store {
            shape,
            keys: Zeroed::new(positions * shape.head_dim),
            values: Zeroed::new(positions * shape.head_dim.next_multiple_of(LANES)),
        }
    }

    /// Once every position has been written.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// The width of a row in a block of values: whole vectors.
    pub fn value_width(&self) -> usize {
        self.shape.head_dim.next_multiple_of(LANES)
    }

    /// One head's part of a block: keys `[dim][64]` and values `[64][value_width]`.
    pub fn block(&self, block: usize, head: usize) -> (&[T], &[T]) {
        let Shape { blocks, kv_heads, head_dim } = self.shape;
        assert!(block < blocks && head < kv_heads, "block {block} of {blocks}, head {head} of {kv_heads}");
        let (index, keys, values) = (block * kv_heads + head, BLOCK * head_dim, BLOCK * self.value_width());
        (&self.keys.slice()[index * keys..][..keys], &self.values.slice()[index * values..][..values])
    }

    /// Stores one position per row: `k` and `v` hold `[kv_heads, dim]` per row, rows `stride` apart.
    pub fn write(&mut self, k: (&[f32], usize), v: (&[f32], usize), places: &Places, pool: &Pool) {
        let Shape { blocks, kv_heads, head_dim: dim } = self.shape;
        let (rows, width) = (places.rows(), self.value_width());
        // One unit per head, so that two threads never write into one block's part.
        let units = if rows * kv_heads < ROWS_PER_UNIT { 1 } else { kv_heads };
        let keys = Shares::new(self.keys.slice_mut());
        let values = Shares::new(self.values.slice_mut());
        pool.run(units, |unit| {
            let heads = if units == 1 { 0..kv_heads } else { unit..unit + 1 };
            for head in heads {
                for row in 0..rows {
                    let (block, lane) = places.place(row);
                    assert!(block < blocks, "block {block} of {blocks}");
                    let index = block * kv_heads + head;
                    // SAFETY: a head's part of every block belongs to one unit, which handles row after row.
                    let (keys, values) = unsafe {
                        let at = index * BLOCK * width + lane * width;
                        (keys.share(index * BLOCK * dim, BLOCK * dim), values.share(at, dim))
                    };
                    // The value's place serves as the buffer of the key in its stored type.
                    T::put(&k.0[row * k.1 + head * dim..][..dim], values);
                    for (key, column) in values.iter().zip(keys.chunks_exact_mut(BLOCK)) {
                        column[lane] = *key;
                    }
                    T::put(&v.0[row * v.1 + head * dim..][..dim], values);
                }
            }
        });
    }
}
