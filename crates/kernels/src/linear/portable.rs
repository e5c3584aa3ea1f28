//! The quantised and the plain tile in ordinary Rust: the definition the vector paths must equal bit for bit, and the
//! path of processors without AVX2.

use half::{bf16, f16};

use super::layout::{BLOCK, Blocks, LANES, half_at};
use super::tile::{PlainTile, QuantTile};

/// # Safety
/// See `QuantTile`.
pub unsafe fn quant<B: Blocks>(tile: &QuantTile) {
    for row in 0..tile.rows {
        // SAFETY: the tile's pointers cover `blocks` blocks of the panel and of every row.
        let (panel, x, scales, sums, scaled_sums) = unsafe {
            (
                std::slice::from_raw_parts(tile.panel, tile.blocks * B::BYTES),
                std::slice::from_raw_parts(tile.x.add(row * tile.blocks * BLOCK), tile.blocks * BLOCK),
                std::slice::from_raw_parts(tile.scales.add(row * tile.blocks), tile.blocks),
                std::slice::from_raw_parts(tile.sums.add(row * tile.blocks), tile.blocks),
                std::slice::from_raw_parts(tile.scaled_sums.add(row * tile.blocks), tile.blocks),
            )
        };
        let mut total = [0f32; LANES];
        for (b, block) in panel.chunks_exact(B::BYTES).enumerate() {
            // Activations come as 0, 2, 1, 3 of every four.
            let x = |k: usize| x[b * BLOCK + k / 4 * 4 + [0, 2, 1, 3][k % 4]] as i32;
            let mut dot = [-B::ZERO * sums[b]; LANES];
            for (g, group) in block[..B::VALUES].chunks_exact(4 * LANES).enumerate() {
                for lane in 0..LANES {
                    for j in 0..4 {
                        let value = group[4 * lane + j];
                        dot[lane] += if B::NIBBLES {
                            (value & 15) as i32 * x(4 * g + j) + (value >> 4) as i32 * x(4 * g + 16 + j)
                        } else {
                            value as i8 as i32 * x(4 * g + j)
                        };
                    }
                }
            }
            for lane in 0..LANES {
                let scale = half_at(&block[B::VALUES..], lane) * scales[b];
                total[lane] = (dot[lane] as f32).mul_add(scale, total[lane]);
                if B::MIN {
                    let min = half_at(&block[B::VALUES + 2 * LANES..], lane);
                    total[lane] = min.mul_add(scaled_sums[b], total[lane]);
                }
            }
        }
        // SAFETY: the caller's `y` has `lanes` places in every row.
        unsafe { put(tile.y.add(row * tile.y_stride), &total[..tile.lanes], tile.add) };
    }
}

/// A value a plain panel may hold.
pub trait Plain: Copy {
    fn f32(self) -> f32;
}

impl Plain for f32 {
    fn f32(self) -> f32 {
        self
    }
}

impl Plain for f16 {
    fn f32(self) -> f32 {
        self.to_f32()
    }
}

impl Plain for bf16 {
    fn f32(self) -> f32 {
        self.to_f32()
    }
}

/// # Safety
/// See `PlainTile`.
pub unsafe fn plain<T: Plain>(tile: &PlainTile<T>) {
    for row in 0..tile.rows {
        for panel in 0..tile.panels {
            let mut total = [0f32; LANES];
            for k in 0..tile.k {
                // SAFETY: the tile's pointers cover `k` inputs of every row and panel.
                let (x, w) = unsafe {
                    let w = tile.w.add(k * tile.w_step + panel * tile.panel_step);
                    (*tile.x.add(row * tile.x_stride + k), std::slice::from_raw_parts(w, LANES))
                };
                for lane in 0..LANES {
                    total[lane] = w[lane].f32().mul_add(x, total[lane]);
                }
            }
            let lanes = tile.lanes(panel);
            // SAFETY: the caller's `y` has a place for every lane of every panel in every row.
            unsafe { put(tile.y.add(row * tile.y_stride + panel * LANES), &total[..lanes], tile.add) };
        }
    }
}

/// # Safety
/// `y` must have `total.len()` places, written by nobody else meanwhile.
pub unsafe fn put(y: *mut f32, total: &[f32], add: bool) {
    // SAFETY: the caller's promise.
    let y = unsafe { std::slice::from_raw_parts_mut(y, total.len()) };
    for (y, total) in y.iter_mut().zip(total) {
        *y = if add { *total + *y } else { *total };
    }
}
