//! Values out of a format's blocks, and into the two that weights are rounded to at load. Refuses to know files and layouts of
//! kernels.

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::{QStorage, QTensor};
use half::{bf16, f16};

use crate::Format;

/// Values that share a scale.
const BLOCK: usize = 32;

/// The values of whole blocks (or plain numbers) of any format.
pub fn values(format: Format, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let count = bytes.len() / format.block_bytes() * format.block_len();
    if format.size(1, count) != Ok(bytes.len()) {
        return Err(format!("{} bytes are no blocks of {}", bytes.len(), format.name()));
    }
    let pairs = || bytes.as_chunks::<2>().0.iter();
    Ok(match format {
        Format::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Format::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Format::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        blocks => QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, blocks.ggml())
            .and_then(|storage| QTensor::new(storage, count)?.dequantize(&Device::Cpu)?.to_vec1::<f32>())
            .map_err(|error| error.to_string())?,
    })
}

/// GGUF's Q8_0, nearest, ties to even; a multiple of 32 values.
pub fn q8_0(values: &[f32]) -> Vec<u8> {
    let mut blocks = Vec::with_capacity(values.len() / BLOCK * 34);
    for block in values.chunks_exact(BLOCK) {
        let largest = block.iter().fold(0f32, |most, v| most.max(v.abs()));
        let scale = f16::from_f32(largest / 127.0);
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        blocks.extend(scale.to_le_bytes());
        blocks.extend(block.iter().map(|v| (v * inverse).round_ties_even() as i8 as u8));
    }
    blocks
}

/// GGUF's Q4_0: the value farthest from zero becomes -8; a multiple of 32 values.
pub fn q4_0(values: &[f32]) -> Vec<u8> {
    let mut blocks = Vec::with_capacity(values.len() / BLOCK * 18);
    for block in values.chunks_exact(BLOCK) {
        let farthest = block.iter().fold(0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
        let scale = f16::from_f32(farthest / -8.0);
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        let nibble = |v: f32| ((v * inverse).round_ties_even().clamp(-8.0, 7.0) + 8.0) as u8;
        blocks.extend(scale.to_le_bytes());
        let (low, high) = block.split_at(BLOCK / 2);
        blocks.extend(low.iter().zip(high).map(|(low, high)| nibble(*low) | nibble(*high) << 4));
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn what_was_rounded_is_within_half_a_step_of_what_it_was() {
        let values_before: Vec<f32> = Random::fresh().normal(96).into_iter().chain([0.0; 32]).collect();
        for (format, blocks, steps) in
            [(Format::Q8_0, q8_0(&values_before), 127.0), (Format::Q4_0, q4_0(&values_before), 8.0)]
        {
            let after = values(format, &blocks).unwrap();
            assert_eq!(after.len(), values_before.len());
            for (block, after) in values_before.chunks(BLOCK).zip(after.chunks(BLOCK)) {
                let step = block.iter().fold(0f32, |most, v| most.max(v.abs())) / steps;
                // Q4_0 has no 8: what is as far on the other side loses a whole step. Scales are rounded to f16.
                let allowed = if format == Format::Q4_0 { 1.01 } else { 0.57 } * step;
                for (before, after) in block.iter().zip(after) {
                    assert!((before - after).abs() <= allowed, "{} {before} {after}", format.name());
                }
            }
        }
    }

    #[test]
    fn plain_numbers_are_read_and_half_a_block_is_refused() {
        let numbers = [1.5f32, -0.25];
        let halves: Vec<u8> = numbers.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let brains: Vec<u8> = numbers.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(values(Format::F16, &halves).unwrap(), numbers);
        assert_eq!(values(Format::BF16, &brains).unwrap(), numbers);
        assert!(values(Format::Q8_0, &[0; 33]).unwrap_err().contains("no blocks of Q8_0"));
    }
}
