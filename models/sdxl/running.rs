//! One prediction inside the pipeline: what it was given, how far it is, what it says. Knows the order of things; refuses to
//! know how a net works.

use std::time::{Duration, Instant};

use candle_core::Tensor;
use prediction::{Event, Id, Map, Outcome, Output, PredictError};
use serde_json::{Value, json};

use super::change::Change;
use super::generate::{self, Drawing, Generator, Plan, Prepared, Refine as Refining, Schedule, Start};
use super::image::{Picture, Read};
use super::input::{Asked, Format, Refine};
use super::noise::Seeded;
use super::pipeline::{Files, call_operations};
use super::safety::Checker;
use super::scheduler::Config;

/// Cells of a progress bar.
const BAR: usize = 10;
/// Latent pixels of a preview's longer side: decoded in no time.
const PREVIEW_SIDE: usize = 32;
/// What the reference draws anew in a finished image: cog-sdxl leaves it at the pipeline's own default.
const REFINED_SHARE: f64 = 0.3;
/// Of a prediction all of whose images were flagged: callers of the hosted model look for these words.
const ALL_FLAGGED: &str = "NSFW content detected. Try running it again, or try a different prompt.";

pub struct Running {
    pub id: Id,
    asked: Asked,
    plan: Plan,
    change: Option<Change>,
    /// Said once it starts.
    notes: String,
    provenance: Map,
    /// Calls of nets of one image.
    calls: usize,
    phase: Phase,
    started: Option<Instant>,
    drawing_since: Option<Instant>,
    /// A file for each image; none where the safety checker flagged it.
    done: Vec<Option<Value>>,
}

enum Phase {
    Admitted,
    Started,
    Drawing(Box<Prepared>, Box<Drawing>),
    Decoding(Box<Prepared>, Tensor),
}

/// Whether a prediction goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    GoesOn,
    Ended,
}

impl Running {
    /// Everything that can be refused before device work is refused here.
    pub fn new(id: Id, asked: Asked, files: &Files, scheduler: &Config, provenance: Map) -> Result<Self, PredictError> {
        let mut notes = format!("Using seed: {}\n", asked.seed);
        if asked.image.is_none() && asked.mask.is_some() {
            notes += "mask: there is no image that it could be of; it is ignored, as the hosted model does\n";
        }
        let image = asked.image.as_ref().map(|uri| Read::open("image", uri)).transpose()?;
        let mask = asked.mask.as_ref().filter(|_| image.is_some());
        let mask = mask.map(|uri| Read::open("mask", uri)).transpose()?;
        generate::takes(files.base.unet_config(), files.base.vae_config(), mask.is_some())?;
        let (width, height) = asked.size(image.as_ref().map(Read::size))?;
        let rounded = |asked: Option<usize>, pixels| asked.is_some_and(|asked| asked != pixels);
        if rounded(asked.width, width) || rounded(asked.height, height) {
            notes += &format!("width and height are multiples of 8: {width} x {height}\n");
        }
        for read in [&image, &mask].into_iter().flatten() {
            notes += &read.note(width, height);
        }
        if asked.check_safety && !files.base.has_checker() {
            notes += "The safety checker's weights are not here: the images are not checked.\n";
        }
        if asked.watermark && width < super::watermark::MIN_WIDTH {
            notes +=
                &format!("Below a width of {} pixels an image carries no watermark.\n", super::watermark::MIN_WIDTH);
        }
        let change = asked.lora.as_ref().map(|uri| Change::open(uri, asked.lora_scale, &files.base)).transpose()?;
        let mut prompt = asked.prompt.clone();
        if let Some(change) = &change {
            let (read, note) = change.prompt(&prompt)?;
            prompt = read;
            notes += &note;
        }
        let refine = match asked.refine {
            Refine::No => Refining::No,
            Refine::Ensemble(share) => Refining::Ensemble(share),
            Refine::Image(steps) => Refining::Image(steps),
        };
        if refine != Refining::No && files.refiner.is_none() {
            let why = "refine: these weights have no refiner: put one's folder into theirs as `refiner`, or ask for no_refiner";
            return Err(PredictError::FixInput(why.into()));
        }
        let calls = calls(&asked, scheduler, image.is_some())?;
        let tensor = |values: Vec<f32>, channels: usize| {
            Tensor::from_vec(values, (1, height, width, channels), &candle_core::Device::Cpu)
        };
        let image = image.map(|read| tensor(read.colours(width, height), 3)).transpose().map_err(device_error)?;
        let mask = mask.map(|read| tensor(read.mask(width, height), 1)).transpose().map_err(device_error)?;
        let plan = Plan {
            prompt,
            negative: Some(asked.negative.clone()),
            height,
            width,
            steps: asked.steps,
            guidance: asked.guidance,
            scheduler: asked.scheduler.clone(),
            image,
            mask,
            strength: asked.strength,
            refine,
        };
        let (phase, done) = (Phase::Admitted, Vec::new());
        Ok(Self { id, asked, plan, change, notes, provenance, calls, phase, started: None, drawing_since: None, done })
    }

    pub fn change(&self) -> Option<&Change> {
        self.change.as_ref()
    }

    /// Says that it begins, what is special about it, and on the CPU how long it will take; true the first time. Whoever
    /// polls has this before the first long step.
    pub fn start(
        &mut self,
        speed: Option<f64>,
        generator: Option<&Generator>,
        files: &Files,
        emit: &mut dyn FnMut(&Id, Event),
    ) -> bool {
        if !matches!(self.phase, Phase::Admitted) {
            return false;
        }
        self.phase = Phase::Started;
        self.started = Some(Instant::now());
        let mut text = std::mem::take(&mut self.notes);
        if let Some((speed, generator)) = speed.zip(generator) {
            let seconds = self.operations(generator, files) / speed;
            let (steps, outputs) = (self.calls, self.asked.outputs);
            let images = if outputs == 1 { String::new() } else { format!(" for each of {outputs} images") };
            text += &format!(
                "About {} on this processor: {steps} calls of the network{images}, {} x {}, at {:.0} GFLOP/s\n",
                spoken(Duration::from_secs_f64(seconds)),
                self.plan.width,
                self.plan.height,
                speed / 1e9
            );
        }
        emit(&self.id, Event::Started);
        emit(&self.id, Event::Log(text));
        true
    }

    /// Of all that is left.
    fn operations(&self, generator: &Generator, files: &Files) -> f64 {
        let decoding = files.decode_operations(self.plan.width, self.plan.height);
        self.asked.outputs as f64 * (self.calls as f64 * self.call(generator) + decoding)
    }

    /// Operations of one call.
    fn call(&self, generator: &Generator) -> f64 {
        let images = if self.asked.guidance > 1.0 { 2 } else { 1 };
        call_operations(generator, images, self.plan.width, self.plan.height)
    }

    /// One unit of work: reads the prompt, calls a net, or decodes an image.
    pub fn step(
        &mut self,
        generator: &Generator,
        checker: Option<&Checker>,
        speed: &mut Option<f64>,
        emit: &mut dyn FnMut(&Id, Event),
    ) -> Result<Now, PredictError> {
        match std::mem::replace(&mut self.phase, Phase::Started) {
            Phase::Admitted | Phase::Started => {
                self.on_device(generator)?;
                let prepared = generator.prepare(&self.plan)?;
                let cut = [("prompt", Some(&prepared.prompt)), ("negative_prompt", prepared.negative.as_ref())];
                for (name, text) in cut {
                    if let Some(text) = text.and_then(|read| read.cut.as_ref()) {
                        let line = format!("{name}: what the encoders do not read, for it is too long: {text}\n");
                        emit(&self.id, Event::Log(line));
                    }
                }
                self.drawing_since = Some(Instant::now());
                self.tell(0, emit);
                self.draw(generator, Box::new(prepared))?;
                Ok(Now::GoesOn)
            }
            Phase::Drawing(prepared, mut drawing) => {
                let began = Instant::now();
                let called = generator.step(&prepared, &mut drawing)?;
                if called {
                    if let Some(speed) = speed {
                        *speed = self.call(generator) / began.elapsed().as_secs_f64();
                    }
                    let calls = self.done.len() * self.calls + drawing.calls();
                    self.tell(calls, emit);
                    self.preview(generator, checker, &drawing, emit)?;
                }
                self.phase = match called && drawing.calls() < self.calls {
                    true => Phase::Drawing(prepared, drawing),
                    false => Phase::Decoding(prepared, drawing.latents().clone()),
                };
                Ok(Now::GoesOn)
            }
            Phase::Decoding(prepared, latents) => {
                let picture = self.picture(generator, &latents, self.asked.watermark)?;
                let flagged = self.flagged(checker, &picture)?;
                if flagged {
                    let line = format!("NSFW content detected in image {}\n", self.done.len());
                    emit(&self.id, Event::Log(line));
                }
                let file = || picture.data_uri(self.asked.format, &self.how());
                self.done.push(if flagged { None } else { Some(file()?.into()) });
                if self.done.len() < self.asked.outputs {
                    self.draw(generator, prepared)?;
                    return Ok(Now::GoesOn);
                }
                self.end(emit);
                Ok(Now::Ended)
            }
        }
    }

    /// The next image.
    fn draw(&mut self, generator: &Generator, prepared: Box<Prepared>) -> Result<(), PredictError> {
        let noise = Seeded { seed: self.asked.seed, image: self.done.len() as u8 };
        let drawing = generator.begin(&prepared, Box::new(noise))?;
        self.phase = Phase::Drawing(prepared, Box::new(drawing));
        Ok(())
    }

    fn on_device(&mut self, generator: &Generator) -> Result<(), PredictError> {
        for tensor in [&mut self.plan.image, &mut self.plan.mask].into_iter().flatten() {
            *tensor = tensor.to_device(&generator.device).map_err(device_error)?;
        }
        Ok(())
    }

    fn picture(&self, generator: &Generator, latents: &Tensor, marked: bool) -> Result<Picture, PredictError> {
        let pixels = generator.decode(latents)?;
        let values = || pixels.flatten_all()?.to_vec1::<f32>();
        let (_, height, width, _) = pixels.dims4().map_err(device_error)?;
        let values = values().map_err(device_error)?;
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            let (row, column) = (place / 3 / width, place / 3 % width);
            let why =
                format!("the decoded image is no number at row {row}, column {column}, after step {}", self.calls);
            return Err(PredictError::FixInput(why));
        }
        Ok(Picture::of_values(&values, width, height, marked))
    }

    /// Whether nobody is to be given this: never where the caller has disabled the check, or there is no checker.
    fn flagged(&self, checker: Option<&Checker>, picture: &Picture) -> Result<bool, PredictError> {
        match checker.filter(|_| self.asked.check_safety) {
            Some(checker) => checker.is_flagged(picture),
            None => Ok(false),
        }
    }

    /// What is there so far, small, as the only output until the images are there.
    fn preview(
        &self,
        generator: &Generator,
        checker: Option<&Checker>,
        drawing: &Drawing,
        emit: &mut dyn FnMut(&Id, Event),
    ) -> Result<(), PredictError> {
        let due = self.asked.preview_every.is_some_and(|every| drawing.calls().is_multiple_of(every));
        if !due || drawing.calls() >= self.calls {
            return Ok(());
        }
        let small = || -> candle_core::Result<Tensor> {
            let latents = drawing.latents();
            let (_, height, width, _) = latents.dims4()?;
            let share = height.max(width).div_ceil(PREVIEW_SIDE);
            let small =
                latents.permute((0, 3, 1, 2))?.contiguous()?.avg_pool2d((share.min(height), share.min(width)))?;
            // Some schedulers keep all of the noise in it, which is far beyond what is decoded.
            let size = small.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt().max(1.0);
            small.affine(1.0 / f64::from(size), 0.0)?.permute((0, 2, 3, 1))?.contiguous()
        };
        let picture = self.picture(generator, &small().map_err(device_error)?, false)?;
        if self.flagged(checker, &picture)? {
            return Ok(());
        }
        let file = picture.data_uri(Format::Jpeg(80), &Value::Null)?;
        emit(&self.id, Event::Output(Output::Whole(json!([file]))));
        Ok(())
    }

    /// A line as tqdm writes it: the official clients read the percentage and the two numbers.
    fn tell(&self, calls: usize, emit: &mut dyn FnMut(&Id, Event)) {
        let elapsed = self.drawing_since.map_or(Duration::ZERO, |since| since.elapsed());
        emit(&self.id, Event::Log(line(calls, self.calls * self.asked.outputs, elapsed)));
    }

    /// How the image that comes next was made.
    fn how(&self) -> Value {
        let mut how = self.provenance.clone();
        how.insert("seed".into(), self.asked.seed.into());
        how.insert("image".into(), self.done.len().into());
        how.insert("width".into(), self.plan.width.into());
        how.insert("height".into(), self.plan.height.into());
        how.insert("input".into(), self.asked.given.clone().into());
        how.into()
    }

    fn end(&mut self, emit: &mut dyn FnMut(&Id, Event)) {
        let drawn = self.done.len();
        let files: Vec<Value> = std::mem::take(&mut self.done).into_iter().flatten().collect();
        let given = files.len();
        // With none to give, previews are taken back.
        if given > 0 || self.asked.preview_every.is_some() {
            emit(&self.id, Event::Output(Output::Whole(files.into())));
        }
        let seconds = self.drawing_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        let metric = |name: &str, value: Value| Event::Metric { name: name.into(), value };
        emit(&self.id, metric("image_count", given.into()));
        emit(&self.id, metric("step_count", (drawn * self.calls).into()));
        if seconds > 0.0 {
            emit(&self.id, metric("steps_per_second", ((drawn * self.calls) as f64 / seconds).into()));
        }
        let outcome = match given {
            0 => Outcome::Failed { error: ALL_FLAGGED.into() },
            _ => Outcome::Succeeded,
        };
        emit(&self.id, Event::Ended(outcome));
    }
}

/// Calls of the nets that an image takes, by the schedules alone; a plan that has none is refused.
fn calls(asked: &Asked, config: &Config, over_image: bool) -> Result<usize, PredictError> {
    let schedule = |steps, start, end| {
        let schedule = Schedule { name: asked.scheduler.clone(), config: config.clone(), steps, start, end };
        schedule.build().map(|(_, calls)| calls.len())
    };
    let start = if over_image { Start::Strength(asked.strength) } else { Start::Noise };
    match asked.refine {
        Refine::No => schedule(asked.steps, start, None),
        Refine::Ensemble(share) => {
            Ok(schedule(asked.steps, start, Some(share))? + schedule(asked.steps, Start::Fraction(share), None)?)
        }
        Refine::Image(steps) => {
            Ok(schedule(asked.steps, start, None)? + schedule(steps, Start::Strength(REFINED_SHARE), None)?)
        }
    }
}

fn line(calls: usize, all: usize, elapsed: Duration) -> String {
    let filled = BAR * calls / all;
    let clock = |time: Duration| format!("{:02}:{:02}", time.as_secs() / 60, time.as_secs() % 60);
    let (left, rate) = match calls {
        0 => ("?".to_owned(), "?".to_owned()),
        _ => {
            let one = elapsed.as_secs_f64() / calls as f64;
            let rate = if one > 1.0 { format!("{one:.2}s/it") } else { format!("{:.2}it/s", 1.0 / one.max(1e-9)) };
            (clock(Duration::from_secs_f64(one * (all - calls) as f64)), rate)
        }
    };
    let bar: String = "█".repeat(filled) + &" ".repeat(BAR - filled);
    format!("{:3}%|{bar}| {calls}/{all} [{}<{left}, {rate}]\n", 100 * calls / all, clock(elapsed))
}

fn spoken(time: Duration) -> String {
    match time.as_secs() {
        0 => "a second".to_owned(),
        seconds @ 1..100 => format!("{seconds} s"),
        seconds @ 100..6000 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

fn device_error(error: candle_core::Error) -> PredictError {
    runner::device::fault(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_written_as_the_official_clients_read_it() {
        let second = Duration::from_secs(1);
        assert_eq!(line(0, 30, Duration::ZERO), "  0%|          | 0/30 [00:00<?, ?]\n");
        assert_eq!(line(8, 20, 4 * second), " 40%|████      | 8/20 [00:04<00:06, 2.00it/s]\n");
        assert_eq!(line(1, 30, 90 * second), "  3%|          | 1/30 [01:30<43:30, 90.00s/it]\n");
        assert_eq!(line(30, 30, 90 * second), "100%|██████████| 30/30 [01:30<00:00, 3.00s/it]\n");
    }
}
