//! A loaded Llama: many predictions, one forward per step. Each step reads one token of everybody who speaks and, in what
//! time is left, the next part of the prompts that are still being read: a long prompt delays the others by one part at a
//! time. Who shares a step with whom changes nothing in what anybody says. Who takes part is `schedule`'s to say.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use kernels::Pool;
use kernels::attention::BLOCK;
use kernels::op::NotANumber;
use prediction::{Event, Id, Job, Kept, LoadSpec, Loaded, Map, Model, PredictError};

use super::blocks::Blocks;
use super::engine::Engine;
use super::input::Asked;
use super::needs::{Load, Needs};
use super::rows::Rows;
use super::running::Running;
use super::schedule::{Schedule, TooLong};
use super::template::{self, Chat};
use super::tokenizer::Tokenizer;
use super::weights::Opened;

/// Where the deployment names none.
pub const DEFAULT_CONCURRENCY: usize = 16;
/// Where the deployment names none, the model's own context up to this many positions.
pub const DEFAULT_CONTEXT_TOKENS: usize = 8192;
/// The cache has room for so many positions, or for one whole context if that is more, unless everybody's whole context
/// takes less.
pub const DEFAULT_CACHE_TOKENS: usize = 65_536;
/// Of the cache on the CPU, what may be kept of predictions that have ended, so that the same beginning need not be read
/// again: 4,096 positions of the default. Elsewhere the whole cache is taken at load and may as well be kept.
const KEPT_SHARE: usize = 16;
/// More than anybody's model knows; keeps the cache's size inside 64 bits.
const MAX_CONTEXT_TOKENS: usize = 1 << 24;
const MAX_CONCURRENCY: usize = 4096;
/// How long a step may take to read prompts while nobody speaks: a cancel is heard between steps.
const READING_SECONDS: f64 = 0.4;
/// The same while somebody speaks: how long a long prompt may delay each token of the others.
const READING_SECONDS_BESIDE_SPEAKERS: f64 = 0.06;
/// Prompt tokens of a step, however fast or slow the device is; and of the first step, when that is not known.
const MIN_READING_TOKENS: usize = 16;
const MAX_READING_TOKENS: usize = 512;
const FIRST_READING_TOKENS: usize = 64;
/// Steps with fewer rows say nothing about how fast prompts are read.
const MIN_MEASURED_ROWS: usize = 16;
const MAX_THREADS: usize = 1024;

/// The folder's entry into `ALL`: loads any Llama.
pub struct Llama;

impl Model for Llama {
    fn needs(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        needs(spec, report).map(|needs| needs.total())
    }

    fn load(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        Ok(Box::new(Pipeline::load(spec, report)?))
    }

    fn load_kept(
        &self,
        spec: &LoadSpec,
        kept: Box<dyn Kept>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Loaded>, PredictError> {
        Ok(Box::new(Pipeline::with_cache(spec, None, Some(kept), report)?))
    }
}

pub struct Pipeline {
    pub engine: Box<dyn Engine>,
    /// Of the CPU.
    pub threads: usize,
    tokenizer: Tokenizer,
    /// None: the prompt is all the model reads (a base model).
    chat: Option<Chat>,
    ends: Vec<u32>,
    defaults: Map,
    /// How long a row of a prompt takes, from the steps so far. Only how prompts are cut hangs on it, never what is said.
    pub seconds_per_row: Option<f64>,
    /// Predictions that one step may have.
    slots: usize,
    schedule: Schedule<Running>,
    /// The rows of the step: kept for their memory.
    rows: Rows,
    /// The next step has been sent.
    under_way: bool,
}

impl Pipeline {
    pub fn load(spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Self, PredictError> {
        Self::with_cache(spec, None, None, report)
    }

    /// With a cache of so many blocks, and with what an earlier one has kept.
    pub fn with_cache(
        spec: &LoadSpec,
        blocks: Option<usize>,
        kept: Option<Box<dyn Kept>>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Self, PredictError> {
        let opened = Opened::of(&spec.weights, report)?;
        let began = Instant::now();
        let device = runner::device::pick(&spec.device)?;
        let load = plan(spec, blocks, &opened, &device)?;
        Needs::of(&opened, &load)?.check(&device)?;
        let Load { slots, context, blocks, .. } = load;
        let threads = spec.threads.map_or_else(|| runner::device::cpu().cores, |threads| threads as usize);
        if threads == 0 || threads > MAX_THREADS {
            return Err(PredictError::Operator(format!("threads is {threads}; 1 to {MAX_THREADS}")));
        }
        let pool = Arc::new(Pool::new(threads));
        // The vocabulary is built while the weights are repacked.
        let (engine, words) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| opened.tokenizer());
            let engine = opened.engine(&load, &pool, kept, report);
            (engine, tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (engine, (tokenizer, words)) = (engine?, words?);
        let chat = words.chat_template.map(|source| Chat::new(source, words.bos, words.eos));
        let chat = chat.transpose().map_err(PredictError::Operator)?;
        let kept = if device.is_cpu() { blocks / KEPT_SHARE } else { blocks };
        let mut ends: Vec<u32> = opened.config.ends.iter().copied().chain(tokenizer.usual_ends()).collect();
        ends.sort_unstable();
        ends.dedup();
        report(&format!(
            "{} MB of {} ready in {:.2} s; {slots} predictions of up to {context} tokens, {} in the cache, {threads} threads",
            engine.weights_bytes() / 1_000_000,
            opened.title().as_deref().unwrap_or("weights"),
            began.elapsed().as_secs_f64(),
            blocks * BLOCK,
        ));
        Ok(Self {
            engine,
            threads,
            tokenizer,
            chat,
            ends,
            defaults: spec.defaults.clone(),
            seconds_per_row: None,
            slots,
            schedule: Schedule::new(Blocks::new(blocks, kept)),
            rows: Rows::default(),
            under_way: false,
        })
    }

    /// What the model reads for this input.
    pub fn prompt(&self, asked: &Asked) -> Result<Vec<u32>, PredictError> {
        let system = asked.system.as_deref();
        let (text, chat) = match (&asked.template, &self.chat) {
            (Some(template), _) => (template::fill(template, system, &asked.prompt)?, false),
            (None, Some(chat)) => (chat.render(system, &asked.prompt)?, true),
            (None, None) => {
                (system.iter().map(|text| format!("{text}\n\n")).collect::<String>() + &asked.prompt, false)
            }
        };
        let limit = self.engine.context() - 1;
        let too_long = |count: &str| {
            PredictError::FixInput(format!(
                "Prompt is too long: {count} tokens; at most {limit} fit the context (E1002)"
            ))
        };
        let least = self.tokenizer.least_tokens(&text);
        if least > limit {
            return Err(too_long(&format!("more than {}", least - 1)));
        }
        // A chat template writes the first token itself.
        let ids = if chat { self.tokenizer.encode(&text) } else { self.tokenizer.encode_with_bos(&text) }?;
        if ids.len() > limit {
            return Err(too_long(&ids.len().to_string()));
        }
        if ids.is_empty() {
            return Err(PredictError::FixInput("A prompt is required: it has no tokens (E1001)".into()));
        }
        let vocabulary = self.engine.vocabulary();
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(PredictError::Operator(format!(
                "The tokenizer knows token {id}, but the weights have {vocabulary}: they do not belong together"
            ))),
            None => Ok(ids),
        }
    }

    /// How many prompt tokens the next step may read.
    fn reading_budget(&self) -> usize {
        let seconds = if self.schedule.speakers() { READING_SECONDS_BESIDE_SPEAKERS } else { READING_SECONDS };
        self.seconds_per_row.map_or(FIRST_READING_TOKENS, |row| {
            ((seconds / row) as usize).clamp(MIN_READING_TOKENS, MAX_READING_TOKENS)
        })
    }
}

impl Loaded for Pipeline {
    fn admit(&mut self, job: Job) -> Result<(), PredictError> {
        let asked = Asked::read(job.input, &self.defaults, job.seed)?;
        let prompt = self.prompt(&asked)?;
        if self.schedule.len() >= self.slots {
            return Err(PredictError::RetryLater(format!("{} predictions are already running", self.slots)));
        }
        let room = self.engine.context().min(self.schedule.most_positions()).saturating_sub(prompt.len());
        let running = Running::new(job.id, asked, &prompt, room, &self.ends, &self.tokenizer);
        let tokens = prompt.len();
        self.schedule.admit(running, prompt).map_err(|TooLong { needed, exist }| {
            PredictError::FixInput(format!(
                "Prompt is too long: {tokens} tokens need {needed} blocks of {BLOCK} in the cache, which has {exist} (E1002)"
            ))
        })
    }

    fn step(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        if self.schedule.is_empty() {
            return Ok(());
        }
        let (mut began, mut rows) = (None, 0);
        if !self.under_way {
            self.schedule.plan(self.reading_budget(), &mut self.rows);
            self.schedule.planned().for_each(|running| running.start(emit));
            let asks: Vec<_> = self.schedule.wanted().map(Running::ask).collect();
            (began, rows) = (Some(Instant::now()), self.rows.len());
            self.engine.send(&self.rows, &asks).map_err(device_error)?;
        }
        // While nobody joins or leaves, the next step goes off before what this one says is known.
        self.under_way = self.engine.looks_ahead() && self.schedule.plan_ahead(Running::goes_on, &mut self.rows);
        if self.under_way {
            let asks: Vec<_> = self.schedule.wanted_ahead().map(Running::ask_ahead).collect();
            self.engine.send(&self.rows, &asks).map_err(device_error)?;
        }
        let chosen = self.engine.take().map_err(device_error)?;
        if let Some(began) = began.filter(|_| rows >= MIN_MEASURED_ROWS && !self.under_way) {
            let row = began.elapsed().as_secs_f64() / rows as f64;
            self.seconds_per_row = Some(self.seconds_per_row.map_or(row, |before| (before + row) / 2.0));
        }
        let tokenizer = &self.tokenizer;
        self.schedule.ran(|running, past, place| {
            let chosen = chosen.get(place).copied().unwrap_or(Err(NotANumber));
            running.take(chosen, past, tokenizer, emit)
        });
        if self.under_way && self.schedule.is_empty() {
            // Everybody has ended; nobody waits for what was sent ahead.
            self.under_way = false;
            self.engine.take().map_err(device_error)?;
        }
        Ok(())
    }

    fn cancel(&mut self, id: &Id) {
        self.schedule.cancel(|running| running.id == *id);
    }

    fn active(&self) -> usize {
        self.schedule.len()
    }

    fn capacity(&self) -> usize {
        self.slots
    }

    fn bytes(&self) -> u64 {
        self.engine.bytes()
    }

    fn kept_bytes(&self) -> u64 {
        self.engine.kept_bytes()
    }

    fn keep(&self) -> Result<Option<Box<dyn Kept>>, PredictError> {
        self.engine.keep().map_err(device_error)
    }
}

/// Blocks of the cache where the deployment does not say.
fn cache_blocks(slots: usize, context: usize) -> usize {
    let whole = slots * context.div_ceil(BLOCK);
    whole.min(DEFAULT_CACHE_TOKENS.max(context).div_ceil(BLOCK))
}

/// What `Pipeline::load` will take: the same sum that it checks before it allocates.
pub fn needs(spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Needs, PredictError> {
    let opened = Opened::of(&spec.weights, report)?;
    let device = runner::device::pick(&spec.device)?;
    Needs::of(&opened, &plan(spec, None, &opened, &device)?)
}

fn plan<'a>(
    spec: &'a LoadSpec,
    blocks: Option<usize>,
    opened: &Opened,
    device: &'a Device,
) -> Result<Load<'a>, PredictError> {
    let (context, slots) = (context(spec, opened.config.context)?, slots(spec)?);
    let (blocks, rows) = (blocks.unwrap_or_else(|| cache_blocks(slots, context)), MAX_READING_TOKENS + slots);
    let (precision, batch_invariant) = (spec.precision.as_deref(), spec.batch_invariant);
    Ok(Load { device, precision, slots, context, blocks, rows, batch_invariant })
}

fn slots(spec: &LoadSpec) -> Result<usize, PredictError> {
    match spec.concurrency.map_or(DEFAULT_CONCURRENCY, |n| n as usize) {
        slots if (1..=MAX_CONCURRENCY).contains(&slots) => Ok(slots),
        slots => Err(PredictError::Operator(format!("concurrency is {slots}; 1 to {MAX_CONCURRENCY}"))),
    }
}

fn context(spec: &LoadSpec, own: usize) -> Result<usize, PredictError> {
    let Some(asked) = spec.context_tokens else { return Ok(own.min(DEFAULT_CONTEXT_TOKENS)) };
    let limit = own.min(MAX_CONTEXT_TOKENS);
    match asked as usize {
        asked if (2..=limit).contains(&asked) => Ok(asked),
        asked => Err(PredictError::Operator(format!("context_tokens is {asked}; the model was made for 2 to {limit}"))),
    }
}

pub(super) fn device_error(error: candle_core::Error) -> PredictError {
    runner::device::fault(&error)
}
