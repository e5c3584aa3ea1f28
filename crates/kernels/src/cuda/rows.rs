//! Calls of what is done to rows between products, and of the choice of tokens (`crates/kernels/cuda/{rows,choose}.cuh`). Refuses to
//! know the layers of a model.

use super::attention::Paged;
use super::call::{Call, Element};
use super::params::{self, Ptr};
use super::product::Matrix;

const THREADS: u32 = 256;
const CHOOSE_THREADS: u32 = 1024;
/// The choice looks at ids in two digits of ten bits.
const MOST_VOCABULARY: usize = 1 << 20;
/// In the counts of a prediction, beside how often a token was generated: it is in the prompt.
pub const IN_PROMPT: u32 = 1 << 31;

/// `stream[row]`, f32, is the table's row of what the row says: `chosen[from[row]]`, or `tokens[row]` where `from` is
/// `u32::MAX`. A token outside the table is taken as 0.
pub fn embed(
    element: Element,
    table: &Matrix,
    rows: usize,
    tokens: Ptr,
    (from, chosen): (Ptr, Ptr),
    stream: Ptr,
) -> Call {
    let params =
        params::Embed { table: table.params(), tokens, from, chosen, stream, rows: rows as i32, k: table.k as i32 };
    Call::new(format!("embed_{}_{}", table.packing.name(), element.name()), [rows as u32, 1, 1], THREADS, 0, params)
}

/// Rows `first .. first + count` of a weight as plain row-major values of the element type.
pub fn unpack(element: Element, weight: &Matrix, first: usize, count: usize, to: Ptr) -> Call {
    assert!(first + count <= weight.rows, "rows {first} to {} of {}", first + count, weight.rows);
    let params = params::Unpack { weight: weight.params(), to, first: first as i32, k: weight.k as i32 };
    Call::new(format!("unpack_{}_{}", weight.packing.name(), element.name()), [count as u32, 1, 1], THREADS, 0, params)
}

/// `y[row] = x[row] / sqrt(mean(x^2) + eps) * gamma`: f32 `[.., k]` to `[rows, k]` of the element type. With `from`, a list of rows
/// on the device, `x[from[row]]`. The bits are those of a product that norms itself.
pub fn norm(element: Element, x: Ptr, gamma: Ptr, eps: f32, from: Ptr, (rows, k): (usize, usize), y: Ptr) -> Call {
    let params = params::Norm { x, gamma, from, y, eps, k: k as i32 };
    Call::new(format!("norm_{}", element.name()), [rows as u32, 1, 1], THREADS, 0, params)
}

/// Queries, turned, and keys and values into the cache, from a product's rows of the element type.
pub fn place(element: Element, cache: &Paged, rope: Ptr, y: Ptr, rows: usize, queries: Ptr) -> Call {
    let params = params::Place { cache: cache.params(), rope, y, queries };
    Call::new(format!("place_{}", element.name()), [rows as u32, 1, 1], THREADS, 0, params)
}

/// `hidden = SiLU(gate) * up`: `[rows, 2 ff]` to `[rows, ff]`, of the element type; gates before ups in each row.
pub fn swiglu(element: Element, gate_up: Ptr, rows: usize, ff: usize, hidden: Ptr) -> Call {
    assert!(ff.is_multiple_of(2), "a hidden width of {ff}, not even");
    let params = params::Swiglu { gate_up, hidden, ff: ff as i32, rows: rows as i32 };
    let across = (ff as u32 / 2).div_ceil(THREADS);
    Call::new(format!("swiglu_{}", element.name()), [across, rows as u32, 1], THREADS, 0, params)
}

/// Where `choose` finds what it reads and leaves what it chose.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// f32 `[rows, vocabulary]`; scratch afterwards.
    pub logits: Ptr,
    /// `params::Ask`, one per row.
    pub asks: Ptr,
    /// u32 `[.., vocabulary]`, zero when a prediction takes a row of it.
    pub counts: Ptr,
    /// u32: the lists of banned tokens, one behind the other.
    pub bans: Ptr,
    /// u32 `[rows]`: the tokens; `u32::MAX` where the logits held no finite greatest value.
    pub chosen: Ptr,
}

pub fn choose(choice: &Choice, rows: usize, vocabulary: usize) -> Call {
    assert!((1..=MOST_VOCABULARY).contains(&vocabulary), "a vocabulary of {vocabulary}; at most {MOST_VOCABULARY}");
    let Choice { logits, asks, counts, bans, chosen } = *choice;
    let params =
        params::Choose { logits, asks, counts, bans, chosen, vocabulary: vocabulary as i32, rows: rows as i32 };
    Call::new("choose_rows".into(), [rows as u32, 1, 1], CHOOSE_THREADS, 0, params)
}
