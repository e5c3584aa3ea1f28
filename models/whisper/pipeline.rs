//! A loaded Whisper: several predictions, each with one window or a batch of them, and one forward of the decoder for all.
//! A step reads a minute of somebody's recording, or encodes one window, or decodes one token of every window under way;
//! windows that wait are encoded first, so that they are decoded together. Who shares a step changes nothing in what
//! anybody is told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, DeviceLocation};
use kernels::Pool;
use prediction::{Event, Id, Job, Kept, LoadSpec, Loaded, Map, Model, Outcome, PredictError, Weights};
use runner::Origin;
use runner::weights::{self, Lock};

use super::config::{Config, FRAMES};
use super::input::{Asked, MAX_BATCH};
use super::mel::Mel;
use super::running::{Now, Running, Shared};
use super::vocabulary::Vocabulary;
use super::weights::Opened;
use crate::shared::kept::{Copy, fitting};
use crate::shared::shelf::Shelf;

/// Where the deployment names none.
const DEFAULT_CONCURRENCY: usize = 4;
const MAX_CONCURRENCY: usize = 256;
const MAX_THREADS: usize = 1024;
/// While windows wait to be encoded, every so many steps decode all the same: nobody waits for somebody else's hours.
const ENCODINGS_PER_DECODING: usize = 4;

/// The folder's entry into `ALL`: loads any Whisper.
pub struct Whisper;

impl Model for Whisper {
    fn needs(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        let opened = open(&spec.weights, report)?;
        let places = slots(spec)?.max(MAX_BATCH as usize) as u64;
        let (config, precision) = (&opened.config, precision(spec, &opened)?);
        let step = step_bytes(config, places, spec.device == "cpu");
        Ok(opened.bytes() + places * window_bytes(config, precision) + step)
    }

    fn load(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        Ok(Box::new(Pipeline::load(spec, None, report)?))
    }

    fn load_kept(
        &self,
        spec: &LoadSpec,
        kept: Box<dyn Kept>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Loaded>, PredictError> {
        Ok(Box::new(Pipeline::load(spec, Some(kept), report)?))
    }
}

/// What decides the bytes that the net holds on its device.
#[derive(Debug, Clone, PartialEq)]
struct Identity {
    origin: Origin,
    config: Config,
    precision: DType,
    device: DeviceLocation,
}

pub struct Pipeline {
    pub shared: Shared,
    /// What the net holds on a GPU, and which weights that is of.
    shelf: Shelf,
    identity: Identity,
    /// What people call weights of this shape: `base`, `tiny.en`.
    name: String,
    defaults: Map,
    slots: usize,
    running: Vec<Running>,
    /// Steps since the last one that decoded.
    encodings: usize,
}

impl Pipeline {
    /// From the files, or from what an earlier one has kept.
    pub fn load(
        spec: &LoadSpec,
        kept: Option<Box<dyn Kept>>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Self, PredictError> {
        let opened = open(&spec.weights, report)?;
        let began = Instant::now();
        let device = runner::device::pick(&spec.device)?;
        let threads = spec.threads.map_or_else(|| runner::device::cpu().cores, |threads| threads as usize);
        if threads == 0 || threads > MAX_THREADS {
            return Err(PredictError::Operator(format!("threads is {threads}; 1 to {MAX_THREADS}")));
        }
        let slots = slots(spec)?;
        let precision = precision(spec, &opened)?;
        let pool = Arc::new(Pool::new(threads));
        let (origin, config) = (opened.origin(), opened.config.clone());
        let identity = Identity { origin, config, precision, device: device.location() };
        let shelf = match fitting(kept, &identity, report) {
            Some(copied) => Shelf::returned(copied, &device).map_err(|error| runner::device::fault(&error))?,
            None => {
                opened.read_ahead();
                Shelf::new(&device)
            }
        };
        // The vocabulary is built while the weights are repacked.
        let (net, vocabulary) = std::thread::scope(|scope| {
            let vocabulary = scope.spawn(|| {
                let (bytes, file) = opened.tokenizer()?;
                let vocabulary = Vocabulary::read(&bytes, &file, &opened.config)?;
                let non_speech = vocabulary.non_speech()?;
                Ok((vocabulary, non_speech))
            });
            let net = opened.net(&device, &pool, precision, &shelf);
            (net, vocabulary.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (net, (vocabulary, non_speech)) = (net?, vocabulary?);
        let name = size(&net.config);
        report(&format!(
            "Whisper {name}: {} MB of weights ready in {:.2} s; {slots} predictions at once, {threads} threads",
            net.bytes() / 1_000_000,
            began.elapsed().as_secs_f64(),
        ));
        let mel = Arc::new(Mel::new(net.config.mels));
        let shared = Shared { net, vocabulary, mel, non_speech };
        let defaults = spec.defaults.clone();
        Ok(Self { shared, shelf, identity, name, defaults, slots, running: Vec::new(), encodings: 0 })
    }

    /// Reads or encodes for the one that has waited longest; false where nobody has anything of the kind to do.
    fn work(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<bool, PredictError> {
        let Some(index) = self.running.iter().position(Running::has_work) else { return Ok(false) };
        match self.running[index].work(&self.shared, emit) {
            Ok(Now::GoesOn) => {
                // Whoever comes after has the next turn.
                let running = self.running.remove(index);
                self.running.push(running);
            }
            Ok(Now::Ended) => {
                self.running.remove(index);
            }
            Err(PredictError::FixInput(error)) => {
                let running = self.running.remove(index);
                emit(&running.id, Event::Ended(Outcome::Failed { error }));
            }
            Err(other) => return Err(other),
        }
        Ok(true)
    }

    /// One token of every window under way.
    fn decode(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        let (mut feeds, mut counts) = (Vec::new(), Vec::new());
        self.running.iter_mut().for_each(|running| running.feeds(&mut feeds, &mut counts));
        if feeds.is_empty() {
            return Ok(());
        }
        let logits = self.shared.net.decode(&mut feeds, None);
        drop(feeds);
        let logits = logits.and_then(|logits| logits.flatten_all()?.to_vec1::<f32>());
        let mut logits = logits.map_err(device_error)?;
        let width = self.shared.net.config.vocabulary;
        let mut rest = logits.as_mut_slice();
        let mut parts = Vec::with_capacity(counts.len());
        for count in counts {
            let (part, behind) = rest.split_at_mut(count * width);
            parts.push(part);
            rest = behind;
        }
        let mut parts = parts.into_iter();
        self.running.iter_mut().try_for_each(|running| running.take(&mut parts, &self.shared, emit))
    }
}

impl Loaded for Pipeline {
    fn admit(&mut self, job: Job) -> Result<(), PredictError> {
        let asked = Asked::read(job.input, &self.defaults, job.seed)?;
        if self.running.len() >= self.slots {
            return Err(PredictError::RetryLater(format!("{} predictions are already running", self.slots)));
        }
        self.running.push(Running::new(job.id, asked, &self.shared)?);
        Ok(())
    }

    fn step(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        self.running.iter_mut().for_each(|running| running.start(&self.name, emit));
        let turn = self.encodings >= ENCODINGS_PER_DECODING && self.running.iter().any(Running::decodes);
        if !turn && self.work(emit)? {
            self.encodings += 1;
            return Ok(());
        }
        self.encodings = 0;
        self.decode(emit)
    }

    fn cancel(&mut self, id: &Id) {
        self.running.retain(|running| running.id != *id);
    }

    fn active(&self) -> usize {
        self.running.len()
    }

    fn capacity(&self) -> usize {
        self.slots
    }

    fn bytes(&self) -> u64 {
        self.shared.net.bytes()
    }

    fn kept_bytes(&self) -> u64 {
        self.shelf.kept_bytes()
    }

    fn keep(&self) -> Result<Option<Box<dyn Kept>>, PredictError> {
        let copy = self.shelf.copied().map_err(|error| runner::device::fault(&error))?;
        let (identity, bytes) = (self.identity.clone(), copy.bytes());
        Ok(Some(Box::new(Copy { identity, copy, bytes })))
    }
}

/// A window's keys and values in every layer of the decoder, and those of a sequence over it.
fn window_bytes(config: &Config, precision: DType) -> u64 {
    let element = if precision == DType::F32 { 4 } else { 2 };
    (2 * element * config.decoder_layers * (config.audio_context + config.text_context) * config.hidden) as u64
}

/// What a step works with besides: one window in a layer of the encoder, or the logits of every window under way, here and
/// on the device.
fn step_bytes(config: &Config, places: u64, cpu: bool) -> u64 {
    let Config { mels, hidden, audio_context: positions, encoder_heads: heads, vocabulary, .. } = *config;
    // The first convolution's input and result, and the second's input.
    let convolutions = FRAMES * (3 * mels + hidden) + positions * 3 * hidden;
    // The residual, its norm, queries, keys and values twice, what is seen, and the rows fed forward.
    let layer = positions * hidden * (1 + 1 + 3 + 2 + 1 + 4);
    // The CPU's kernel goes over scores piece by piece; elsewhere all heads' are there, beside their weights.
    let scores = if cpu { 0 } else { 2 * heads * positions * positions };
    let encoder = 4 * convolutions.max(layer + scores) as u64;
    encoder.max(places * 2 * 4 * vocabulary as u64)
}

/// What the weights are kept in: as asked, else as the files have them.
fn precision(spec: &LoadSpec, opened: &Opened) -> Result<DType, PredictError> {
    runner::device::precision(spec.precision.as_deref(), opened.dtype()?, None)
}

fn slots(spec: &LoadSpec) -> Result<usize, PredictError> {
    match spec.concurrency.map_or(DEFAULT_CONCURRENCY, |n| n as usize) {
        slots if (1..=MAX_CONCURRENCY).contains(&slots) => Ok(slots),
        slots => Err(PredictError::Operator(format!("concurrency is {slots}; 1 to {MAX_CONCURRENCY}"))),
    }
}

/// What people call this shape.
fn size(config: &Config) -> String {
    let name = match (config.hidden, config.mels, config.decoder_layers) {
        (384, ..) => "tiny",
        (512, ..) => "base",
        (768, ..) => "small",
        (1024, ..) => "medium",
        (1280, 128, 4) => "large-v3-turbo",
        (1280, 128, _) => "large-v3",
        (1280, ..) => "large-v2",
        _ => "of a size of its own",
    };
    if config.multilingual() { name.to_owned() } else { format!("{name}.en") }
}

/// Opens the weights, fetched first if need be.
fn open(weights: &Weights, report: &mut dyn FnMut(&str)) -> Result<Opened, PredictError> {
    match weights {
        Weights::Path(path) => Opened::open(path),
        Weights::Locked { name, offline } => Opened::open(&locate(name, *offline, report)?),
        Weights::Synth { shape, dtype, seed } => Opened::synth(shape, dtype, *seed),
    }
}

/// Where pinned weights lie, fetched first if need be.
fn locate(name: &str, offline: bool, report: &mut dyn FnMut(&str)) -> Result<PathBuf, PredictError> {
    let lock = Lock::parse(super::ENTRY.lock)?;
    let mirrors = weights::mirrors(super::ENTRY.manifest, name)?;
    let mut options = weights::Options::from_env();
    options.offline |= offline;
    weights::ensure(lock.entry(name)?, &mirrors, &options, &mut weights::lines(report))
}

pub(super) fn device_error(error: candle_core::Error) -> PredictError {
    PredictError::Operator(format!("The device failed: {error}"))
}
