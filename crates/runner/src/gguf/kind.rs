//! The element types a GGUF tensor can have: id, name, elements per block, bytes per block.

use std::fmt;

/// Names are ggml's own. `Q4_1`: 32 elements in 20 bytes (f16 scale, f16 minimum, 32 nibbles), and so on.
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
}

use GgmlType::*;

/// (id in the file, type, elements per block, bytes per block)
const TABLE: [(u32, GgmlType, usize, usize); 20] = [
    (0, F32, 1, 4),
    (1, F16, 1, 2),
    (2, Q4_0, 32, 18),
    (3, Q4_1, 32, 20),
    (6, Q5_0, 32, 22),
    (7, Q5_1, 32, 24),
    (8, Q8_0, 32, 34),
    (9, Q8_1, 32, 36),
    (10, Q2_K, 256, 84),
    (11, Q3_K, 256, 110),
    (12, Q4_K, 256, 144),
    (13, Q5_K, 256, 176),
    (14, Q6_K, 256, 210),
    (15, Q8_K, 256, 292),
    (24, I8, 1, 1),
    (25, I16, 1, 2),
    (26, I32, 1, 4),
    (27, I64, 1, 8),
    (28, F64, 1, 8),
    (30, BF16, 1, 2),
];

/// Types that exist and that this reader does not size, so that the refusal can name them.
const OTHERS: [(u32, &str); 14] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl GgmlType {
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        if let Some((_, kind, _, _)) = TABLE.iter().find(|row| row.0 == id) {
            return Ok(*kind);
        }
        let name = OTHERS.iter().find(|row| row.0 == id).map_or("unknown", |row| row.1);
        Err(format!(
            "ggml type {id} ({name}) is not one of the {} types read here (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, ...)",
            TABLE.len()
        ))
    }

    /// Elements that share one block; a row is a whole number of blocks.
    pub fn block_elements(self) -> usize {
        self.row().2
    }

    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    fn row(self) -> &'static (u32, GgmlType, usize, usize) {
        TABLE.iter().find(|row| row.1 == self).expect("every type has its row: see the test")
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_row_and_ids_are_not_repeated() {
        let mut ids: Vec<u32> = TABLE.iter().map(|row| row.0).chain(OTHERS.iter().map(|row| row.0)).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), TABLE.len() + OTHERS.len());
        for (id, kind, elements, bytes) in TABLE {
            assert_eq!(GgmlType::from_id(id), Ok(kind));
            assert_eq!((kind.block_elements(), kind.block_bytes()), (elements, bytes));
        }
    }

    #[test]
    fn a_type_that_is_not_read_is_named() {
        assert!(GgmlType::from_id(20).unwrap_err().contains("ggml type 20 (IQ4_NL)"));
        assert!(GgmlType::from_id(77).unwrap_err().contains("ggml type 77 (unknown)"));
    }
}
