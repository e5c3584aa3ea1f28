//! Memory for packed panels, on cache-line borders. Refuses to know what is in it.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

use crate::fresh::ask_for_huge_pages;
use crate::pool::Pool;

/// What a load of 512 bits wants.
const LINE_BYTES: usize = 64;

pub struct Buffer {
    first: *mut u8,
    layout: Layout,
}

// SAFETY: plain bytes that nobody writes after `Buffer::new`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

struct Raw(*mut u8);

// SAFETY: the units of `Buffer::new` write disjoint parts.
unsafe impl Sync for Raw {}

impl Raw {
    fn at(&self, offset: usize) -> *mut u8 {
        self.0.wrapping_add(offset)
    }
}

impl Buffer {
    /// `count` pieces of `size` bytes; `fill` gets each piece zeroed. The memory is first touched by the thread that fills
    /// it.
    pub fn new(count: usize, size: usize, pool: &Pool, fill: impl Fn(usize, &mut [u8]) + Sync) -> Buffer {
        let layout = Layout::from_size_align((count * size).max(1), LINE_BYTES).expect("a weight fits in memory");
        // SAFETY: the layout is not empty.
        let first = unsafe { alloc(layout) };
        if first.is_null() {
            handle_alloc_error(layout);
        }
        ask_for_huge_pages(first, layout.size());
        let (buffer, raw) = (Buffer { first, layout }, Raw(first));
        pool.run(count, |piece| {
            let at = raw.at(piece * size);
            // SAFETY: within the allocation, and each piece belongs to one unit, which is claimed once.
            let bytes = unsafe {
                at.write_bytes(0, size);
                std::slice::from_raw_parts_mut(at, size)
            };
            fill(piece, bytes);
        });
        buffer
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: every byte was written by `new`, and is not written again.
        unsafe { std::slice::from_raw_parts(self.first, self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, once.
        unsafe { dealloc(self.first, self.layout) }
    }
}
