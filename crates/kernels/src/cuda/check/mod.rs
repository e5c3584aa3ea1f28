//! Every kernel against a plain f64 reference on fresh random inputs, on whatever machine runs it: in the tests the emulator,
//! where there is a GPU, the GPU. A check panics with what it found and the seed that finds it again. Refuses to know machines.

mod attend;
mod attention;
mod choose;
mod image;
mod products;
mod rows;
mod step;
#[cfg(test)]
mod weights;

use half::{bf16, f16};

use super::call::{Call, Element, Gpu};
use super::params::Ptr;
use super::product::Matrix;
use super::weight::{self, Packed, Packing};

/// Where calls run.
pub trait Machine {
    fn gpu(&self) -> Gpu;

    /// The types it computes in.
    fn elements(&self) -> &'static [Element];

    /// Memory with this in it, that calls may name.
    fn hold(&self, content: Vec<u128>) -> Box<dyn Held>;

    /// Runs a call to its end. `order` is for a machine that has a choice what to run first.
    fn run(&self, call: &Call, order: u64);
}

/// Memory of a machine.
pub trait Held {
    fn address(&self) -> Ptr;

    /// What is in it now.
    fn content(&self) -> Vec<u128>;
}

/// A machine, and where its inputs come from.
pub struct Bench<'a> {
    pub machine: &'a dyn Machine,
    pub random: Random,
}

macro_rules! checks {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// All of them, by name.
        pub const ALL: &[(&str, fn(&mut Bench))] = &[$((stringify!($name), $module::$name)),*];

        #[cfg(test)]
        mod emulated {
            $(#[test]
            fn $name() {
                let Some(machine) = crate::cuda::emulator::emulator() else { return };
                super::$module::$name(&mut super::Bench { machine: &machine, random: super::Random::fresh() });
            })*
        }
    };
}

checks! {
    products::add_equals_f64_in_every_format_and_shape,
    products::the_head_norms_its_rows_and_equals_f64,
    products::gate_up_equals_f64,
    products::qkv_turns_and_writes_where_the_table_says_and_nowhere_else,
    products::a_row_has_the_same_bits_alone_and_among_others_on_any_grid,
    products::norming_on_the_way_in_gives_the_bits_of_norming_before,
    attention::decode_equals_f64_over_scattered_blocks_full_of_nan_elsewhere,
    attention::a_decoded_row_has_the_same_bits_alone_and_however_its_segments_are_shared_out,
    attention::prefill_equals_f64_for_prompts_side_by_side,
    attention::a_prompt_has_the_same_bits_however_it_is_cut,
    attention::placing_a_products_rows_fills_the_cache_that_attention_reads,
    attend::attend_equals_f64_in_place_and_over_texts,
    attend::a_row_attends_with_the_same_bits_alone_and_among_others,
    image::group_norm_equals_f64_also_far_from_zero,
    image::layer_norm_equals_f64_on_rows_of_any_distance,
    image::what_follows_a_product_equals_f64_alone_and_together,
    image::windows_are_the_pixels_around_and_zeros_outside,
    rows::a_row_says_its_token_or_what_an_earlier_row_chose,
    rows::an_unpacked_weight_is_the_weight_rounded_once,
    rows::norm_equals_f64_and_takes_the_rows_it_is_told,
    rows::swiglu_equals_f64_also_far_out,
    choose::every_setting_chooses_what_the_rules_say,
    choose::a_flat_row_has_more_candidates_than_there_is_room_for,
    choose::broken_logits_are_told_and_the_others_go_on,
    choose::a_row_that_is_not_in_use_keeps_what_it_had,
    step::decode_steps_of_a_small_llama_equal_f64,
}

/// SplitMix64.
pub struct Random {
    pub seed: u64,
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { seed, state: seed }
    }

    /// A seed of its own in every process and for every caller.
    pub fn fresh() -> Random {
        use std::hash::{BuildHasher, RandomState};
        Random::new(RandomState::new().hash_one(0))
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 1) as usize % limit
    }

    /// Roughly normal, mean 0, deviation 1.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0).collect()
    }
}

/// Memory a kernel may use, between two guards that it may not: reading one gives NaN, writing one fails the check.
pub struct Buffer {
    held: Box<dyn Held>,
    bytes: usize,
}

/// Of 16 bytes, on either side.
const GUARD_WORDS: usize = 16;

impl Buffer {
    /// Filled with NaN: what a kernel forgets to write shows.
    pub fn poisoned(machine: &dyn Machine, bytes: usize) -> Buffer {
        Buffer { held: machine.hold(Buffer::blank(bytes)), bytes }
    }

    pub fn of<T: Copy>(machine: &dyn Machine, values: &[T]) -> Buffer {
        let mut words = Buffer::blank(size_of_val(values));
        // SAFETY: plain values, and the words are as long.
        unsafe {
            let to = words.as_mut_ptr().add(GUARD_WORDS).cast::<T>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
        Buffer { held: machine.hold(words), bytes: size_of_val(values) }
    }

    fn blank(bytes: usize) -> Vec<u128> {
        vec![u128::MAX; bytes.div_ceil(16) + 2 * GUARD_WORDS]
    }

    pub fn ptr(&self) -> Ptr {
        self.held.address().at(GUARD_WORDS * 16)
    }

    /// What is in it now. Checks the guards.
    pub fn read<T: Copy>(&self) -> Vec<T> {
        let words = self.held.content();
        // SAFETY: the bytes of the words, all of them.
        let all = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), words.len() * 16) };
        let (before, after) = (GUARD_WORDS * 16, GUARD_WORDS * 16 + self.bytes);
        let whole = all[..before].iter().chain(&all[after..]).all(|byte| *byte == 0xff);
        assert!(whole, "a kernel wrote outside its buffer");
        // SAFETY: numbers, for which every bit pattern is a value.
        unsafe { std::slice::from_raw_parts(words[GUARD_WORDS..].as_ptr().cast::<T>(), self.bytes / size_of::<T>()) }
            .to_vec()
    }
}

impl Element {
    fn round(self, value: f32) -> f64 {
        match self {
            Element::Bf16 => bf16::from_f32(value).to_f64(),
            Element::F16 => f16::from_f32(value).to_f64(),
        }
    }

    fn bits(self, value: f32) -> u16 {
        match self {
            Element::Bf16 => bf16::from_f32(value).to_bits(),
            Element::F16 => f16::from_f32(value).to_bits(),
        }
    }

    fn value(self, bits: u16) -> f64 {
        match self {
            Element::Bf16 => bf16::from_bits(bits).to_f64(),
            Element::F16 => f16::from_bits(bits).to_f64(),
        }
    }

    /// What rounding to it may lose, relatively.
    fn epsilon(self) -> f64 {
        match self {
            Element::Bf16 => 1.0 / 256.0,
            Element::F16 => 1.0 / 2048.0,
        }
    }

    fn read(self, buffer: &Buffer) -> Vec<f64> {
        buffer.read::<u16>().into_iter().map(|bits| self.value(bits)).collect()
    }
}

/// A random weight, packed, and its values.
struct Sample {
    packed: Packed,
    values: Vec<f64>,
}

fn sample(random: &mut Random, packing: Packing, element: Element, rows: usize, k: usize) -> Sample {
    let count = rows * k;
    let half = |v: f32| f16::from_f32(v);
    match packing {
        Packing::Plain => {
            let bits: Vec<u16> = random.normal(count).into_iter().map(|v| element.bits(v)).collect();
            let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
            let values = bits.into_iter().map(|b| element.value(b)).collect();
            let packed = Packed::new(packing, rows, k, |to| weight::plain(&bytes, rows, k, to)).unwrap();
            Sample { packed, values }
        }
        Packing::Q8_0 | Packing::Q4_0 | Packing::Q4_1 => {
            let (mut bytes, mut values) = (Vec::new(), Vec::new());
            for _ in 0..count / 32 {
                let (d, m) = (half(random.uniform() * 0.1 - 0.05), half(random.uniform() - 0.5));
                bytes.extend(d.to_le_bytes());
                if packing == Packing::Q4_1 {
                    bytes.extend(m.to_le_bytes());
                }
                let body: Vec<u8> =
                    (0..if packing == Packing::Q8_0 { 32 } else { 16 }).map(|_| random.below(256) as u8).collect();
                values.extend((0..32).map(|i| match packing {
                    Packing::Q8_0 => d.to_f64() * f64::from(body[i] as i8),
                    _ => {
                        let q = f64::from(if i < 16 { body[i] % 16 } else { body[i - 16] / 16 });
                        if packing == Packing::Q4_0 { d.to_f64() * (q - 8.0) } else { d.to_f64() * q + m.to_f64() }
                    }
                }));
                bytes.extend(body);
            }
            let packed = Packed::new(packing, rows, k, |to| weight::blocks(packing, &bytes, rows, k, to)).unwrap();
            Sample { packed, values }
        }
        Packing::Int8 | Packing::Fp8 => {
            // Values that eight bits hold exactly, so that rounding is another test's matter.
            let mut values = Vec::new();
            for _ in 0..rows {
                let scale = 2f32.powi(random.below(5) as i32 - 8);
                let row = values.len();
                values.extend((0..k).map(|_| {
                    if packing == Packing::Int8 {
                        (random.below(255) as f32 - 127.0) * scale
                    } else {
                        e4m3_value(random.below(256) as u8).unwrap_or(0.0) * scale
                    }
                }));
                values[row] = if packing == Packing::Int8 { 127.0 } else { 448.0 } * scale;
            }
            let packed = Packed::new(packing, rows, k, |to| weight::scale_rows(packing, &values, rows, k, to)).unwrap();
            Sample { packed, values: values.into_iter().map(f64::from).collect() }
        }
    }
}

/// A weight on the "device".
struct Placed {
    quants: Buffer,
    scales: Buffer,
    packing: Packing,
    rows: usize,
    k: usize,
}

impl Placed {
    fn new(case: &Case, packed: &Packed) -> Placed {
        let Packed { packing, rows, k, .. } = *packed;
        Placed { quants: case.of(&packed.quants), scales: case.of(&packed.scales), packing, rows, k }
    }

    fn matrix(&self) -> Matrix {
        let Placed { packing, rows, k, .. } = *self;
        Matrix { packing, rows, k, quants: self.quants.ptr(), scales: self.scales.ptr() }
    }
}

fn normed(x: &[f32], gamma: &[f32], eps: f64) -> Vec<f64> {
    let k = gamma.len();
    x.chunks(k)
        .flat_map(|x| {
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / k as f64;
            let factor = 1.0 / (mean + eps).sqrt();
            x.iter().zip(gamma).map(move |(x, g)| f64::from(*x) * factor * f64::from(*g)).collect::<Vec<_>>()
        })
        .collect()
}

struct Case<'a> {
    machine: &'a dyn Machine,
    random: &'a mut Random,
    element: Element,
    packing: Packing,
}

impl Case<'_> {
    fn name(&self, rows: usize, out: usize, k: usize) -> String {
        format!("{} {} [{out}, {k}], {rows} rows, seed {}", self.packing.name(), self.element.name(), self.random.seed)
    }

    fn run(&mut self, call: &Call) {
        let order = self.random.below(1 << 30) as u64;
        self.machine.run(call, order);
    }

    fn of<T: Copy>(&self, values: &[T]) -> Buffer {
        Buffer::of(self.machine, values)
    }

    fn poisoned(&self, bytes: usize) -> Buffer {
        Buffer::poisoned(self.machine, bytes)
    }

    /// In the case's type.
    fn reals(&self, values: &[f32]) -> Buffer {
        self.of(&values.iter().map(|v| self.element.bits(*v)).collect::<Vec<u16>>())
    }
}

fn each(bench: &mut Bench, packings: &[Packing], mut check: impl FnMut(&mut Case)) {
    for &element in bench.machine.elements() {
        for &packing in packings {
            check(&mut Case { machine: bench.machine, random: &mut bench.random, element, packing });
        }
    }
}

/// The value of an e4m3 byte, by its definition; none for NaN.
fn e4m3_value(byte: u8) -> Option<f32> {
    let (sign, exponent, fraction) =
        (if byte & 0x80 == 0 { 1.0 } else { -1.0 }, i32::from(byte >> 3 & 15), f32::from(byte & 7));
    match (exponent, byte & 0x7f) {
        (_, 0x7f) => None,
        (0, _) => Some(sign * fraction / 8.0 * 2f32.powi(-6)),
        _ => Some(sign * (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7)),
    }
}
