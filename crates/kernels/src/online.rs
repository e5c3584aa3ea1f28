//! One block of an online softmax: scores become weights relative to the largest score so far, and what was summed before
//! fades (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Refuses to know keys and values.

use crate::linear::LANES;
use crate::math::exp;
use crate::simd::per_path;

/// The largest score so far, and the sum of the weights relative to it.
#[derive(Clone, Copy)]
pub struct Softmax {
    pub largest: f32,
    pub total: f32,
}

pub const NOTHING_SEEN: Softmax = Softmax { largest: f32::NEG_INFINITY, total: 0.0 };

per_path! {
    /// Turns a block's scores (whole lanes) into weights relative to the largest score so far, brings `softmax` up to date,
    /// and gives what older sums fade by. Scores behind the first `visible` weigh nothing.
    pub fn weigh(scores: &mut [f32], visible: usize, softmax: &mut Softmax) -> f32 {
        let (scores, rest) = scores.split_at_mut(visible.next_multiple_of(LANES));
        rest.fill(0.0);
        scores[visible..].fill(f32::NEG_INFINITY);
        let mut most = [f32::NEG_INFINITY; LANES];
        for scores in scores.chunks_exact(LANES) {
            for (most, score) in most.iter_mut().zip(scores) {
                *most = if *score > *most { *score } else { *most };
            }
        }
        let mut lanes = LANES;
        while lanes > 1 {
            lanes /= 2;
            for i in 0..lanes {
                most[i] = if most[i + lanes] > most[i] { most[i + lanes] } else { most[i] };
            }
        }
        let before = softmax.largest;
        let largest = if most[0] > before { most[0] } else { before };
        let mut sums = [0f32; LANES];
        for scores in scores.chunks_exact_mut(LANES) {
            for (sum, score) in sums.iter_mut().zip(scores) {
                *score = exp(*score - largest);
                *sum += *score;
            }
        }
        let mut lanes = LANES;
        while lanes > 1 {
            lanes /= 2;
            for i in 0..lanes {
                sums[i] += sums[i + lanes];
            }
        }
        // The exponential of 0 is 1, and most blocks bring nothing larger.
        let faded = if before == largest { 1.0 } else { exp(before - largest) };
        *softmax = Softmax { largest, total: softmax.total.mul_add(faded, sums[0]) };
        faded
    }
}

per_path! {
    /// Brings sums over earlier and over later positions together.
    pub fn fold(sums: &mut [f32], softmax: &mut Softmax, later_sums: &[f32], later: Softmax) {
        let largest = if later.largest > softmax.largest { later.largest } else { softmax.largest };
        let (faded, by) = (exp(softmax.largest - largest), exp(later.largest - largest));
        for (sum, later) in sums.iter_mut().zip(later_sums) {
            *sum = sum.mul_add(faded, later * by);
        }
        *softmax = Softmax { largest, total: softmax.total.mul_add(faded, later.total * by) };
    }
}
