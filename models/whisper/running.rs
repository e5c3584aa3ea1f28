//! One prediction inside the pipeline: its recording, its passes over it, the windows it has under way. Knows the order of
//! things; refuses to know the other predictions.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use prediction::{Event, Id, Outcome, Output, PredictError};
use serde_json::Value;

use super::audio;
use super::clip::{Clip, Segment, Window, failed};
use super::decoding::{Decoding, Ends, Way};
use super::input::Asked;
use super::languages::LANGUAGES;
use super::mel::Mel;
use super::net::{Feed, Heard, Net};
use super::output::{Transcript, clock, line};
use super::pipeline::device_error;
use super::recording::{Heading, Scan, Windows, seconds};
use super::rules::Rules;
use super::silence::{around, voices};
use super::timeline::Timeline;
use super::vocabulary::Vocabulary;
use super::words::Reading;

/// Seconds of a recording that one step reads: at a hundredth of its duration, a cancel is heard soon.
const SCANNED_SECONDS: usize = 60;

/// What every prediction works with.
pub struct Shared {
    pub net: Net,
    pub vocabulary: Vocabulary,
    pub mel: Arc<Mel>,
    /// Tokens that are no speech.
    pub non_speech: Vec<u32>,
}

pub struct Running {
    pub id: Id,
    asked: Asked,
    rules: Rules,
    prompt: Vec<u32>,
    phase: Phase,
    started: Option<Instant>,
    language: Option<usize>,
    /// The first whole window, heard while its language was detected.
    beginning: Option<Heard>,
    transcript: Option<Transcript>,
    shown_percent: usize,
    encoded: usize,
    generated: usize,
}

enum Phase {
    Scanning(Box<Scan>),
    Detecting(Box<Windows>, Arc<Heading>),
    Passing(Box<Pass>),
    /// From one to the next.
    Moving,
}

/// Once through the recording.
struct Pass {
    translate: bool,
    heading: Arc<Heading>,
    /// What clips and windows count their frames in.
    timeline: Timeline,
    windows: Windows,
    clips: Vec<Clip>,
    active: Vec<Active>,
    /// Clips whose segments are all shown, and segments shown of the one behind them.
    shown: (usize, usize),
}

/// A window on its way.
struct Active {
    clip: usize,
    window: Window,
    heard: Heard,
    decoding: Decoding,
    attempt: usize,
}

/// Whether a prediction goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    GoesOn,
    Ended,
}

impl Running {
    /// Everything that can be refused before device work is refused here.
    pub fn new(id: Id, asked: Asked, shared: &Shared) -> Result<Self, PredictError> {
        let Shared { net, vocabulary, .. } = shared;
        let refuse = |why: String| Err(PredictError::FixInput(why));
        let languages = if vocabulary.multilingual { vocabulary.specials.languages } else { 1 };
        if let Some(language) = asked.language.filter(|&language| language >= languages) {
            let hears = if languages == 1 { "English only".to_owned() } else { format!("{languages} languages") };
            let (code, name) = LANGUAGES[language];
            return refuse(format!("language is {code} ({name}), which this model lacks: it hears {hears}"));
        }
        let mut suppressed = Vec::new();
        for &token in &asked.suppress {
            match token {
                -1 => suppressed.extend(&shared.non_speech),
                0.. if (token as usize) < net.config.vocabulary => suppressed.push(token as u32),
                _ => {
                    let most = net.config.vocabulary - 1;
                    return refuse(format!("suppress_tokens has {token}; -1, or 0 to {most}"));
                }
            }
        }
        let prompt = asked.initial_prompt.as_ref().map(|prompt| vocabulary.encode(&format!(" {}", prompt.trim())));
        let prompt = prompt.transpose().map_err(|why| PredictError::FixInput(format!("initial_prompt: {why}")))?;
        let scan = Scan::open(audio::file(&asked.audio)?, &shared.mel)?;
        Ok(Self {
            id,
            rules: Rules::new(suppressed, vocabulary.encode(" ")?, vocabulary.specials),
            prompt: prompt.unwrap_or_default(),
            phase: Phase::Scanning(Box::new(scan)),
            started: None,
            language: if vocabulary.multilingual { asked.language } else { Some(0) },
            beginning: None,
            transcript: None,
            shown_percent: 0,
            encoded: 0,
            generated: 0,
            asked,
        })
    }

    /// The first step it takes part in.
    pub fn start(&mut self, model: &str, emit: &mut dyn FnMut(&Id, Event)) {
        if self.started.is_some() {
            return;
        }
        self.started = Some(Instant::now());
        emit(&self.id, Event::Started);
        let asked = self.asked.model.as_deref().map(str::trim).filter(|asked| !asked.is_empty());
        if let Some(asked) = asked.filter(|asked| *asked != model) {
            emit(
                &self.id,
                Event::Log(format!("model {asked} was asked for; this deployment has {model} and uses it\n")),
            );
        }
    }

    /// Does it have something to do besides decoding?
    pub fn has_work(&self) -> bool {
        match &self.phase {
            Phase::Scanning(_) | Phase::Detecting(..) | Phase::Moving => true,
            Phase::Passing(pass) => pass.active.is_empty() || pass.next(self.asked.batch).is_some(),
        }
    }

    pub fn decodes(&self) -> bool {
        matches!(&self.phase, Phase::Passing(pass) if !pass.active.is_empty())
    }

    /// One unit of reading or encoding.
    pub fn work(&mut self, shared: &Shared, emit: &mut dyn FnMut(&Id, Event)) -> Result<Now, PredictError> {
        match &mut self.phase {
            Phase::Scanning(scan) => {
                if scan.advance(SCANNED_SECONDS)? {
                    self.scanned(shared, emit)?;
                }
            }
            Phase::Detecting(windows, _) => {
                let frames = windows.beginning()?;
                let encoded = self.encode(&frames, shared)?;
                self.detect(&encoded, shared, emit)?;
            }
            Phase::Passing(pass) => match pass.next(self.asked.batch) {
                Some((clip, window)) => self.hear(clip, window, shared)?,
                None if pass.active.is_empty() => return self.pass_ended(shared, emit),
                None => {}
            },
            Phase::Moving => return Err(PredictError::Operator("a prediction stopped between two phases".into())),
        }
        Ok(Now::GoesOn)
    }

    fn scanned(&mut self, shared: &Shared, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        let Phase::Scanning(scan) = std::mem::replace(&mut self.phase, Phase::Moving) else { return Ok(()) };
        let heading = Arc::new(scan.finish());
        emit(&self.id, Event::Log(format!("{} of audio\n", clock(heading.seconds(), false, '.'))));
        if let Some(complaint) = &heading.complaint {
            emit(&self.id, Event::Log(format!("audio: {complaint}\n")));
        }
        let windows = Windows::new(&heading, &shared.mel);
        match self.language {
            Some(_) => self.begin_pass(windows, heading, false),
            None => self.phase = Phase::Detecting(Box::new(windows), heading),
        }
        Ok(())
    }

    fn encode(&mut self, frames: &[f32], shared: &Shared) -> Result<Tensor, PredictError> {
        self.encoded += 1;
        shared.net.encode(frames).map_err(device_error)
    }

    fn detect(
        &mut self,
        encoded: &Tensor,
        shared: &Shared,
        emit: &mut dyn FnMut(&Id, Event),
    ) -> Result<(), PredictError> {
        let Shared { net, vocabulary, .. } = shared;
        let specials = vocabulary.specials;
        let heard = net.hear(encoded).map_err(device_error)?;
        let mut said = net.say(1).map_err(device_error)?;
        let tokens = vec![specials.start];
        let mut feed = [Feed { tokens, position: 0, said: &mut said, heard: &heard, wanted: vec![0] }];
        let logits = net.decode(&mut feed, None).and_then(|row| row.flatten_all()?.to_vec1::<f32>());
        let logits = logits.map_err(device_error)?;
        let first = specials.language(0) as usize;
        let (language, _) = super::rules::greatest(&logits[first..first + specials.languages]);
        self.language = Some(language);
        emit(&self.id, Event::Log(format!("Detected language: {}\n", titled(LANGUAGES[language].1))));
        let Phase::Detecting(windows, heading) = std::mem::replace(&mut self.phase, Phase::Moving) else {
            return Ok(());
        };
        // A whole window is heard the same way again.
        self.beginning = (heading.frames() >= super::config::FRAMES).then_some(heard);
        self.begin_pass(*windows, heading, false);
        Ok(())
    }

    fn begin_pass(&mut self, windows: Windows, heading: Arc<Heading>, translate: bool) {
        let frames = heading.frames();
        let batched = self.asked.batch > 1;
        let timeline = match batched || self.asked.skip_silence {
            true => Timeline::new(voices(&heading.loudness).into_iter().map(|(from, to)| (from, to.min(frames)))),
            false => Timeline::new([(0, frames)]),
        };
        let clips = match batched {
            true => timeline.windows(|frame| around(&heading.loudness, frame)),
            false => vec![(0, timeline.frames())],
        };
        let clips = clips.into_iter().map(|(from, to)| Clip::new(from, to, self.prompt.clone(), batched)).collect();
        self.shown_percent = 0;
        let (active, shown) = (Vec::new(), (0, 0));
        self.phase = Phase::Passing(Box::new(Pass { translate, heading, timeline, windows, clips, active, shown }));
    }

    /// Encodes a window and begins to decode it.
    fn hear(&mut self, clip: usize, window: Window, shared: &Shared) -> Result<(), PredictError> {
        let Phase::Passing(pass) = &mut self.phase else { return Ok(()) };
        let runs = pass.timeline.runs(window.seek, window.size);
        if runs.iter().all(|&(first, size)| pass.heading.silent(first, first + size)) {
            pass.clips[clip].skip(window);
            return Ok(());
        }
        let keep = pass.clips.iter().filter(|clip| clip.window().is_some()).map(|clip| clip.seek).min();
        let keep = keep.map_or(0, |seek| pass.timeline.frame(seek));
        let whole = runs == [(0, super::config::FRAMES)];
        let heard = match self.beginning.take().filter(|_| whole) {
            Some(heard) => heard,
            None => {
                let frames = pass.windows.window(&runs, keep)?;
                let encoded = self.encode(&frames, shared)?;
                shared.net.hear(&encoded).map_err(device_error)?
            }
        };
        let decoding = self.decoding(clip, window, 0, shared)?;
        let Phase::Passing(pass) = &mut self.phase else { return Ok(()) };
        pass.active.push(Active { clip, window, heard, decoding, attempt: 0 });
        Ok(())
    }

    fn decoding(&self, clip: usize, window: Window, attempt: usize, shared: &Shared) -> Result<Decoding, PredictError> {
        let Phase::Passing(pass) = &self.phase else {
            return Err(PredictError::Operator("a window without a pass".into()));
        };
        let Shared { net, vocabulary, .. } = shared;
        let specials = vocabulary.specials;
        let start = vocabulary.start(self.language.unwrap_or(0), pass.translate);
        let initial = pass.clips[clip].initial(&start, specials.previous, net.config.text_context / 2 - 1);
        let temperature = self.asked.temperatures[attempt];
        let way = match self.asked.beams {
            _ if temperature > 0.0 => Way::Sampled {
                temperature,
                samples: self.asked.best_of,
                // Every window and attempt draws its own numbers.
                seed: self.asked.seed ^ (window.seek as u64).rotate_left(20) ^ ((attempt as u64) << 60),
            },
            Some(size) => Way::Beams { size, patience: self.asked.patience },
            None => Way::Greedy,
        };
        let ends = Ends { start: specials.start, end: specials.end, no_speech: specials.no_speech };
        Decoding::new(net, way, self.asked.length_penalty, initial, ends).map_err(device_error)
    }

    /// What the net is to read for it, window by window; `counts` takes how many rows of logits each window gets.
    pub fn feeds<'a>(&'a mut self, feeds: &mut Vec<Feed<'a>>, counts: &mut Vec<usize>) {
        let Phase::Passing(pass) = &mut self.phase else { return };
        for Active { decoding, heard, .. } in &mut pass.active {
            let own = decoding.feeds(heard);
            counts.push(own.iter().map(|feed| feed.wanted.len()).sum());
            feeds.extend(own);
        }
    }

    /// Takes the logits of its windows, in the order of `feeds`.
    pub fn take<'a>(
        &mut self,
        rows: &mut impl Iterator<Item = &'a mut [f32]>,
        shared: &Shared,
        emit: &mut dyn FnMut(&Id, Event),
    ) -> Result<(), PredictError> {
        let width = shared.net.config.vocabulary;
        let Phase::Passing(pass) = &mut self.phase else { return Ok(()) };
        let mut done = Vec::new();
        for (index, active) in pass.active.iter_mut().enumerate() {
            let Some(rows) = rows.next() else { break };
            if active.decoding.take(rows, width, &self.rules).map_err(device_error)? {
                done.push(index);
            }
        }
        for index in done.into_iter().rev() {
            self.decoded(index, shared)?;
        }
        self.show(emit);
        Ok(())
    }

    /// A window's search is over: again at a higher temperature, or into its clip.
    fn decoded(&mut self, index: usize, shared: &Shared) -> Result<(), PredictError> {
        let Phase::Passing(pass) = &mut self.phase else { return Ok(()) };
        let Active { clip, window, heard, decoding, attempt } = pass.active.remove(index);
        let decoded = decoding.finish();
        self.generated += decoded.tokens.len();
        if attempt + 1 < self.asked.temperatures.len() && failed(&decoded, &self.asked, &shared.vocabulary) {
            let decoding = self.decoding(clip, window, attempt + 1, shared)?;
            let Phase::Passing(pass) = &mut self.phase else { return Ok(()) };
            pass.active.insert(index, Active { clip, window, heard, decoding, attempt: attempt + 1 });
            return Ok(());
        }
        let Some(mut cut) = pass.clips[clip].cut(window, &decoded, &self.asked, &shared.vocabulary) else {
            pass.clips[clip].skip(window);
            return Ok(());
        };
        if self.asked.words {
            let language = self.language.unwrap_or(0);
            let reading = Reading {
                net: &shared.net,
                heard: &heard,
                vocabulary: &shared.vocabulary,
                start: &shared.vocabulary.start(language, pass.translate),
                language,
                size: window.size,
            };
            reading.time(&mut cut.segments, pass.clips[clip].last_word_end).map_err(device_error)?;
        }
        pass.clips[clip].take(window, cut, self.asked.condition);
        Ok(())
    }

    /// Segments that are final and come next, and how far it is.
    fn show(&mut self, emit: &mut dyn FnMut(&Id, Event)) {
        let Phase::Passing(pass) = &mut self.phase else { return };
        while let Some(clip) = pass.clips.get(pass.shown.0) {
            for segment in &clip.segments[pass.shown.1..] {
                if !segment.text.is_empty() {
                    let mut segment = segment.clone();
                    pass.timeline.restore(&mut segment);
                    emit(&self.id, Event::Log(line(&segment)));
                }
            }
            if clip.window().is_some() || pass.active.iter().any(|active| active.clip == pass.shown.0) {
                pass.shown.1 = clip.segments.len();
                break;
            }
            pass.shown = (pass.shown.0 + 1, 0);
        }
        let at = pass.clips.get(pass.shown.0).map_or(pass.heading.frames(), |clip| pass.timeline.frame(clip.seek));
        let percent = at * 100 / pass.heading.frames().max(1);
        if percent >= self.shown_percent + 10 {
            self.shown_percent = percent / 10 * 10;
            let (at, whole) = (clock(seconds(at), false, '.'), clock(pass.heading.seconds(), false, '.'));
            emit(&self.id, Event::Log(format!("{percent} % ({at} of {whole})\n")));
        }
    }

    fn pass_ended(&mut self, shared: &Shared, emit: &mut dyn FnMut(&Id, Event)) -> Result<Now, PredictError> {
        self.show(emit);
        let Phase::Passing(pass) = &mut self.phase else { return Ok(Now::GoesOn) };
        let segments = pass.clips.iter_mut().flat_map(|clip| std::mem::take(&mut clip.segments));
        let mut segments: Vec<Segment> = segments.collect();
        segments.iter_mut().for_each(|segment| pass.timeline.restore(segment));
        let tokens: Vec<u32> = segments.iter().flat_map(|segment| segment.tokens.iter().copied()).collect();
        let text = shared.vocabulary.decode_all(&tokens);
        let (translate, heading) = (pass.translate, pass.heading.clone());
        match (&mut self.transcript, translate) {
            (Some(transcript), true) => transcript.translation = Some(text),
            _ => {
                let language = self.language.unwrap_or(0);
                self.transcript = Some(Transcript { language, segments, text, translation: None });
            }
        }
        if self.asked.translate && !translate && shared.vocabulary.multilingual {
            emit(&self.id, Event::Log("Translating\n".into()));
            self.begin_pass(Windows::new(&heading, &shared.mel), heading, true);
            return Ok(Now::GoesOn);
        }
        let Some(mut transcript) = self.transcript.take() else { return Ok(Now::Ended) };
        if self.asked.translate && !shared.vocabulary.multilingual {
            // What was heard is English already.
            transcript.translation = Some(transcript.text.clone());
        }
        emit(&self.id, Event::Output(Output::Whole(transcript.to_json(self.asked.format))));
        let whole = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        for (name, value) in [
            ("audio_duration", Value::from(heading.seconds().round() as i64)),
            ("output_token_count", Value::from(self.generated)),
            ("windows", Value::from(self.encoded)),
            ("real_time_factor", Value::from(whole / heading.seconds().max(f64::MIN_POSITIVE))),
        ] {
            emit(&self.id, Event::Metric { name: name.into(), value });
        }
        emit(&self.id, Event::Ended(Outcome::Succeeded));
        Ok(Now::Ended)
    }
}

impl Pass {
    /// The next window to be heard, if there is room for it.
    fn next(&self, batch: usize) -> Option<(usize, Window)> {
        if self.active.len() >= batch {
            return None;
        }
        let free = |clip: &usize| !self.active.iter().any(|active| active.clip == *clip);
        let mut clips = (0..self.clips.len()).filter(free);
        clips.find_map(|clip| Some((clip, self.clips[clip].window()?)))
    }
}

/// `english` becomes `English`.
fn titled(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
