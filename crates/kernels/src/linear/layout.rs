//! The layout the kernels stream: panels of output features, interleaved so that a vector lane is an output feature and no
//! sum ever runs across lanes. Refuses to know the instructions that read it.
//!
//! A quantised panel of 16 outputs is a run of blocks, one per 32 inputs: for every group of four inputs the four bytes of each of the
//! 16 outputs side by side (which meet four broadcast activations), then 16 scales,
//! then, for Q4_1, 16 minima, both f16. Four-bit values keep GGUF's pairing: the low nibbles are groups 0 to 3, the high
//! ones groups 4 to 7. A plain panel is 16 values per input. Nothing grows: a packed weight is as large as the file's.

use half::f16;

use super::turn::turn;
use crate::format::Format;

/// The f32 lanes of 512 bits: what a tile computes at once.
pub const LANES: usize = 16;

/// Inputs that share one scale, in weights and in activations.
pub const BLOCK: usize = 32;

/// What a panel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F32,
    F16,
    BF16,
    Q8,
    Q4,
    Q4Min,
}

impl Kind {
    /// How a weight of `format` is kept. Formats without a kernel of their own become Q8_0, which holds them with an
    /// error below a 250th of their block's largest value.
    pub fn of(format: Format) -> Kind {
        match format {
            Format::F32 => Kind::F32,
            Format::F16 => Kind::F16,
            Format::BF16 => Kind::BF16,
            Format::Q4_0 => Kind::Q4,
            Format::Q4_1 => Kind::Q4Min,
            Format::Q8_0 | Format::Q5_0 | Format::Q5_1 => Kind::Q8,
            Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K => Kind::Q8,
        }
    }

    /// The format whose bytes `pack` takes for this kind.
    pub fn source(self) -> Format {
        match self {
            Kind::F32 => Format::F32,
            Kind::F16 => Format::F16,
            Kind::BF16 => Format::BF16,
            Kind::Q8 => Format::Q8_0,
            Kind::Q4 => Format::Q4_0,
            Kind::Q4Min => Format::Q4_1,
        }
    }

    pub fn quantised(self) -> bool {
        matches!(self, Kind::Q8 | Kind::Q4 | Kind::Q4Min)
    }

    /// Output features in a panel.
    pub fn width(self) -> usize {
        if self.quantised() { LANES } else { 4 * LANES }
    }

    pub fn panel_bytes(self, in_: usize) -> usize {
        self.source().size(self.width(), in_).expect("checked when the weight was made")
    }
}

/// One quantised block of a panel, as constants for the kernels.
pub trait Blocks {
    /// Bytes of the values; the scales follow.
    const VALUES: usize;
    const BYTES: usize;
    /// What stands for zero among unsigned nibbles: subtracted, times the sum of the activations, from the dot product.
    const ZERO: i32;
    const MIN: bool;
    const NIBBLES: bool;
}

pub struct Q8;
pub struct Q4;
pub struct Q4Min;

impl Blocks for Q8 {
    const VALUES: usize = BLOCK * LANES;
    const BYTES: usize = Self::VALUES + 2 * LANES;
    const ZERO: i32 = 0;
    const MIN: bool = false;
    const NIBBLES: bool = false;
}

impl Blocks for Q4 {
    const VALUES: usize = BLOCK * LANES / 2;
    const BYTES: usize = Self::VALUES + 2 * LANES;
    const ZERO: i32 = 8;
    const MIN: bool = false;
    const NIBBLES: bool = true;
}

impl Blocks for Q4Min {
    const VALUES: usize = BLOCK * LANES / 2;
    const BYTES: usize = Self::VALUES + 4 * LANES;
    const ZERO: i32 = 0;
    const MIN: bool = true;
    const NIBBLES: bool = true;
}

/// Packs the rows of neighbouring output features, in `kind.source()`, into the first lanes of a panel that is all zeros.
pub fn pack(kind: Kind, rows: &[&[u8]], panel: &mut [u8]) {
    match kind {
        Kind::F32 => turn::<4>(rows, panel, 4 * kind.width()),
        Kind::F16 | Kind::BF16 => turn::<2>(rows, panel, 2 * kind.width()),
        Kind::Q8 => pack_blocks::<Q8, 2>(rows, panel),
        Kind::Q4 => pack_blocks::<Q4, 2>(rows, panel),
        Kind::Q4Min => pack_blocks::<Q4Min, 4>(rows, panel),
    }
}

fn pack_blocks<B: Blocks, const HEAD: usize>(rows: &[&[u8]], panel: &mut [u8]) {
    let size = HEAD + B::VALUES / LANES;
    for (block, to) in panel.chunks_exact_mut(B::BYTES).enumerate() {
        let (values, scales) = to.split_at_mut(B::VALUES);
        let part = |from: usize, to: usize| {
            let mut parts = [[].as_slice(); LANES];
            parts.iter_mut().zip(rows).for_each(|(part, row)| *part = &row[block * size..][from..to]);
            parts
        };
        turn::<4>(&part(HEAD, size)[..rows.len()], values, 4 * LANES);
        turn::<2>(&part(0, HEAD)[..rows.len()], scales, 2 * LANES);
    }
}

/// Reads lane `lane` of a panel back, as f32.
pub fn unpack(kind: Kind, lane: usize, panel: &[u8], row: &mut [f32]) {
    match kind {
        Kind::F32 => plain::<4>(lane, panel, row, f32::from_le_bytes),
        Kind::F16 => plain::<2>(lane, panel, row, |b| f16::from_le_bytes(b).to_f32()),
        Kind::BF16 => plain::<2>(lane, panel, row, |b| half::bf16::from_le_bytes(b).to_f32()),
        Kind::Q8 => unpack_blocks::<Q8>(lane, panel, row),
        Kind::Q4 => unpack_blocks::<Q4>(lane, panel, row),
        Kind::Q4Min => unpack_blocks::<Q4Min>(lane, panel, row),
    }
}

fn plain<const SIZE: usize>(lane: usize, panel: &[u8], row: &mut [f32], read: impl Fn([u8; SIZE]) -> f32) {
    for (from, to) in panel.chunks_exact(SIZE * Kind::F32.width()).zip(row) {
        *to = read(from[lane * SIZE..][..SIZE].try_into().expect("SIZE bytes"));
    }
}

fn unpack_blocks<B: Blocks>(lane: usize, panel: &[u8], row: &mut [f32]) {
    for (from, to) in panel.chunks_exact(B::BYTES).zip(row.chunks_exact_mut(BLOCK)) {
        let scale = half_at(&from[B::VALUES..], lane);
        let min = if B::MIN { half_at(&from[B::VALUES + 2 * LANES..], lane) } else { 0.0 };
        for (k, to) in to.iter_mut().enumerate() {
            let value = value::<B>(from, lane, k) - B::ZERO;
            *to = (value as f32).mul_add(scale, min);
        }
    }
}

/// Input `k` of lane `lane` in a block: unsigned for nibbles, signed for bytes.
fn value<B: Blocks>(block: &[u8], lane: usize, k: usize) -> i32 {
    let (group, byte) = (k / 4, lane * 4 + k % 4);
    if B::NIBBLES {
        let pair = block[group % 4 * 4 * LANES + byte];
        (if group < 4 { pair & 15 } else { pair >> 4 }) as i32
    } else {
        block[group * 4 * LANES + byte] as i8 as i32
    }
}

pub fn half_at(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}
