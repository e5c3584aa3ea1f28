//! A Llama's weights on a GPU, in the formats that our kernels read: which format each gets, how many bytes that is, and the way
//! there. Knows files through `Opened`; refuses to know steps.

use half::{bf16, f16};
use kernels::cuda::call::Element;
use kernels::cuda::decoder::{Decoder, Layer};
use kernels::cuda::kept::{HostCopy, Span};
use kernels::cuda::params::Ptr;
use kernels::cuda::product::Matrix;
use kernels::cuda::stream::{Memory, Stream};
use kernels::cuda::upload::Upload;
use kernels::cuda::weight::{self, CHUNK, Packing, Planes};
use kernels::op::RopeTable;
use kernels::{Format, Pool, convert};
use prediction::PredictError;

use super::super::config::Config;
use super::super::files::Role;
use super::super::precision::Rounded;
use super::super::weights::{Opened, Raw, Stack};

/// Heads of other sizes have no kernel.
const HEAD_DIMS: [usize; 2] = [64, 128];
/// Queries that share a key head in one tile of a prompt.
const MOST_GROUP: usize = 64;
/// As many tokens as the choice can tell apart.
const MOST_VOCABULARY: usize = 1 << 20;
/// Of a plane, packed while the device takes as much. Larger ones save nothing, and page-locking them takes time at every load.
const PIECE_BYTES: usize = 16 << 20;
/// Parts of a piece that each thread packs, so that one the system runs late does not hold up the others.
const PARTS_PER_THREAD: usize = 4;

/// How a Llama is computed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    pub element: Element,
    pub rounded: Option<Rounded>,
}

impl Fit {
    /// Why our kernels cannot run these weights as they were asked to, if they cannot.
    pub fn of(opened: &Opened, precision: Option<&str>, bf16: bool) -> Result<Fit, String> {
        let Config { hidden, inner, heads, kv_heads, head_dim, .. } = opened.config;
        if !HEAD_DIMS.contains(&head_dim) {
            return Err(format!("heads of {head_dim}; our CUDA kernels have 64 and 128"));
        }
        for (name, width) in [("hidden_size", hidden), ("intermediate_size", inner)] {
            if !width.is_multiple_of(CHUNK) {
                return Err(format!("{name} is {width}; our CUDA kernels take multiples of {CHUNK}"));
            }
        }
        if heads / kv_heads > MOST_GROUP {
            return Err(format!("{heads} heads over {kv_heads}; our CUDA kernels take {MOST_GROUP} over one"));
        }
        let vocabulary = opened.vocabulary().map_err(|why| why.to_string())?;
        if vocabulary > MOST_VOCABULARY {
            return Err(format!("a vocabulary of {vocabulary}; our CUDA kernels take {MOST_VOCABULARY}"));
        }
        let rounded = Rounded::of(precision);
        let brain = if bf16 { Element::Bf16 } else { Element::F16 };
        let stored = opened.format(Role::O(0), &[hidden, heads * head_dim]).map_err(|why| why.to_string())?;
        let element = match (precision, stored) {
            (Some("f16"), _) => Element::F16,
            (Some("bf16"), _) if bf16 => Element::Bf16,
            (None, Format::F32) | (Some("f32"), _) => {
                return Err(
                    "numbers are to be f32; our CUDA kernels compute in f16 and bf16, ask for one of them".into()
                );
            }
            (None, Format::BF16) => brain,
            // What the numbers were made in, else what holds all of them.
            (_, Format::F32 | Format::BF16) if rounded.is_some() => brain,
            (None, _) => Element::F16,
            _ if rounded.is_some() => Element::F16,
            (Some(other), _) => return Err(format!("precision {other} is not for this GPU")),
        };
        Ok(Fit { element, rounded })
    }

    /// How one of these is kept.
    fn packing(&self, format: Format, role: Role, tied: bool) -> Packing {
        let own = match format {
            Format::F32 | Format::F16 | Format::BF16 => Packing::Plain,
            Format::Q4_0 => return Packing::Q4_0,
            // Its scales are rounded to f16; everything else is as it was.
            Format::Q4_1 | Format::Q4_K => return Packing::Q4_1,
            _ => return Packing::Q8_0,
        };
        match self.rounded.and_then(|rounded| rounded.at(role, tied)) {
            None => own,
            Some(Rounded::Int8) => Packing::Int8,
            Some(Rounded::Fp8) => Packing::Fp8,
            Some(Rounded::Q8_0) => Packing::Q8_0,
            Some(Rounded::Q4_0) => Packing::Q4_0,
        }
    }

    /// How a stack is kept, whose parts are read as one: where they differ, in what holds them all.
    fn stack(&self, opened: &Opened, stack: &Stack) -> Result<(Packing, usize), PredictError> {
        let mut of_all = None;
        let mut rows = 0;
        for &(role, outputs) in &stack.parts {
            let format = opened.format(role, &[outputs, stack.inputs])?;
            let own = self.packing(format, role, opened.config.tied);
            rows += outputs;
            of_all = match of_all {
                None => Some(own),
                Some(before) if before == own => Some(own),
                Some(_) => Some(Packing::Q8_0),
            };
        }
        Ok((of_all.unwrap_or(Packing::Plain), rows))
    }

    fn matrix(&self, opened: &Opened, stack: &Stack) -> Result<Matrix, PredictError> {
        let (packing, rows) = self.stack(opened, stack)?;
        Ok(Matrix { packing, rows, k: stack.inputs, quants: Ptr::NONE, scales: Ptr::NONE })
    }

    /// The decoder without addresses: what everything is as large as.
    pub fn shape(&self, opened: &Opened) -> Result<Decoder, PredictError> {
        let Config { heads, kv_heads, head_dim, norm_eps, layers, .. } = opened.config;
        let layer = |i: usize| {
            Ok::<_, PredictError>(Layer {
                attn_gamma: Ptr::NONE,
                qkv: self.matrix(opened, &opened.qkv(i))?,
                o: self.matrix(opened, &opened.o(i))?,
                ffn_gamma: Ptr::NONE,
                gate_up: self.matrix(opened, &opened.gate_up(i))?,
                down: self.matrix(opened, &opened.down(i))?,
                keys: Ptr::NONE,
                values: Ptr::NONE,
            })
        };
        let embedding = self.matrix(opened, &opened.embed()?)?;
        let head = opened.head()?.map(|head| self.matrix(opened, &head)).transpose()?;
        Ok(Decoder {
            element: self.element,
            heads,
            kv_heads,
            dim: head_dim,
            eps: norm_eps,
            embedding,
            layers: (0..layers).map(layer).collect::<Result<_, _>>()?,
            gamma: Ptr::NONE,
            head: head.unwrap_or(embedding),
            rope: Ptr::NONE,
        })
    }

    /// The embedding, where it is not the head, too.
    pub fn looked_up_bytes(&self, opened: &Opened) -> Result<u64, PredictError> {
        let embedding = self.matrix(opened, &opened.embed()?)?;
        Ok(opened.head()?.map_or(0, |_| bytes(&embedding)))
    }

    /// What `load` will take of the device.
    pub fn bytes(&self, opened: &Opened) -> Result<u64, PredictError> {
        let gains = 4 * opened.config.hidden * (2 * opened.config.layers + 1);
        Ok(self.matrices(opened)?.iter().map(bytes).sum::<u64>() + gains as u64)
    }

    fn matrices(&self, opened: &Opened) -> Result<Vec<Matrix>, PredictError> {
        let decoder = self.shape(opened)?;
        let layers = decoder.layers.iter().flat_map(|l| [l.qkv, l.o, l.gate_up, l.down]);
        let head = opened.head()?.map(|_| decoder.head);
        Ok(std::iter::once(decoder.embedding).chain(layers).chain(head).collect())
    }
}

fn bytes(matrix: &Matrix) -> u64 {
    let (quants, scales) = matrix.packing.bytes(matrix.rows, matrix.k);
    (quants + scales) as u64
}

/// Takes weights to the device and keeps their memory.
pub struct Loader<'a, S: Stream> {
    pub stream: &'a S,
    pub opened: &'a Opened,
    pub fit: Fit,
    pub pool: &'a Pool,
    held: Vec<S::Memory>,
    from: Source<S>,
}

/// Where weights come from.
enum Source<S: Stream> {
    /// Files, on the way up: quants and scales.
    Files([Upload<S>; 2]),
    /// A copy of what was held once: the same planes in the same order.
    Copy(HostCopy<S>),
}

impl<'a, S: Stream> Loader<'a, S> {
    /// With a copy of what an earlier one of the same files and fit has loaded, nothing is read.
    pub fn new(
        stream: &'a S,
        opened: &'a Opened,
        fit: Fit,
        pool: &'a Pool,
        copy: Option<HostCopy<S>>,
    ) -> Result<Self, PredictError> {
        let from = match copy {
            Some(copy) => Source::Copy(copy),
            None => Source::Files(uploads(stream, opened, fit)?),
        };
        Ok(Self { from, stream, opened, fit, pool, held: Vec::new() })
    }

    /// All of them; keys, values and the rotary table are still nowhere.
    pub fn load(&mut self, report: &mut dyn FnMut(usize, usize)) -> Result<Decoder, PredictError> {
        let decoder = self.planes(report)?;
        if let Source::Copy(copy) = &mut self.from {
            // SAFETY: they are this loader's.
            unsafe { copy.put_back(self.stream, &spans(&self.held)) }.map_err(|error| runner::device::fault(&error))?;
        }
        Ok(decoder)
    }

    fn planes(&mut self, report: &mut dyn FnMut(usize, usize)) -> Result<Decoder, PredictError> {
        let (opened, hidden) = (self.opened, self.opened.config.hidden);
        let mut decoder = self.fit.shape(opened)?;
        decoder.embedding = self.matrix(&opened.embed()?)?;
        let count = decoder.layers.len();
        for (i, layer) in decoder.layers.iter_mut().enumerate() {
            report(i, count);
            layer.attn_gamma = self.gains(Role::AttnNorm(i), hidden)?;
            layer.qkv = self.matrix(&opened.qkv(i))?;
            layer.o = self.matrix(&opened.o(i))?;
            layer.ffn_gamma = self.gains(Role::FfnNorm(i), hidden)?;
            layer.gate_up = self.matrix(&opened.gate_up(i))?;
            layer.down = self.matrix(&opened.down(i))?;
        }
        decoder.gamma = self.gains(Role::Norm, hidden)?;
        decoder.head = match opened.head()? {
            Some(head) => self.matrix(&head)?,
            None => decoder.embedding,
        };
        Ok(decoder)
    }

    /// What everything that was loaded since points to.
    pub fn take_held(&mut self) -> Vec<S::Memory> {
        std::mem::take(&mut self.held)
    }

    fn gains(&mut self, role: Role, size: usize) -> Result<Ptr, PredictError> {
        if let Source::Copy(_) = self.from {
            let memory = self.zeros(size * 4)?;
            return Ok(self.keep(memory));
        }
        let bytes: Vec<u8> = self.opened.gains(role, size)?.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(&bytes)
    }

    /// Cosines and sines of every position that a prediction can have.
    pub fn rope(&mut self, context: usize) -> Result<Ptr, PredictError> {
        let table = RopeTable::new(&self.opened.config.inverse_frequencies(), context);
        let position = |p: u32| {
            let (cos, sin) = table.at(p);
            cos.iter().chain(sin).copied()
        };
        let bytes: Vec<u8> = (0..context as u32).flat_map(position).flat_map(f32::to_le_bytes).collect();
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<Ptr, PredictError> {
        let mut memory = self.zeros(bytes.len())?;
        self.stream.write(&mut memory, 0, bytes).map_err(|error| runner::device::fault(&error))?;
        Ok(self.keep(memory))
    }

    fn zeros(&self, bytes: usize) -> Result<S::Memory, PredictError> {
        self.stream.zeros(bytes).map_err(|error| runner::device::fault(&error))
    }

    fn keep(&mut self, memory: S::Memory) -> Ptr {
        let ptr = memory.ptr();
        self.held.push(memory);
        ptr
    }

    fn matrix(&mut self, stack: &Stack) -> Result<Matrix, PredictError> {
        let opened = self.opened;
        let mut matrix = self.fit.matrix(opened, stack)?;
        let (quants, scales) = matrix.packing.bytes(matrix.rows, matrix.k);
        let mut planes = [self.zeros(quants)?, self.zeros(scales)?];
        let mut first = 0;
        let read = match self.from {
            Source::Files(_) => stack.parts.as_slice(),
            Source::Copy(_) => &[],
        };
        for &(role, outputs) in read {
            let raw = opened.raw(role, &[outputs, stack.inputs])?;
            let named = |why: String| PredictError::Operator(format!("tensor {}: {why}", raw.name));
            self.rows(&raw, &matrix, (first, outputs), &mut planes).map_err(named)?;
            first += outputs;
            opened.done(role);
        }
        let [quants, scales] = planes;
        (matrix.quants, matrix.scales) = (self.keep(quants), self.keep(scales));
        Ok(matrix)
    }

    /// Packs `count` rows, which become those from `first` on, a piece at a time on all threads; the device takes a piece while
    /// the next is packed.
    fn rows(
        &mut self,
        raw: &Raw,
        matrix: &Matrix,
        (first, count): (usize, usize),
        planes: &mut [S::Memory; 2],
    ) -> Result<(), String> {
        let said = |error: candle_core::Error| error.to_string();
        let Source::Files([up_quants, up_scales]) = &mut self.from else { return Ok(()) };
        let Matrix { packing, k, .. } = *matrix;
        let (quants, scales) = packing.bytes(1, k);
        let (row_bytes, element) = (raw.bytes.len() / count, self.fit.element);
        let together = up_quants.bytes() / quants;
        for from in (0..count).step_by(together) {
            let rows = together.min(count - from);
            let mut room = (
                up_quants.room(self.stream, rows * quants).map_err(said)?,
                up_scales.room(self.stream, rows * scales).map_err(said)?,
            );
            let each = rows.div_ceil(self.pool.threads() * PARTS_PER_THREAD);
            let mut parts = Vec::with_capacity(rows.div_ceil(each));
            for at in (from..from + rows).step_by(each) {
                let rows = each.min(from + rows - at);
                let (first, second);
                (first, room.0) = std::mem::take(&mut room.0).split_at_mut(rows * quants);
                (second, room.1) = std::mem::take(&mut room.1).split_at_mut(rows * scales);
                parts.push((at, rows, Some(Planes { quants: first, scales: second }), Ok(())));
            }
            self.pool.chunks(&mut parts, 1, |_, part| {
                let (at, rows, ref mut planes, ref mut packed) = part[0];
                let bytes = &raw.bytes[at * row_bytes..][..rows * row_bytes];
                if let Some(planes) = planes.take() {
                    *packed = pack(packing, element, raw.format, bytes, (rows, k), planes);
                }
            });
            parts.into_iter().try_for_each(|(_, _, _, packed)| packed)?;
            let ([to_quants, to_scales], row) = (&mut *planes, first + from);
            up_quants.send(self.stream, rows * quants, to_quants, row * quants).map_err(said)?;
            up_scales.send(self.stream, rows * scales, to_scales, row * scales).map_err(said)?;
        }
        Ok(())
    }
}

impl<S: Stream> Drop for Loader<'_, S> {
    /// The device may still be taking the last pieces. An error has nobody to hear it: the next call on the stream tells it again.
    fn drop(&mut self) {
        drop(self.stream.wait());
    }
}

/// No larger than the largest plane, and at least a row.
fn uploads<S: Stream>(stream: &S, opened: &Opened, fit: Fit) -> Result<[Upload<S>; 2], PredictError> {
    let mut most = (0, 0);
    for matrix in fit.matrices(opened)? {
        let ((quants, scales), row) = (matrix.packing.bytes(matrix.rows, matrix.k), matrix.packing.bytes(1, matrix.k));
        let rows = (PIECE_BYTES / row.0).max(1);
        most = (most.0.max(quants.min(rows * row.0)), most.1.max(scales.min(rows * row.1)));
    }
    let up = |bytes| Upload::new(stream, bytes).map_err(|error| runner::device::fault(&error));
    Ok([up(most.0)?, up(most.1)?])
}

/// Memories as a copy takes them.
pub fn spans(memories: &[impl Memory]) -> Vec<Span> {
    memories.iter().map(|memory| Span { at: memory.ptr(), bytes: memory.bytes() }).collect()
}

/// Whole rows of a format as the kernels read them.
fn pack(
    packing: Packing,
    element: Element,
    format: Format,
    bytes: &[u8],
    (rows, k): (usize, usize),
    to: Planes,
) -> Result<(), String> {
    let values = || convert::values(format, bytes);
    match (packing, format) {
        (Packing::Plain, Format::F16) if element == Element::F16 => weight::plain(bytes, rows, k, to),
        (Packing::Plain, Format::BF16) if element == Element::Bf16 => weight::plain(bytes, rows, k, to),
        (Packing::Plain, _) => {
            let bits = |v: &f32| match element {
                Element::F16 => f16::from_f32(*v).to_le_bytes(),
                Element::Bf16 => bf16::from_f32(*v).to_le_bytes(),
            };
            weight::plain(&values()?.iter().flat_map(bits).collect::<Vec<u8>>(), rows, k, to)
        }
        (Packing::Q8_0, Format::Q8_0) | (Packing::Q4_0, Format::Q4_0) | (Packing::Q4_1, Format::Q4_1) => {
            weight::blocks(packing, bytes, rows, k, to)
        }
        (Packing::Q4_1, Format::Q4_K) => weight::blocks(packing, &weight::q4_1_from_q4_k(bytes)?, rows, k, to),
        (Packing::Q8_0, _) => weight::blocks(packing, &convert::q8_0(&values()?), rows, k, to),
        (Packing::Q4_0, _) => weight::blocks(packing, &convert::q4_0(&values()?), rows, k, to),
        (Packing::Q4_1, _) => Err(format!("{} has no way to {}", format.name(), packing.name())),
        (Packing::Int8 | Packing::Fp8, _) => weight::scale_rows(packing, &values()?, rows, k, to),
    }
}
