//! The one order in which a decoder-only transformer of the Llama kind puts the calls: the engine, the check against f64 and the
//! measurement all run this. Knows addresses and sizes; refuses to know whose rows they are and where weights come from.
//!
//! Per layer: norm and q, k, v with RoPE and the write to the cache; attention; the residual; norm, gate and up; down and the
//! residual. Up to eight rows that is five launches, for the norm is inside the product; more rows are normed before. The
//! library takes many rows of prompts, with a kernel of ours before and behind it.

use super::attention::{self, Paged};
use super::call::{Element, Gpu};
use super::params::Ptr;
use super::product::{self, Input, Library, Matrix, Out};
use super::rows;
use super::stream::Work;
use super::weight::Packing;

/// Bytes of the room for weights that are unpacked for the library, a part of them at a time.
pub const UNPACKED_BYTES: usize = 64 << 20;

/// A layer's weights, and where its keys and values lie.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// f32 `[hidden]`
    pub attn_gamma: Ptr,
    /// Query heads, key heads, value heads, stacked.
    pub qkv: Matrix,
    pub o: Matrix,
    /// f32 `[hidden]`
    pub ffn_gamma: Ptr,
    /// Gates above ups.
    pub gate_up: Matrix,
    pub down: Matrix,
    /// See `Paged`.
    pub keys: Ptr,
    pub values: Ptr,
}

#[derive(Clone, Debug)]
pub struct Decoder {
    pub element: Element,
    pub heads: usize,
    pub kv_heads: usize,
    /// Of a head.
    pub dim: usize,
    pub eps: f32,
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    /// f32 `[hidden]`
    pub gamma: Ptr,
    pub head: Matrix,
    /// f32 `[positions, dim]`: a position's cosines, then its sines.
    pub rope: Ptr,
}

/// What a step writes between its calls; scratch. Sizes are those of `room_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// f32 `[rows, hidden]`
    pub stream: Ptr,
    /// `[rows, hidden]`
    pub ready: Ptr,
    /// `[rows, heads, dim]`
    pub queries: Ptr,
    pub seen: Ptr,
    /// `[rows, ff]`
    pub hidden: Ptr,
    /// f32 `[choices, vocabulary]`
    pub logits: Ptr,
    /// See `attention::decode_scratch`.
    pub partial: Ptr,
    /// Zero before the first step.
    pub done: Ptr,
    /// `[rows, the widest product]`, where the library is used.
    pub wide: Ptr,
    /// A part of a weight, where the library is used and weights are packed.
    pub unpacked: Ptr,
}

/// Where a step's rows are told: see `inputs.rs`.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub tokens: Ptr,
    pub from: Ptr,
    /// What the step before chose.
    pub chosen: Ptr,
    pub positions: Ptr,
    pub tables: Ptr,
    pub table_blocks: usize,
}

/// A step's rows: first those that stand alone, then those of prompts, in tiles.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rows: usize,
    /// Rows that attend one by one.
    pub singles: usize,
    /// `[tiles, 2]` on the device, and how many: see `attention::prefill_tiles`.
    pub tiles: (Ptr, usize),
    /// The rows whose logits are wanted, on the device, and how many; none: all, in their order.
    pub picks: Option<(Ptr, usize)>,
    /// The library multiplies: numbers hang on the number of rows.
    pub library: bool,
}

impl Plan {
    /// One token each of so many sequences.
    pub fn decode(rows: usize) -> Plan {
        Plan { rows, singles: rows, tiles: (Ptr::NONE, 0), picks: None, library: false }
    }

    /// Rows of logits.
    pub fn choices(&self) -> usize {
        self.picks.map_or(self.rows, |(_, count)| count)
    }
}

/// Bytes of everything in `Room`, in its order, for steps of at most `rows` rows, of which `singles` attend one by one, and `choices`.
pub fn room_bytes(decoder: &Decoder, (rows, singles, choices): (usize, usize, usize), library: bool) -> [usize; 10] {
    let Decoder { heads, kv_heads, dim, ref layers, head, ref embedding, .. } = *decoder;
    let (hidden, seen) = (embedding.k, rows * heads * dim * 2);
    let ff = layers.iter().map(|layer| layer.down.k).max().unwrap_or(0);
    let (partial, done) = attention::decode_scratch(singles, heads, kv_heads, dim);
    let wide = ((heads + 2 * kv_heads) * dim).max(2 * ff);
    let all = layers.iter().flat_map(|l| [l.qkv, l.o, l.gate_up, l.down]);
    let packed = all.filter(|matrix| matrix.packing != Packing::Plain);
    let unpacked = packed.map(|matrix| (matrix.rows * matrix.k * 2).min(UNPACKED_BYTES)).max().unwrap_or(0);
    let of = |bytes: usize| if library { bytes } else { 0 };
    // What is picked is normed into `ready`, too.
    let ready = rows.max(choices) * hidden * 2;
    let logits = choices * head.rows * 4;
    [rows * hidden * 4, ready, seen, seen, rows * ff * 2, logits, partial, done, of(rows * wide * 2), of(unpacked)]
}

impl Room {
    pub fn of(ptrs: [Ptr; 10]) -> Room {
        let [stream, ready, queries, seen, hidden, logits, partial, done, wide, unpacked] = ptrs;
        Room { stream, ready, queries, seen, hidden, logits, partial, done, wide, unpacked }
    }
}

impl Decoder {
    /// Keys and values of all rows into the cache, logits of those that are wanted into `room.logits`.
    pub fn forward(&self, gpu: &Gpu, room: &Room, told: &Told, plan: &Plan) -> Vec<Work> {
        let (feed, tokens) = ((told.from, told.chosen), told.tokens);
        let embed = rows::embed(self.element, &self.embedding, plan.rows, tokens, feed, room.stream);
        let mut step = Step { decoder: self, gpu, room, plan, work: vec![Work::Call(embed)] };
        for layer in &self.layers {
            let paged = self.paged(layer, told);
            step.qkv(layer, &paged);
            step.attention(&paged);
            step.add(&layer.o, room.seen);
            step.gate_up(layer);
            step.add(&layer.down, room.hidden);
        }
        step.head();
        step.work
    }

    fn paged(&self, layer: &Layer, told: &Told) -> Paged {
        let Told { positions, tables, table_blocks, .. } = *told;
        let Decoder { heads, kv_heads, dim, .. } = *self;
        Paged { keys: layer.keys, values: layer.values, tables, positions, table_blocks, heads, kv_heads, dim }
    }
}

/// A step as it is put together.
struct Step<'a> {
    decoder: &'a Decoder,
    gpu: &'a Gpu,
    room: &'a Room,
    plan: &'a Plan,
    work: Vec<Work>,
}

impl Step<'_> {
    fn push(&mut self, call: super::call::Call) {
        self.work.push(Work::Call(call));
    }

    /// The rows of the stream (with `picks`, those of it) that `matrix` takes, normed inside it or before.
    fn normed(&mut self, matrix: &Matrix, gamma: Ptr, picks: Option<(Ptr, usize)>) -> Input {
        let (element, eps, x) = (self.decoder.element, self.decoder.eps, self.room.stream);
        let (from, rows) = picks.unwrap_or((Ptr::NONE, self.plan.rows));
        let alone = picks.is_none() && !self.plan.library;
        if alone && product::norms_itself(self.gpu, matrix.packing, rows, matrix.k) {
            return Input::Stream { x, gamma, eps, rows };
        }
        self.push(rows::norm(element, x, gamma, eps, from, (rows, matrix.k), self.room.ready));
        Input::Ready { x: self.room.ready, rows }
    }

    fn qkv(&mut self, layer: &Layer, paged: &Paged) {
        let (element, rope, queries) = (self.decoder.element, self.decoder.rope, self.room.queries);
        let x = self.normed(&layer.qkv, layer.attn_gamma, None);
        if self.plan.library {
            self.library(&layer.qkv, self.room.ready, self.room.wide, Out::Element);
            self.push(rows::place(element, paged, rope, self.room.wide, self.plan.rows, queries));
        } else {
            self.push(product::qkv(self.gpu, element, &layer.qkv, &x, paged, rope, queries));
        }
    }

    fn attention(&mut self, paged: &Paged) {
        let (element, room) = (self.decoder.element, self.room);
        let scale = 1.0 / (self.decoder.dim as f32).sqrt();
        let Plan { singles, tiles, .. } = *self.plan;
        if singles > 0 {
            let scratch = (room.partial, room.done);
            // As many blocks as fill the machine once.
            let segments = (2 * self.gpu.multiprocessors as usize).div_ceil(singles * self.decoder.kv_heads);
            let decode = attention::decode(element, paged, singles, scale, room.queries, scratch, room.seen, segments);
            self.push(decode);
        }
        if tiles.1 > 0 {
            self.push(attention::prefill(element, paged, scale, room.queries, tiles, room.seen));
        }
    }

    /// The residual stream takes the product of `matrix` and `x` in.
    fn add(&mut self, matrix: &Matrix, x: Ptr) {
        if self.plan.library {
            return self.library(matrix, x, self.room.stream, Out::AddF32);
        }
        self.push(product::add(self.gpu, self.decoder.element, matrix, x, self.plan.rows, self.room.stream));
    }

    fn gate_up(&mut self, layer: &Layer) {
        let (element, rows, hidden) = (self.decoder.element, self.plan.rows, self.room.hidden);
        let x = self.normed(&layer.gate_up, layer.ffn_gamma, None);
        if self.plan.library {
            self.library(&layer.gate_up, self.room.ready, self.room.wide, Out::Element);
            self.push(rows::swiglu(element, self.room.wide, rows, layer.gate_up.rows / 2, hidden));
        } else {
            self.push(product::gate_up(self.gpu, element, &layer.gate_up, &x, hidden));
        }
    }

    fn head(&mut self) {
        if self.plan.choices() == 0 {
            return;
        }
        let x = self.normed(&self.decoder.head, self.decoder.gamma, self.plan.picks);
        self.push(product::head(self.gpu, self.decoder.element, &self.decoder.head, &x, self.room.logits));
    }

    /// By the library: a packed weight is unpacked first, as much of it at a time as there is room for.
    fn library(&mut self, matrix: &Matrix, x: Ptr, y: Ptr, kind: Out) {
        let (element, rows) = (self.decoder.element, self.plan.rows);
        let Matrix { k, rows: out, quants, packing, .. } = *matrix;
        let product = |w, first: usize, count| {
            let bytes = if kind == Out::AddF32 { 4 } else { 2 };
            let y = y.at(first * bytes);
            Work::Library(Library { element, rows, k, out: count, x, w, y, y_stride: out, kind })
        };
        if packing == Packing::Plain {
            return self.work.push(product(quants, 0, out));
        }
        let most = (UNPACKED_BYTES / (k * 2)).max(1);
        for first in (0..out).step_by(most) {
            let count = most.min(out - first);
            self.push(rows::unpack(element, matrix, first, count, self.room.unpacked));
            self.work.push(product(self.room.unpacked, first, count));
        }
    }
}
