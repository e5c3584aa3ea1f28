//! The storage formats a weight may come in, and the size of their blocks. Refuses to know where the bytes came from.

use candle_core::quantized::GgmlDType;

/// A weight's storage format, as GGUF and safetensors name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

const ALL: &[(Format, u32, &str)] = &[
    (Format::F32, 0, "F32"),
    (Format::F16, 1, "F16"),
    (Format::Q4_0, 2, "Q4_0"),
    (Format::Q4_1, 3, "Q4_1"),
    (Format::Q5_0, 6, "Q5_0"),
    (Format::Q5_1, 7, "Q5_1"),
    (Format::Q8_0, 8, "Q8_0"),
    (Format::Q2_K, 10, "Q2_K"),
    (Format::Q3_K, 11, "Q3_K"),
    (Format::Q4_K, 12, "Q4_K"),
    (Format::Q5_K, 13, "Q5_K"),
    (Format::Q6_K, 14, "Q6_K"),
    (Format::BF16, 30, "BF16"),
];

impl Format {
    /// The format a GGUF tensor's type number stands for; none for those nobody ships a Llama in.
    pub fn from_ggml(number: u32) -> Option<Format> {
        ALL.iter().find(|(_, n, _)| *n == number).map(|(format, _, _)| *format)
    }

    pub fn name(self) -> &'static str {
        ALL.iter().find(|(format, _, _)| *format == self).map_or("?", |(_, _, name)| name)
    }

    /// How many values one block holds; 1 for the plain formats.
    pub fn block_len(self) -> usize {
        self.ggml().block_size()
    }

    /// How many bytes one block takes.
    pub fn block_bytes(self) -> usize {
        self.ggml().type_size()
    }

    /// The bytes of an `[out, in_]` weight, or why there is no such weight in this format.
    pub fn size(self, out: usize, in_: usize) -> Result<usize, String> {
        let block = self.block_len();
        if out == 0 || in_ == 0 || !in_.is_multiple_of(block) {
            return Err(format!("no {} weight of [{out}, {in_}]: rows come in blocks of {block}", self.name()));
        }
        (in_ / block)
            .checked_mul(self.block_bytes())
            .and_then(|row| row.checked_mul(out))
            .ok_or_else(|| format!("a {} weight of [{out}, {in_}] is larger than memory", self.name()))
    }

    pub(crate) fn ggml(self) -> GgmlDType {
        match self {
            Format::F32 => GgmlDType::F32,
            Format::F16 => GgmlDType::F16,
            Format::BF16 => GgmlDType::BF16,
            Format::Q4_0 => GgmlDType::Q4_0,
            Format::Q4_1 => GgmlDType::Q4_1,
            Format::Q5_0 => GgmlDType::Q5_0,
            Format::Q5_1 => GgmlDType::Q5_1,
            Format::Q8_0 => GgmlDType::Q8_0,
            Format::Q2_K => GgmlDType::Q2K,
            Format::Q3_K => GgmlDType::Q3K,
            Format::Q4_K => GgmlDType::Q4K,
            Format::Q5_K => GgmlDType::Q5K,
            Format::Q6_K => GgmlDType::Q6K,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_number_and_named() {
        for (format, number, name) in ALL {
            assert_eq!(Format::from_ggml(*number), Some(*format));
            assert_eq!(format.name(), *name);
        }
        assert_eq!(Format::from_ggml(9), None);
    }

    #[test]
    fn a_row_that_is_not_whole_blocks_is_refused() {
        assert_eq!(Format::Q4_1.size(16, 64), Ok(16 * 2 * 20));
        assert!(Format::Q4_1.size(16, 48).unwrap_err().contains("blocks of 32"));
        assert!(Format::F32.size(usize::MAX, 1 << 40).unwrap_err().contains("larger than memory"));
    }
}
