//! One layer's keys and values, in the order the attention kernel reads them. Refuses to know who holds a slot.
//!
//! A slot's head is a run of blocks of 64 positions. A block of keys is `[dim][64]`, so that a vector lane is a position;
//! a block of values is `[64][dim]`, so that a lane is an output feature: neither product sums across lanes. The memory
//! comes zeroed from the system and is not touched before its positions are written: a cache costs what is in use.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::linear::LANES;
use crate::linear::tile::Element;
use crate::pool::Pool;

/// Positions in a block: what the online softmax takes at once, whatever runs beside it.
pub const BLOCK: usize = 64;

const LINE_BYTES: usize = 64;

/// Rows that one unit of work stores, at least.
const ROWS_PER_UNIT: usize = 32;

/// A value the cache may hold.
pub trait Stored: Element + Send + Sync + 'static {
    fn put(from: &[f32], to: &mut [Self]);
    fn zero() -> Self;
}

impl Stored for f32 {
    fn put(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn zero() -> f32 {
        0.0
    }
}

impl Stored for f16 {
    fn put(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
        // What f16 cannot hold becomes its largest value: an infinity would outlive its prediction in the slot.
        for to in to {
            if to.is_infinite() {
                *to = if to.is_sign_negative() { f16::MIN } else { f16::MAX };
            }
        }
    }

    fn zero() -> f16 {
        f16::ZERO
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
    pub slots: usize,
    pub context_tokens: usize,
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
        let heads = shape.slots * shape.kv_heads;
        let positions = heads * shape.context_tokens.next_multiple_of(BLOCK);
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

    fn index(&self, slot: usize, head: usize, position: usize) -> usize {
        let Shape { slots, context_tokens, kv_heads, .. } = self.shape;
        assert!(slot < slots && head < kv_heads && position < context_tokens, "slot {slot}, position {position}");
        (slot * kv_heads + head) * context_tokens.div_ceil(BLOCK) + position / BLOCK
    }

    /// The block of keys `[dim][64]` and of values `[64][value_width]` that `position` is in.
    pub fn block(&self, slot: usize, head: usize, position: usize) -> (&[T], &[T]) {
        let (index, keys, values) =
            (self.index(slot, head, position), BLOCK * self.shape.head_dim, BLOCK * self.value_width());
        (&self.keys.slice()[index * keys..][..keys], &self.values.slice()[index * values..][..values])
    }

    /// Stores one position per row: `k` and `v` hold `[kv_heads, dim]` per row, rows `stride` apart.
    pub fn write(&mut self, k: (&[f32], usize), v: (&[f32], usize), slots: &[u32], positions: &[u32], pool: &Pool) {
        let Shape { kv_heads, head_dim: dim, .. } = self.shape;
        let (rows, width) = (slots.len(), self.value_width());
        let places: Vec<usize> =
            (0..rows).map(|row| self.index(slots[row] as usize, 0, positions[row] as usize)).collect();
        let blocks = self.shape.context_tokens.div_ceil(BLOCK);
        // One unit per head, so that two threads never write into one block.
        let units = if rows * kv_heads < ROWS_PER_UNIT { 1 } else { kv_heads };
        let keys = crate::pool::Shares::new(self.keys.slice_mut());
        let values = crate::pool::Shares::new(self.values.slice_mut());
        pool.run(units, |unit| {
            let heads = if units == 1 { 0..kv_heads } else { unit..unit + 1 };
            let mut stored = vec![T::zero(); dim];
            for head in heads {
                for row in 0..rows {
                    let (index, lane) = (places[row] + head * blocks, positions[row] as usize % BLOCK);
                    // SAFETY: the blocks of a head belong to one unit, which handles row after row.
                    let (keys, values) = unsafe {
                        let at = index * BLOCK * width + lane * width;
                        (keys.share(index * BLOCK * dim, BLOCK * dim), values.share(at, dim))
                    };
                    T::put(&k.0[row * k.1 + head * dim..][..dim], &mut stored);
                    for (key, column) in stored.iter().zip(keys.chunks_exact_mut(BLOCK)) {
                        column[lane] = *key;
                    }
                    T::put(&v.0[row * v.1 + head * dim..][..dim], values);
                }
            }
        });
    }
}
