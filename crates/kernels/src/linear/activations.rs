//! Rows of activations as the quantised kernels read them: 16-bit integers in blocks of 32, a scale and a sum per block.
//! A row is quantised by itself, so it is the same whatever stands beside it.
//!
//! Eight bits are not enough: SmolLM2's first token after "What is the capital of France?" leads by 0.3 % of the largest
//! logit, and rounding activations to 8 bits in blocks of 32 moves the logits by 5 % (see models/llama/golden).
//!
//! Within every four inputs the order is 0, 2, 1, 3: the kernels widen weights from bytes to 16 bits by taking the even
//! bytes of a register, then the odd ones.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::layout::BLOCK;
use crate::math::ROUND;
use crate::pool::{Pool, Shares};
use crate::simd::{Level, Simd};

/// Fewer rows than this are quantised by the caller alone.
const ROWS_PER_UNIT: usize = 8;

/// The integer of a block's largest value.
const LARGEST: f32 = i16::MAX as f32;

#[derive(Default)]
pub struct Activations {
    pub in_: usize,
    pub values: Vec<i16>,
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

/// One row, block by block.
fn quantise_row(
    simd: Simd,
    x: &[f32],
    values: &mut [i16],
    scales: &mut [f32],
    sums: &mut [i32],
    scaled_sums: &mut [f32],
) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(values.as_chunks_mut::<BLOCK>().0);
    let results = scales.iter_mut().zip(sums).zip(scaled_sums);
    for ((x, values), ((scale, sum), scaled_sum)) in blocks.zip(results) {
        (*scale, *sum) = match simd.level() {
            Level::Portable => quantise(x, values),
            // SAFETY: a `Simd` of these levels exists only if the processor has AVX2 and FMA.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 => unsafe { avx2::quantise(x, values) },
        };
        *scaled_sum = *scale * *sum as f32;
    }
}

/// The block's scale and sum. What the vector form must equal.
fn quantise(x: &[f32; BLOCK], values: &mut [i16; BLOCK]) -> (f32, i32) {
    // The bits of absolute values are ordered as the values are, with NaN on top: NaN stays visible.
    let largest = f32::from_bits(x.iter().fold(0, |most, v| most.max(v.abs().to_bits())));
    let (scale, inverse) = scale(largest);
    for (x, values) in x.chunks_exact(4).zip(values.chunks_exact_mut(4)) {
        for (x, value) in [x[0], x[2], x[1], x[3]].into_iter().zip(values) {
            *value = x.mul_add(inverse, ROUND).to_bits() as i16;
        }
    }
    (scale, values.iter().map(|v| *v as i32).sum())
}

/// From the largest absolute value of a block: its scale, and what its values are multiplied with.
#[inline(always)]
pub fn scale(largest: f32) -> (f32, f32) {
    (largest / LARGEST, if largest == 0.0 { 0.0 } else { LARGEST / largest })
}
