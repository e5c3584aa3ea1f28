//! The engine on a GPU, with our kernels: weights, cache and counts stay there, a step's rows go up in one copy and its tokens come
//! down in one. Steps of one token each are padded to a bucket and sent as what was captured for it; those with parts of prompts
//! are put together as they come. The tokens of a step are there for the next one before the host knows them, so the host may
//! send a step before it has taken the tokens of the last. Knows no GPU: a [`Stream`] runs the work, which in the tests is the
//! emulator. Refuses to know predictions and text.
//!
//! Two ways to compute. By default steps with prompts take the device's library for many rows and a kernel of their own for
//! attention; then what a prompt's numbers are to the last bit hangs on how it was cut. Batch-invariant, every row of every step
//! goes through the kernels of a step of single tokens, whose sums have one order: numbers are the same to the bit alone, in a
//! batch, read in parts, found in the cache or read again. That costs time on prompts only.

mod arrange;
mod counts;
pub mod kept;
mod weights;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use candle_core::{DType, Result};
use kernels::Pool;
use kernels::attention::BLOCK;
use kernels::cuda::attention::prefill_tiles;
use kernels::cuda::call::Element;
use kernels::cuda::decoder::{Decoder, Plan, Room, Told, room_bytes};
use kernels::cuda::exchange::{self, Exchange, Sent};
use kernels::cuda::inputs::{BUCKETS, Inputs, Layout, bucket};
use kernels::cuda::kept::HostCopy;
use kernels::cuda::params::Ask as Wish;
use kernels::cuda::rows::{self, Choice};
use kernels::cuda::stream::{Memory, Stream, Work};
use kernels::op::{Ask, NotANumber};
use prediction::{Kept, PredictError};

use super::engine::{Chosen, Engine};
use super::needs::{Load, Needs};
use super::rows::Rows;
use super::weights::Opened;
use arrange::Arranged;
use counts::Counts;
use kept::{Identity, Planes};
pub use weights::Fit;
use weights::{Loader, spans};

/// From so many rows on the library is faster than our products, which take 64 at a time.
const LIBRARY_ROWS: usize = 128;
/// Banned tokens of one prediction that there is room for at the start; more make room.
const BANS_EACH: usize = 16;
/// What the bandwidth is measured with: copies of so many bytes, several in one pass, the median of so many passes.
const COPY_BYTES: usize = 1 << 30;
const LEAST_COPY_BYTES: usize = 64 << 20;
const COPIES: usize = 8;
const COPY_PASSES: usize = 5;

pub struct Gpu<S: Stream> {
    stream: S,
    decoder: Decoder,
    room: Room,
    exchange: Exchange<S>,
    counts: Counts<S>,
    captured: BTreeMap<usize, S::Captured>,
    /// Steps whose tokens were not taken, and how many those are.
    under_way: VecDeque<(Sent, usize)>,
    sizes: Sizes,
    blocks: usize,
    context: usize,
    batch_invariant: bool,
    weights_bytes: u64,
    bytes: u64,
    /// Of the weights, what a step reads only rows of.
    looked_up_bytes: u64,
    /// What `room` points to, part by part.
    rooms: Vec<S::Memory>,
    /// What the decoder points to: weights, in the order in which they are read; rotary table, keys and values.
    weights: Vec<S::Memory>,
    _held: Vec<S::Memory>,
    identity: Identity,
}

/// What fits into a step, and what that takes of the device.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    choices: usize,
    table_blocks: usize,
    room: [usize; 10],
    inputs: usize,
    counts: usize,
    rope: usize,
    /// Keys, or values, of one layer.
    plane: usize,
}

/// Of a room's parts.
const LOGITS: usize = 5;

impl Sizes {
    fn of(decoder: &Decoder, load: &Load) -> Sizes {
        let Load { slots, context, blocks, batch_invariant, .. } = *load;
        let choices = bucket(slots).unwrap_or(slots);
        let (rows, table_blocks) = (load.rows.max(choices), context.div_ceil(BLOCK));
        let singles = if batch_invariant { rows } else { choices };
        // Every row may be a tile of its own.
        let layout = Layout { rows, choices, table_blocks, picks: choices, tiles: rows, bans: BANS_EACH * choices };
        Sizes {
            rows,
            choices,
            table_blocks,
            room: room_bytes(decoder, (rows, singles, choices), !batch_invariant),
            inputs: layout.bytes(),
            counts: counts::bytes_for(slots, decoder.head.rows),
            rope: context * decoder.dim * 4,
            plane: blocks * decoder.kv_heads * BLOCK * decoder.dim * 2,
        }
    }
}

/// What `Gpu::load` takes of the device, from headers alone.
pub fn needs(opened: &Opened, fit: Fit, load: &Load) -> std::result::Result<Needs, PredictError> {
    let decoder = fit.shape(opened)?;
    let Sizes { choices, room, inputs, counts, rope, plane, .. } = Sizes::of(&decoder, load);
    let step = room.iter().sum::<usize>() + exchange::bytes_for(inputs, choices) + counts + rope;
    let cache = 2 * decoder.layers.len() * plane;
    Ok(Needs { weights: fit.bytes(opened)?, cache: cache as u64, step: step as u64 })
}

impl<S: Stream> Gpu<S> {
    /// Weights to the device, from the files or from a copy of them, and everything that a step needs there.
    pub fn load(
        stream: S,
        opened: &Opened,
        fit: Fit,
        load: &Load,
        pool: &Pool,
        copy: Option<HostCopy<S>>,
        report: &mut dyn FnMut(usize, usize),
    ) -> std::result::Result<Self, PredictError> {
        let fault = |error: candle_core::Error| runner::device::fault(&error);
        let needs = needs(opened, fit, load)?;
        let mut loader = Loader::new(&stream, opened, fit, pool, copy)?;
        let mut decoder = loader.load(report)?;
        let weights = loader.take_held();
        decoder.rope = loader.rope(load.context)?;
        let mut held = loader.take_held();
        drop(loader);
        let sizes = Sizes::of(&decoder, load);
        let zeros = |bytes: usize| stream.zeros(bytes).map_err(fault);
        for layer in &mut decoder.layers {
            let (keys, values) = (zeros(sizes.plane)?, zeros(sizes.plane)?);
            (layer.keys, layer.values) = (keys.ptr(), values.ptr());
            held.extend([keys, values]);
        }
        let rooms = sizes.room.iter().map(|&bytes| zeros(bytes)).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Self {
            room: Room::of(std::array::from_fn(|part| rooms[part].ptr())),
            exchange: Exchange::new(&stream, sizes.inputs, sizes.choices).map_err(fault)?,
            counts: Counts::new(&stream, load.slots, decoder.head.rows).map_err(fault)?,
            captured: BTreeMap::new(),
            under_way: VecDeque::new(),
            blocks: load.blocks,
            context: load.context,
            batch_invariant: load.batch_invariant,
            weights_bytes: needs.weights,
            bytes: needs.total(),
            looked_up_bytes: fit.looked_up_bytes(opened)?,
            rooms,
            weights,
            _held: held,
            identity: Identity::of(opened, fit, load),
            sizes,
            decoder,
            stream,
        })
    }

    /// Captures the steps of single tokens ahead of the first one.
    pub fn warm(&mut self) -> Result<()> {
        let most = self.sizes.choices;
        for rows in BUCKETS.into_iter().filter(|rows| *rows <= most) {
            self.capture(rows)?;
        }
        Ok(())
    }

    fn capture(&mut self, rows: usize) -> Result<()> {
        let layout = self.decode_layout(rows, 0);
        // It runs once while it is captured: nobody is in it. What was sent before has passed by then.
        self.exchange.clear(&self.stream, &layout)?;
        let work = self.work(&layout, &Plan::decode(rows), true);
        // SAFETY: the addresses are of memory that lives as long as the engine, as large as `Sizes` says.
        self.captured.insert(rows, unsafe { self.stream.capture(&work)? });
        Ok(())
    }

    fn decode_layout(&self, rows: usize, bans: usize) -> Layout {
        let table_blocks = self.sizes.table_blocks;
        Layout { rows, choices: rows, table_blocks, picks: 0, tiles: 0, bans }
    }

    /// A step's work, with the choice of tokens or without.
    fn work(&self, layout: &Layout, plan: &Plan, choose: bool) -> Vec<Work> {
        let at = self.exchange.inputs();
        let told = Told {
            tokens: layout.tokens(at),
            from: layout.from(at),
            chosen: self.exchange.chosen(),
            positions: layout.positions(at),
            tables: layout.tables(at),
            table_blocks: layout.table_blocks,
        };
        let mut work = self.decoder.forward(&self.stream.gpu(), &self.room, &told, plan);
        if choose && layout.choices > 0 {
            let choice = Choice {
                logits: self.room.logits,
                asks: layout.asks(at),
                counts: self.counts.ptr(),
                bans: layout.bans(at),
                chosen: self.exchange.chosen(),
            };
            work.push(Work::Call(rows::choose(&choice, layout.choices, self.decoder.head.rows)));
        }
        work
    }

    /// What a step with these rows is told, and how it is run.
    fn plan(&self, rows: &Rows, bans: usize) -> Result<(Arranged, Layout, Plan)> {
        let (count, wanted) = (rows.len(), rows.wanted().len());
        let arranged = Arranged::of(rows, self.batch_invariant);
        let Sizes { rows: most, choices, table_blocks, .. } = self.sizes;
        if count == 0 || count > most || wanted > choices || (!self.batch_invariant && arranged.singles > choices) {
            candle_core::bail!(
                "a step of {count} rows that wants {wanted} tokens; there is room for {most} and {choices}"
            );
        }
        rows.places()?.fit(self.blocks).map_err(candle_core::Error::msg)?;
        if let Some(position) = rows.positions().iter().find(|p| **p as usize >= self.context) {
            candle_core::bail!("position {position} is outside the context of {} tokens", self.context);
        }
        if arranged.all_speak
            && let Some(bucket) = bucket(count)
        {
            return Ok((arranged, self.decode_layout(bucket, bans), Plan::decode(bucket)));
        }
        let tiles = prefill_tiles(&arranged.runs, self.decoder.heads, self.decoder.kv_heads).len();
        let layout = Layout { rows: count, choices: wanted, table_blocks, picks: wanted, tiles, bans };
        let at = self.exchange.inputs();
        let library = !self.batch_invariant && count >= LIBRARY_ROWS;
        let (singles, picks) = (arranged.singles, Some((layout.picks(at), wanted)));
        let plan = Plan { rows: count, singles, tiles: (layout.tiles(at), tiles), picks, library };
        Ok((arranged, layout, plan))
    }

    /// More banned tokens than there was ever room for.
    fn make_room(&mut self, bans: usize) -> Result<()> {
        let Sizes { rows, choices, table_blocks, .. } = self.sizes;
        let layout = Layout { rows, choices, table_blocks, picks: choices, tiles: rows, bans };
        if layout.bytes() <= self.exchange.room() {
            return Ok(());
        }
        if !self.under_way.is_empty() {
            candle_core::bail!("a step bans more tokens than the one before it, which is under way");
        }
        self.exchange = Exchange::new(&self.stream, layout.bytes().next_power_of_two(), choices)?;
        // They read where the inputs were.
        self.captured.clear();
        Ok(())
    }

    fn send_off(&mut self, rows: &Rows, asks: &[Wish], bans: &[u32], choose: bool) -> Result<Sent> {
        let (arranged, layout, plan) = self.plan(rows, bans.len())?;
        let bucket = choose.then_some(plan.rows).filter(|_| plan.picks.is_none());
        if let Some(rows) = bucket.filter(|rows| !self.captured.contains_key(rows)) {
            self.capture(rows)?;
        }
        let work = if bucket.is_some() { Vec::new() } else { self.work(&layout, &plan, choose) };
        let heads = (self.decoder.heads, self.decoder.kv_heads);
        let places = rows.places()?;
        let fill = |inputs: &mut Inputs| {
            arranged.fill(rows, &places, layout.table_blocks, heads, inputs);
            inputs.asks[..asks.len()].copy_from_slice(asks);
            inputs.bans.copy_from_slice(bans);
        };
        let captured = bucket.and_then(|rows| self.captured.get(&rows));
        self.exchange.send(&self.stream, &layout, fill, |stream| {
            // SAFETY: as of `capture`; the rows' blocks and positions are those of the cache, see `plan`.
            unsafe {
                match captured {
                    Some(captured) => stream.replay(captured),
                    None => work.iter().try_for_each(|work| stream.run(work)),
                }
            }
        })
    }
}

impl<S: Stream> Drop for Gpu<S> {
    /// A step may be under way: its memory goes when it has passed. An error has nobody to hear it any more.
    fn drop(&mut self) {
        drop(self.stream.wait());
    }
}

impl<S: Stream + 'static> Engine for Gpu<S> {
    fn vocabulary(&self) -> usize {
        self.decoder.head.rows
    }

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn context(&self) -> usize {
        self.context
    }

    fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn kept_bytes(&self) -> u64 {
        kernels::cuda::kept::bytes_for(self.weights.iter().map(|memory| memory.bytes() as u64).sum())
    }

    fn keep(&self) -> Result<Option<Box<dyn Kept>>> {
        // SAFETY: the engine's own memory of its own stream.
        let copy = unsafe { HostCopy::of(&self.stream, &self.stream.spare(), &spans(&self.weights)) }?;
        let (identity, bytes) = (self.identity.clone(), copy.bytes());
        Ok(Some(Box::new(Planes::<S> { identity, copy, bytes })))
    }

    fn step_bytes(&self, positions: usize) -> u64 {
        let Decoder { kv_heads, dim, ref layers, .. } = self.decoder;
        self.weights_bytes - self.looked_up_bytes + (2 * layers.len() * positions * kv_heads * dim * 2) as u64
    }

    fn bandwidth(&self) -> Result<f64> {
        let mut bytes = COPY_BYTES;
        let (from, mut to) = loop {
            match self.stream.zeros(bytes).and_then(|from| Ok((from, self.stream.zeros(bytes)?))) {
                Ok(both) => break both,
                Err(_) if bytes <= LEAST_COPY_BYTES => return Ok(f64::NAN),
                // Beside the model there is less room.
                Err(_) => bytes /= 2,
            }
        };
        let mut seconds = Vec::with_capacity(COPY_PASSES);
        for _ in 0..=COPY_PASSES {
            self.stream.wait()?;
            let began = Instant::now();
            (0..COPIES).try_for_each(|_| self.stream.copy(&from, &mut to))?;
            self.stream.wait()?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        // The first one touches.
        seconds.remove(0);
        seconds.sort_by(f64::total_cmp);
        // Read and written.
        Ok((2 * COPIES * bytes) as f64 / seconds[COPY_PASSES / 2])
    }

    fn activations(&self) -> DType {
        match self.decoder.element {
            Element::Bf16 => DType::BF16,
            Element::F16 => DType::F16,
        }
    }

    fn looks_ahead(&self) -> bool {
        true
    }

    fn send(&mut self, rows: &Rows, asks: &[Ask]) -> Result<()> {
        if self.under_way.len() > 1 || asks.len() != rows.wanted().len() {
            candle_core::bail!(
                "{} steps are under way, {} asks for {:?}",
                self.under_way.len(),
                asks.len(),
                rows.wanted()
            );
        }
        let (wishes, bans) = self.counts.asks(&self.stream, asks, rows.whose())?;
        self.make_room(bans.len())?;
        let sent = self.send_off(rows, &wishes, &bans, true)?;
        self.under_way.push_back((sent, wishes.len()));
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<Chosen>> {
        let Some((sent, count)) = self.under_way.pop_front() else { candle_core::bail!("no step is under way") };
        let tokens = self.exchange.tokens(&self.stream, sent)?;
        let chosen = |token| if token == u32::MAX { Err(NotANumber) } else { Ok(token) };
        Ok(tokens.into_iter().take(count).map(chosen).collect())
    }

    fn logits(&mut self, rows: &Rows) -> Result<Vec<f32>> {
        if !self.under_way.is_empty() {
            candle_core::bail!("a step is under way");
        }
        let unused = vec![Wish::UNUSED; rows.wanted().len()];
        let sent = self.send_off(rows, &unused, &[], false)?;
        self.exchange.tokens(&self.stream, sent)?;
        let bytes = self.stream.read(&self.rooms[LOGITS], unused.len() * self.vocabulary() * 4)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
    }
}
