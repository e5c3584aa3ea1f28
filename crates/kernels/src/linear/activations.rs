//! Rows of activations as the quantised kernels read them: int8 in blocks of 32, a scale and a sum per block. A row is
//! quantised by itself, so it is the same whatever stands beside it.

use super::layout::BLOCK;
use crate::math::ROUND;
use crate::pool::{Pool, Shares};
use crate::simd::per_path;

/// Fewer rows than this are quantised by the caller alone.
const ROWS_PER_UNIT: usize = 8;

#[derive(Default)]
pub struct Activations {
    pub in_: usize,
    pub values: Vec<i8>,
    pub scales: Vec<f32>,
    /// Sum of the block's integers, for weights whose zero is not 0.
    pub sums: Vec<i32>,
    /// `scale * sum`, for weights with a minimum.
    pub scaled_sums: Vec<f32>,
}

impl Activations {
    /// Quantises `rows` rows of `x`, `stride` apart. The buffers are kept from call to call.
    pub fn quantise(&mut self, x: &[f32], stride: usize, rows: usize, in_: usize, pool: &Pool) {
        let blocks = in_ / BLOCK;
        self.in_ = in_;
        self.values.resize(rows * in_, 0);
        self.scales.resize(rows * blocks, 0.0);
        self.sums.resize(rows * blocks, 0);
        self.scaled_sums.resize(rows * blocks, 0.0);
        let values = Shares::new(&mut self.values);
        let scales = Shares::new(&mut self.scales);
        let sums = Shares::new(&mut self.sums);
        let scaled_sums = Shares::new(&mut self.scaled_sums);
        pool.run(rows.div_ceil(ROWS_PER_UNIT), |unit| {
            for row in unit * ROWS_PER_UNIT..rows.min((unit + 1) * ROWS_PER_UNIT) {
                // SAFETY: a row belongs to one unit, and every unit is claimed once.
                let (values, scales, sums, scaled_sums) = unsafe {
                    (
                        values.share(row * in_, in_),
                        scales.share(row * blocks, blocks),
                        sums.share(row * blocks, blocks),
                        scaled_sums.share(row * blocks, blocks),
                    )
                };
                quantise_row(pool.simd(), &x[row * stride..][..in_], values, scales, sums, scaled_sums);
            }
        });
    }
}

per_path! {
    fn quantise_row(x: &[f32], values: &mut [i8], scales: &mut [f32], sums: &mut [i32], scaled_sums: &mut [f32]) {
        for (b, (x, values)) in x.chunks_exact(BLOCK).zip(values.chunks_exact_mut(BLOCK)).enumerate() {
            // The bits of absolute values are ordered as the values are, with NaN on top: NaN stays visible.
            let largest = f32::from_bits(x.iter().fold(0, |most, v| most.max(v.abs().to_bits())));
            let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
            let mut sum = 0;
            for (x, value) in x.iter().zip(values) {
                *value = x.mul_add(inverse, ROUND).to_bits() as i8;
                sum += *value as i32;
            }
            scales[b] = largest / 127.0;
            sums[b] = sum;
            scaled_sums[b] = scales[b] * sum as f32;
        }
    }
}
