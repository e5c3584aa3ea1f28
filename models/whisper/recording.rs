//! A recording as windows of what the net reads. One pass over the file finds its length, its maximum and its loudness
//! over time; later ones give windows from the beginning on. Memory holds the frames between the windows in use, and four
//! bytes per 10 ms. Refuses to know what is heard.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prediction::PredictError;

use super::audio::{Audio, RATE};
use super::config::FRAMES;
use super::mel::{FRAMES_PER_SECOND, Frames, HOP, Mel, SILENCE};

/// Longer than any recording that one prediction hears: keeps frame numbers small and a broken file from going on for ever.
const MAX_HOURS: usize = 48;

/// What a whole recording has.
pub struct Scan {
    file: PathBuf,
    reading: Reading,
    maximum: f32,
    /// Of every 10 ms: the logarithm of the mean power.
    loudness: Vec<f32>,
    /// Samples of the next entry of `loudness`, and the sum of their squares.
    begun: (usize, f64),
    done: bool,
}

/// What a scan found.
#[derive(Debug, Clone)]
pub struct Heading {
    file: PathBuf,
    pub samples: usize,
    pub maximum: f32,
    pub loudness: Vec<f32>,
    /// What was wrong with the file.
    pub complaint: Option<String>,
}

/// Windows of a recording, in the order of their beginnings.
pub struct Windows {
    heading: Arc<Heading>,
    mel: Arc<Mel>,
    reading: Option<Reading>,
    /// Frames from `base` on, as logarithms.
    frames: VecDeque<f32>,
    base: usize,
}

/// A file on its way to frames.
struct Reading {
    audio: Audio,
    frames: Frames,
    samples: usize,
    piece: Vec<f32>,
}

impl Reading {
    fn open(file: &Path, mel: &Arc<Mel>) -> Result<Self, PredictError> {
        Ok(Self { audio: Audio::open(file)?, frames: Frames::new(mel), samples: 0, piece: Vec::new() })
    }

    /// Appends frames to `out` and leaves the samples in `piece`; false at the end, whose frames are appended too.
    fn next(&mut self, out: &mut Vec<f32>) -> Result<bool, PredictError> {
        self.piece.clear();
        if !self.audio.read(&mut self.piece)? {
            self.frames.finish(out);
            return Ok(false);
        }
        self.samples += self.piece.len();
        if self.samples > MAX_HOURS * 3600 * RATE {
            return Err(PredictError::FixInput(format!("audio: the recording is longer than {MAX_HOURS} hours")));
        }
        self.frames.push(&self.piece, out);
        Ok(true)
    }
}

impl Scan {
    pub fn open(file: PathBuf, mel: &Arc<Mel>) -> Result<Self, PredictError> {
        Ok(Self {
            reading: Reading::open(&file, mel)?,
            file,
            maximum: SILENCE,
            loudness: Vec::new(),
            begun: (0, 0.0),
            done: false,
        })
    }

    /// Reads about so many seconds of the recording; true when it has been read to its end.
    pub fn advance(&mut self, seconds: usize) -> Result<bool, PredictError> {
        let until = self.reading.samples + seconds * RATE;
        let mut frames = Vec::new();
        while !self.done && self.reading.samples < until {
            self.done = !self.reading.next(&mut frames)?;
            self.maximum = frames.iter().copied().fold(self.maximum, f32::max);
            frames.clear();
            self.measure();
        }
        if self.done && self.reading.samples == 0 {
            let why = self.reading.audio.complaint().map(|why| format!(" ({why})")).unwrap_or_default();
            return Err(PredictError::FixInput(format!("audio: the file has no samples{why}")));
        }
        Ok(self.done)
    }

    fn measure(&mut self) {
        for &sample in &self.reading.piece {
            self.begun = (self.begun.0 + 1, self.begun.1 + f64::from(sample).powi(2));
            if self.begun.0 == HOP {
                self.loudness.push(((self.begun.1 / HOP as f64).max(1e-10)).log10() as f32);
                self.begun = (0, 0.0);
            }
        }
    }

    pub fn finish(self) -> Heading {
        let Self { file, reading, maximum, loudness, .. } = self;
        Heading { file, samples: reading.samples, maximum, loudness, complaint: reading.audio.complaint() }
    }
}

impl Heading {
    /// Frames that hold sound.
    pub fn frames(&self) -> usize {
        self.samples / HOP
    }

    pub fn seconds(&self) -> f64 {
        self.samples as f64 / RATE as f64
    }

    /// Is there nothing at all between two frames?
    pub fn silent(&self, from: usize, to: usize) -> bool {
        self.loudness[from.min(self.loudness.len())..to.min(self.loudness.len())].iter().all(|&power| power <= SILENCE)
    }
}

impl Windows {
    pub fn new(heading: &Arc<Heading>, mel: &Arc<Mel>) -> Self {
        Self { heading: heading.clone(), mel: mel.clone(), reading: None, frames: VecDeque::new(), base: 0 }
    }

    /// Runs of frames (first, size) in their order, one behind the other, and zeros up to a whole window: what the net
    /// reads. Frames before `keep` are not asked for again; whoever does so has the file read from its beginning.
    pub fn window(&mut self, runs: &[(usize, usize)], keep: usize) -> Result<Vec<f32>, PredictError> {
        let mut frames = Vec::with_capacity(FRAMES * self.mel.bands);
        for &(first, size) in runs {
            frames.extend(self.logarithms(first, size, keep)?);
        }
        Mel::normalise(&mut frames, self.heading.maximum);
        frames.resize(FRAMES * self.mel.bands, 0.0);
        Ok(frames)
    }

    /// The first 30 s with the silence that follows a short recording: what tells its language.
    pub fn beginning(&mut self) -> Result<Vec<f32>, PredictError> {
        let mut frames = self.logarithms(0, FRAMES, 0)?;
        Mel::normalise(&mut frames, self.heading.maximum);
        Ok(frames)
    }

    fn logarithms(&mut self, first: usize, size: usize, keep: usize) -> Result<Vec<f32>, PredictError> {
        let bands = self.mel.bands;
        if first < self.base || self.reading.is_none() && self.frames.is_empty() {
            self.frames.clear();
            self.base = 0;
            self.reading = Some(Reading::open(&self.heading.file, &self.mel)?);
        }
        let mut piece = Vec::new();
        while self.base + self.frames.len() / bands < first + size {
            let Some(reading) = &mut self.reading else { break };
            if !reading.next(&mut piece)? {
                self.reading = None;
            }
            self.frames.extend(piece.drain(..));
            self.forget(keep.min(first));
        }
        self.forget(keep.min(first));
        let from = (first - self.base) * bands;
        let mut frames: Vec<f32> = self.frames.iter().skip(from).take(size * bands).copied().collect();
        frames.resize(size * bands, SILENCE);
        Ok(frames)
    }

    fn forget(&mut self, keep: usize) {
        let bands = self.mel.bands;
        let gone = keep.saturating_sub(self.base).min(self.frames.len() / bands);
        self.frames.drain(..gone * bands);
        self.base += gone;
    }
}

/// A frame's time.
pub fn seconds(frame: usize) -> f64 {
    frame as f64 / FRAMES_PER_SECOND as f64
}
