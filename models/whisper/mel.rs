//! Samples to log-mel frames, as the reference makes them: windows of 25 ms every 10 ms, power spectrum, triangular mel
//! filters, decimal logarithm, nothing more than 8 below the recording's maximum. Frames come one by one, so the maximum
//! needs a pass of its own. Refuses to know files and nets.

use std::f64::consts::PI;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

use super::audio::RATE;

const WINDOW: usize = 400;
/// Samples from one frame to the next.
pub const HOP: usize = 160;
/// Frames of one second.
pub const FRAMES_PER_SECOND: usize = RATE / HOP;
const BINS: usize = WINDOW / 2 + 1;
/// The smallest power there is.
const FLOOR: f64 = 1e-10;
/// The logarithm of silence.
pub const SILENCE: f32 = -10.0;
/// How far below the maximum is silence.
const RANGE: f32 = 8.0;

/// The tables of one number of mel bands.
pub struct Mel {
    pub bands: usize,
    window: Vec<f64>,
    /// Of each band: its first bin and the weights from there on.
    filters: Vec<(usize, Vec<f64>)>,
    fft: Arc<dyn RealToComplex<f64>>,
}

/// One recording's frames, as its samples come in.
pub struct Frames {
    mel: Arc<Mel>,
    /// Samples from `start` of the recording on; before the first, its mirror image.
    samples: Vec<f32>,
    start: usize,
    next: usize,
    pushed: usize,
    input: Vec<f64>,
    spectrum: Vec<Complex<f64>>,
    power: Vec<f64>,
    scratch: Vec<Complex<f64>>,
}

impl Mel {
    pub fn new(bands: usize) -> Self {
        let fft = RealFftPlanner::new().plan_fft_forward(WINDOW);
        let window = (0..WINDOW).map(|i| 0.5 - 0.5 * (2.0 * PI * i as f64 / WINDOW as f64).cos()).collect();
        Self { bands, window, filters: filters(bands), fft }
    }

    /// Logarithms to the net's values, given the recording's maximum.
    pub fn normalise(frames: &mut [f32], maximum: f32) {
        frames.iter_mut().for_each(|value| *value = (value.max(maximum - RANGE) + 4.0) / 4.0);
    }
}

/// Slaney's mel scale: linear up to 1 kHz, logarithmic above.
fn to_hertz(mel: f64) -> f64 {
    let step = 200.0 / 3.0;
    if mel < 15.0 { mel * step } else { 1000.0 * ((6.4f64).ln() / 27.0 * (mel - 15.0)).exp() }
}

fn to_mel(hertz: f64) -> f64 {
    if hertz < 1000.0 { hertz * 3.0 / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / (6.4f64).ln() }
}

/// Triangles between neighbouring points of the scale, each of area one.
fn filters(bands: usize) -> Vec<(usize, Vec<f64>)> {
    let top = to_mel(RATE as f64 / 2.0);
    let point = |i: usize| to_hertz(top * i as f64 / (bands + 1) as f64);
    let bin = |i: usize| (i * RATE) as f64 / WINDOW as f64;
    let band = |band: usize| {
        let (low, middle, high) = (point(band), point(band + 1), point(band + 2));
        let weight = |i: usize| {
            let (rise, fall) = ((bin(i) - low) / (middle - low), (high - bin(i)) / (high - middle));
            // The reference's table is of single precision.
            f64::from((rise.min(fall).max(0.0) * 2.0 / (high - low)) as f32)
        };
        let first = (0..BINS).find(|&i| weight(i) > 0.0).unwrap_or(0);
        (first, (first..BINS).map(weight).take_while(|&w| w > 0.0).collect())
    };
    (0..bands).map(band).collect()
}

impl Frames {
    pub fn new(mel: &Arc<Mel>) -> Self {
        Self {
            input: mel.fft.make_input_vec(),
            spectrum: mel.fft.make_output_vec(),
            scratch: mel.fft.make_scratch_vec(),
            power: vec![0.0; BINS],
            mel: mel.clone(),
            samples: Vec::new(),
            start: 0,
            next: 0,
            pushed: 0,
        }
    }

    /// Appends `[frames, bands]` of logarithms: every frame that these samples complete.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        self.pushed += samples.len();
        self.samples.extend_from_slice(samples);
        while self.next * HOP + WINDOW / 2 <= self.pushed {
            self.frame(out);
        }
        let used = (self.next * HOP).saturating_sub(WINDOW / 2 + self.start);
        // The mirror at the beginning still needs the first samples.
        if self.next * HOP > WINDOW {
            self.samples.drain(..used);
            self.start += used;
        }
    }

    /// Appends the frames that see the end, until all that follow would be silence. The recording is followed by zeros.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        while self.next * HOP < self.pushed + WINDOW / 2 {
            self.frame(out);
        }
    }

    fn frame(&mut self, out: &mut Vec<f32>) {
        let centre = (self.next * HOP) as isize - (WINDOW / 2) as isize;
        for (i, (to, weight)) in self.input.iter_mut().zip(&self.mel.window).enumerate() {
            let at = (centre + i as isize).unsigned_abs();
            *to = weight * f64::from(self.samples.get(at - self.start).copied().unwrap_or(0.0));
        }
        self.next += 1;
        if self.input.iter().all(|&value| value == 0.0) {
            // What the transform would come to, too: hours of digital silence are read in seconds.
            out.resize(out.len() + self.mel.bands, SILENCE);
            return;
        }
        // The lengths are the plan's own.
        let _ = self.mel.fft.process_with_scratch(&mut self.input, &mut self.spectrum, &mut self.scratch);
        for (power, value) in self.power.iter_mut().zip(&self.spectrum) {
            *power = value.norm_sqr();
        }
        for (first, weights) in &self.mel.filters {
            let sum: f64 = self.power[*first..].iter().zip(weights).map(|(power, weight)| power * weight).sum();
            out.push(sum.max(FLOOR).log10() as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_do_not_depend_on_how_samples_come() {
        let mel = Arc::new(Mel::new(80));
        let samples: Vec<f32> = (0..5000).map(|i| ((i * i) as f32 * 0.001).sin()).collect();
        let all = |parts: usize| {
            let (mut frames, mut out) = (Frames::new(&mel), Vec::new());
            samples.chunks(parts).for_each(|part| frames.push(part, &mut out));
            frames.finish(&mut out);
            out
        };
        let whole = all(5000);
        assert_eq!(whole.len(), 80 * 33);
        for parts in [1, 7, 160, 399, 1000] {
            assert_eq!(all(parts), whole, "in parts of {parts}");
        }
    }

    #[test]
    fn silence_is_the_floor_and_a_tone_stands_in_its_band() {
        let mel = Arc::new(Mel::new(80));
        let mut out = Vec::new();
        Frames::new(&mel).push(&[0.0; 1600], &mut out);
        assert!(out.iter().all(|&value| value == SILENCE));
        let tone: Vec<f32> = (0..16_000).map(|i| (2.0 * PI * 440.0 * i as f64 / 16_000.0).sin() as f32).collect();
        out.clear();
        Frames::new(&mel).push(&tone, &mut out);
        let frame = &out[80 * 50..80 * 51];
        let loudest = (0..80).max_by(|&a, &b| frame[a].total_cmp(&frame[b])).unwrap();
        let centre = to_hertz(to_mel(8000.0) * (loudest + 1) as f64 / 81.0);
        assert!((centre - 440.0).abs() < 40.0, "{centre}");
    }

    #[test]
    fn filters_are_the_references() {
        // librosa.filters.mel(sr=16000, n_fft=400, n_mels=80 and 128): some of its values.
        for (bands, band, bin, expected) in [
            (80, 0, 1, 0.024_862_59),
            (80, 40, 43, 0.014_735_57),
            (80, 79, 199, 0.000_448_76),
            (128, 64, 43, 0.018_091_52),
            (128, 127, 195, 0.005_041_6),
        ] {
            let (first, weights) = &filters(bands)[band];
            let got = weights.get(bin - first).copied().unwrap_or(0.0);
            assert!((got - expected).abs() < 1e-8, "{bands} bands, band {band}, bin {bin}: {got}");
        }
        for bands in [80, 128] {
            assert!(filters(bands).iter().all(|(_, weights)| !weights.is_empty()), "{bands}");
        }
    }
}
