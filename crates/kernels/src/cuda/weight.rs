//! Weights in the order the kernels read them (see `crates/kernels/cuda/weight.cuh`): quants in one plane, scales in
//! another, every thread's share of a row 16 bytes together. Done once, at load, on the CPU. Refuses to know files.
//!
//! Floor: it reads and writes each byte once; 8.5 GB of a Q8_0 Llama-3-8B take 2 x 8.5 GB of host memory traffic.

use half::f16;

/// Bytes of one row that four threads read together.
pub const GROUP_BYTES: usize = 64;
/// Values that share a scale in GGUF's blocks; rows are a multiple of it.
pub const CHUNK: usize = 32;

/// How a weight is stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum Packing {
    /// bf16 or f16, as the activations are; row-major, so that a library may read it too.
    Plain,
    Q8_0,
    Q4_0,
    Q4_1,
    /// Whole numbers -127..=127 and one f32 scale per row.
    Int8,
    /// e4m3 and one f32 scale per row.
    Fp8,
}

impl Packing {
    pub const ALL: [Packing; 6] =
        [Packing::Plain, Packing::Q8_0, Packing::Q4_0, Packing::Q4_1, Packing::Int8, Packing::Fp8];

    /// As the kernels are called.
    pub fn name(self) -> &'static str {
        match self {
            Packing::Plain => "plain",
            Packing::Q8_0 => "q8_0",
            Packing::Q4_0 => "q4_0",
            Packing::Q4_1 => "q4_1",
            Packing::Int8 => "int8",
            Packing::Fp8 => "fp8",
        }
    }

    /// Values of a row in one group.
    pub fn group(self) -> usize {
        match self {
            Packing::Plain => 32,
            Packing::Q8_0 | Packing::Int8 | Packing::Fp8 => 64,
            Packing::Q4_0 | Packing::Q4_1 => 128,
        }
    }

    /// Groups of a row of `k` values; the last may be half empty.
    pub fn groups(self, k: usize) -> usize {
        k.div_ceil(self.group())
    }

    /// Bytes of the two planes of an `[rows, k]` weight.
    pub fn bytes(self, rows: usize, k: usize) -> (usize, usize) {
        let groups = self.groups(k);
        let scales = match self {
            Packing::Plain => 0,
            Packing::Q8_0 => groups * 4,
            Packing::Q4_0 => groups * 8,
            Packing::Q4_1 => groups * 16,
            Packing::Int8 | Packing::Fp8 => 4,
        };
        (rows * groups * GROUP_BYTES, rows * scales)
    }
}

/// Where the two planes of some rows go, each of the bytes that `Packing::bytes` says: pieces of the host's memory that the
/// device copies as they are. What was in them before does not matter.
pub struct Planes<'a> {
    pub quants: &'a mut [u8],
    pub scales: &'a mut [u8],
}

/// The two planes of a weight in memory of their own.
#[derive(Debug)]
pub struct Packed {
    pub packing: Packing,
    pub rows: usize,
    pub k: usize,
    pub quants: Vec<u8>,
    pub scales: Vec<u8>,
}

impl Packed {
    /// `fill` is one of the functions below.
    pub fn new(
        packing: Packing,
        rows: usize,
        k: usize,
        fill: impl FnOnce(Planes) -> Result<(), String>,
    ) -> Result<Packed, String> {
        let (quants, scales) = packing.bytes(rows, k);
        let mut packed = Packed { packing, rows, k, quants: vec![0; quants], scales: vec![0; scales] };
        fill(Planes { quants: &mut packed.quants, scales: &mut packed.scales })?;
        Ok(packed)
    }
}

/// Plain weights, row-major, two bytes each.
pub fn plain(bytes: &[u8], rows: usize, k: usize, to: Planes) -> Result<(), String> {
    check(Packing::Plain, rows, k, &to)?;
    if bytes.len() != to.quants.len() {
        return Err(format!("a plain weight of [{rows}, {k}] is {} bytes, not {}", to.quants.len(), bytes.len()));
    }
    to.quants.copy_from_slice(bytes);
    Ok(())
}

/// GGUF blocks of Q8_0, Q4_0 or Q4_1, row-major. Nothing is rounded.
pub fn blocks(packing: Packing, bytes: &[u8], rows: usize, k: usize, mut to: Planes) -> Result<(), String> {
    let head = match packing {
        Packing::Q8_0 | Packing::Q4_0 => 2,
        Packing::Q4_1 => 4,
        other => return Err(format!("{} comes in no blocks", other.name())),
    };
    check(packing, rows, k, &to)?;
    let body = if packing == Packing::Q8_0 { CHUNK } else { CHUNK / 2 };
    let (per_row, expected) = (k / CHUNK, rows * (k / CHUNK) * (head + body));
    if bytes.len() != expected {
        return Err(format!("a {} weight of [{rows}, {k}] is {expected} bytes, not {}", packing.name(), bytes.len()));
    }
    clear(&mut to);
    let groups = packing.groups(k);
    let chunks = packing.group() / CHUNK;
    for (index, block) in bytes.chunks_exact(head + body).enumerate() {
        let (row, chunk) = (index / per_row, index % per_row);
        let (head, body) = block.split_at(head);
        let scales = (row * groups * chunks + chunk) * head.len();
        to.scales[scales..][..head.len()].copy_from_slice(head);
        let group = &mut to.quants[(row * groups + chunk / chunks) * GROUP_BYTES..][..GROUP_BYTES];
        for i in 0..CHUNK {
            match packing {
                Packing::Q8_0 => group[byte_place(chunk % chunks, i)] = body[i],
                _ => {
                    let nibble = if i < CHUNK / 2 { body[i] & 15 } else { body[i - CHUNK / 2] >> 4 };
                    put_nibble(group, chunk % chunks, i, nibble);
                }
            }
        }
    }
    Ok(())
}

/// Rounds `[rows, k]` to eight bits with a scale per row: the greatest of a row becomes 127 or 448.
pub fn scale_rows(packing: Packing, values: &[f32], rows: usize, k: usize, mut to: Planes) -> Result<(), String> {
    let most = match packing {
        Packing::Int8 => 127.0,
        Packing::Fp8 => E4M3_MAX,
        other => return Err(format!("{} has no scale per row", other.name())),
    };
    check(packing, rows, k, &to)?;
    if values.len() != rows * k {
        return Err(format!("a weight of [{rows}, {k}] has {} values, not {}", rows * k, values.len()));
    }
    clear(&mut to);
    let groups = packing.groups(k);
    for (row, values) in values.chunks_exact(k).enumerate() {
        let greatest = values.iter().fold(0f32, |most, v| most.max(v.abs()));
        let scale = if greatest > 0.0 { greatest / most } else { 1.0 };
        to.scales[row * 4..][..4].copy_from_slice(&scale.to_le_bytes());
        for (at, value) in values.iter().enumerate() {
            let group = &mut to.quants[(row * groups + at / 64) * GROUP_BYTES..][..GROUP_BYTES];
            let value = value / scale;
            let byte = if packing == Packing::Int8 { value.round_ties_even() as i8 as u8 } else { e4m3(value) };
            group[byte_place(at % 64 / CHUNK, at % CHUNK)] = byte;
        }
    }
    Ok(())
}

fn check(packing: Packing, rows: usize, k: usize, to: &Planes) -> Result<(), String> {
    if rows == 0 || k == 0 || !k.is_multiple_of(CHUNK) {
        return Err(format!("no weight of [{rows}, {k}]: rows come in chunks of {CHUNK}"));
    }
    let (needed, there) = (packing.bytes(rows, k), (to.quants.len(), to.scales.len()));
    if needed != there {
        return Err(format!("the planes of [{rows}, {k}] in {} are {needed:?} bytes, not {there:?}", packing.name()));
    }
    Ok(())
}

/// Nibbles are added to what is there, and the last group of a row may be half empty.
fn clear(to: &mut Planes) {
    to.quants.fill(0);
    to.scales.fill(0);
}

/// Where in a group the value `i` of a chunk of 8-bit values is.
fn byte_place(chunk: usize, i: usize) -> usize {
    const ORDER: [usize; 4] = [0, 2, 1, 3];
    i / 8 * 16 + chunk * 8 + i % 8 / 4 * 4 + ORDER[i % 4]
}

fn put_nibble(group: &mut [u8], chunk: usize, i: usize, nibble: u8) {
    let (word, e) = (i / 8 * 16 + chunk * 4, i % 8);
    let bit = e / 2 * 4 + e % 2 * 16;
    group[word + bit / 8] |= nibble << (bit % 8);
}

/// The greatest of e4m3's finite numbers.
const E4M3_MAX: f32 = 448.0;

/// The nearest e4m3, ties to even, of what is at most 448: four exponent bits of bias 7, three of fraction.
fn e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(E4M3_MAX);
    // The place of the last bit: 2^-9 below 2^-6, else 2^-3 of the power of two below.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let units = (magnitude / 2f32.powi(exponent - 3)).round_ties_even() as u8;
    // Eight units and more carry an exponent; sixteen carry over into the next by themselves.
    sign | if units < 8 { units } else { ((exponent + 7) as u8) * 8 + (units - 8) }
}

/// GGUF's Q4_K as Q4_1: a block of 256 has eight scales of six bits times one f16, whose product is rounded to f16 (2^-11 of
/// it; the quants keep their bits).
pub fn q4_1_from_q4_k(bytes: &[u8]) -> Result<Vec<u8>, String> {
    const SUPER: usize = 144;
    if !bytes.len().is_multiple_of(SUPER) {
        return Err(format!("{} bytes are no blocks of {SUPER}", bytes.len()));
    }
    let mut out = Vec::with_capacity(bytes.len() / SUPER * 160);
    for block in bytes.chunks_exact(SUPER) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let (d, dmin, packed, quants) = (half(0), half(2), &block[4..16], &block[16..]);
        for sub in 0..8 {
            let (scale, least) = if sub < 4 {
                (packed[sub] & 63, packed[sub + 4] & 63)
            } else {
                let low = packed[sub + 4];
                (low & 15 | packed[sub - 4] >> 6 << 4, low >> 4 | packed[sub] >> 6 << 4)
            };
            out.extend_from_slice(&f16::from_f32(d * f32::from(scale)).to_le_bytes());
            out.extend_from_slice(&f16::from_f32(-dmin * f32::from(least)).to_le_bytes());
            // Two sub-blocks share 32 bytes: the even one has the low nibbles.
            let nibble = |i: usize| quants[sub / 2 * 32 + i] >> (sub % 2 * 4) & 15;
            out.extend((0..16).map(|i| nibble(i) | nibble(i + 16) << 4));
        }
    }
    Ok(out)
}
