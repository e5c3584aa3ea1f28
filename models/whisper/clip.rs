//! A stretch of a recording, window by window: where the next one begins, what the net reads before it, and which segments
//! a window's tokens are. The reference's loop, without its audio. Refuses to know the net.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::{Value, json};

use super::config::FRAMES;
use super::decoding::Decoded;
use super::input::Asked;
use super::recording::seconds;
use super::vocabulary::Vocabulary;

/// Frames that one timestamp, and one position of the encoder, stands for.
pub const FRAMES_PER_TIME: usize = 2;
/// Above this temperature a text is not trusted as a prompt.
const TRUSTED_TEMPERATURE: f32 = 0.5;

pub struct Clip {
    end: usize,
    pub seek: usize,
    /// The initial prompt's tokens, then those of all segments.
    tokens: Vec<u32>,
    /// Tokens before this one are not prompted with any more.
    prompt_from: usize,
    pub segments: Vec<Segment>,
    /// It is one window, cut where nobody speaks: what the net says of it is all of it.
    whole: bool,
    /// When the last word ended, for the next window's word times.
    pub last_word_end: f64,
}

/// The next stretch that the net hears: frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub seek: usize,
    pub size: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    pub seek: usize,
    pub start: f64,
    pub end: f64,
    pub text: String,
    pub tokens: Vec<u32>,
    pub temperature: f32,
    pub mean_log_probability: f64,
    pub compression_ratio: f64,
    pub no_speech_probability: f32,
    /// None: nobody asked for them.
    pub words: Option<Vec<Word>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    pub text: String,
    pub start: f64,
    pub end: f64,
    pub probability: f64,
}

/// What a window's text comes to, before word times: its segments, and how far it got.
pub struct Cut {
    pub segments: Vec<Segment>,
    next: usize,
    /// It ends with one timestamp: nobody speaks behind it.
    silent_end: bool,
    temperature: f32,
}

impl Segment {
    pub fn to_json(&self, id: usize) -> Value {
        let mut segment = json!({
            "id": id,
            "seek": self.seek,
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "tokens": self.tokens,
            "temperature": round(f64::from(self.temperature)),
            "avg_logprob": self.mean_log_probability,
            "compression_ratio": self.compression_ratio,
            "no_speech_prob": self.no_speech_probability,
        });
        if let Some(words) = &self.words {
            let word = |word: &Word| json!({"word": word.text, "start": word.start, "end": word.end, "probability": word.probability});
            segment["words"] = words.iter().map(word).collect();
        }
        segment
    }
}

/// 0.2 and not 0.20000000298.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

impl Clip {
    /// From one frame to another, with the tokens of an initial prompt.
    pub fn new(start: usize, end: usize, prompt: Vec<u32>, whole: bool) -> Self {
        let last_word_end = seconds(start);
        Self { end, seek: start, tokens: prompt, prompt_from: 0, segments: Vec::new(), whole, last_word_end }
    }

    /// None at the end.
    pub fn window(&self) -> Option<Window> {
        let size = self.end.saturating_sub(self.seek).min(FRAMES);
        (size > 0).then_some(Window { seek: self.seek, size })
    }

    /// What the net reads before the first sampled token: up to `most` tokens of what came before, then `start`.
    pub fn initial(&self, start: &[u32], previous: u32, most: usize) -> Vec<u32> {
        let before = &self.tokens[self.prompt_from..];
        let before = &before[before.len().saturating_sub(most)..];
        let marked = if before.is_empty() { vec![] } else { vec![previous] };
        [&marked, before, start].concat()
    }

    /// Nobody speaks in this window.
    pub fn skip(&mut self, window: Window) {
        self.seek += window.size;
    }

    /// A window's tokens as segments; none where it is taken for silence.
    pub fn cut(&self, window: Window, decoded: &Decoded, asked: &Asked, words: &Vocabulary) -> Option<Cut> {
        let silent = f64::from(decoded.no_speech_probability) > asked.no_speech_threshold;
        if silent && decoded.mean_log_probability <= asked.logprob_threshold {
            return None;
        }
        let first_time = words.specials.first_time;
        let tokens = &decoded.tokens;
        let ratio = compression_ratio(words.decode_all(tokens).trim());
        let offset = seconds(window.seek);
        let time = |token: u32| token - first_time;
        let at = |token: u32| offset + f64::from(time(token)) * 0.02;
        let segment = |start: f64, end: f64, tokens: &[u32]| Segment {
            seek: window.seek,
            start,
            end,
            text: words.decode(tokens),
            tokens: tokens.to_vec(),
            temperature: decoded.temperature,
            mean_log_probability: decoded.mean_log_probability,
            compression_ratio: ratio,
            no_speech_probability: decoded.no_speech_probability,
            words: None,
        };
        let is_time = |token: u32| token >= first_time;
        let silent_end = matches!(tokens[..], [.., before, last] if !is_time(before) && is_time(last));
        let pairs = tokens.windows(2).enumerate().filter(|(_, pair)| is_time(pair[0]) && is_time(pair[1]));
        let mut ends: Vec<usize> = pairs.map(|(place, _)| place + 1).collect();
        if ends.is_empty() {
            let last = tokens.iter().rev().copied().find(|&token| is_time(token)).filter(|&token| time(token) > 0);
            let duration = last.map_or(seconds(window.size), |token| f64::from(time(token)) * 0.02);
            return Some(Cut {
                segments: vec![segment(offset, offset + duration, tokens)],
                next: window.seek + window.size,
                silent_end,
                temperature: decoded.temperature,
            });
        }
        if silent_end {
            ends.push(tokens.len());
        }
        let mut segments = Vec::with_capacity(ends.len());
        let mut last = 0;
        for end in ends {
            let slice = &tokens[last..end];
            segments.push(segment(at(slice[0]), at(slice[slice.len() - 1]), slice));
            last = end;
        }
        // What was begun behind the last pair is heard again, unless it has ended with the window.
        let whole = self.whole && !decoded.cut_short;
        if whole && last < tokens.len() {
            segments.push(segment(at(tokens[last]), offset + seconds(window.size), &tokens[last..]));
        }
        let next = match silent_end || whole {
            true => window.seek + window.size,
            false => window.seek + time(tokens[last - 1]) as usize * FRAMES_PER_TIME,
        };
        Some(Cut { segments, next, silent_end, temperature: decoded.temperature })
    }

    /// Takes a window's segments in, their word times settled, and moves on.
    pub fn take(&mut self, window: Window, mut cut: Cut, condition: bool) {
        self.seek = cut.next;
        let words = cut.segments.iter().any(|segment| segment.words.is_some());
        if words {
            let last = cut.segments.iter().rev().find_map(|segment| Some(segment.words.as_ref()?.last()?.end));
            let end = last.or(cut.segments.last().map(|segment| segment.end));
            if let Some(end) = end {
                if !cut.silent_end && end > seconds(window.seek) {
                    self.seek = (end * 100.0).round_ties_even() as usize;
                }
                self.last_word_end = end;
            }
        }
        for segment in &mut cut.segments {
            if segment.start == segment.end || segment.text.trim().is_empty() {
                segment.text.clear();
                segment.tokens.clear();
                segment.words = segment.words.take().map(|_| Vec::new());
            }
        }
        // A window that got nowhere would be heard for ever.
        self.seek = self.seek.max(window.seek + 1);
        self.tokens.extend(cut.segments.iter().flat_map(|segment| &segment.tokens));
        if !condition || cut.temperature > TRUSTED_TEMPERATURE {
            self.prompt_from = self.tokens.len();
        }
        self.segments.append(&mut cut.segments);
    }
}

/// Must a window be tried again at a higher temperature?
pub fn failed(decoded: &Decoded, asked: &Asked, words: &Vocabulary) -> bool {
    let unlikely = decoded.mean_log_probability < asked.logprob_threshold;
    if unlikely && f64::from(decoded.no_speech_probability) > asked.no_speech_threshold {
        return false;
    }
    unlikely || compression_ratio(words.decode_all(&decoded.tokens).trim()) > asked.compression_ratio_threshold
}

/// How often a text repeats itself: its bytes over those it is packed into.
pub fn compression_ratio(text: &str) -> f64 {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    let packed = packed.write_all(text.as_bytes()).and_then(|()| packed.finish());
    packed.map_or(1.0, |packed| text.len() as f64 / packed.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_repeats_itself_packs_well() {
        let said = "And so my fellow Americans ask not what your country can do for you.";
        assert!(compression_ratio(said) < 1.3);
        assert!(compression_ratio(&said.repeat(8)) > 2.4);
        assert_eq!(compression_ratio(""), 0.0);
    }

    #[test]
    fn windows_cover_a_clip_and_its_prompt_is_the_end_of_what_was_said() {
        let mut clip = Clip::new(100, 4000, vec![7, 8, 9], false);
        assert_eq!(clip.window(), Some(Window { seek: 100, size: 3000 }));
        assert_eq!(clip.initial(&[50], 40, 2), [40, 8, 9, 50]);
        clip.skip(Window { seek: 100, size: 3000 });
        assert_eq!(clip.window(), Some(Window { seek: 3100, size: 900 }));
        let cut = Cut { segments: Vec::new(), next: 4000, silent_end: true, temperature: 0.6 };
        clip.take(Window { seek: 3100, size: 900 }, cut, true);
        assert_eq!((clip.window(), clip.initial(&[50], 40, 2)), (None, vec![50]));
    }

    #[test]
    fn what_was_said_is_the_next_prompt_unless_it_is_not_trusted_or_not_wanted() {
        let window = Window { seek: 0, size: 3000 };
        let segment = Segment {
            seek: 0,
            start: 0.0,
            end: 2.0,
            text: " Gears".into(),
            tokens: vec![4, 5],
            temperature: 0.0,
            mean_log_probability: -0.1,
            compression_ratio: 1.0,
            no_speech_probability: 0.0,
            words: None,
        };
        let after = |temperature: f32, condition: bool| {
            let mut clip = Clip::new(0, 9000, vec![7], false);
            let segments = vec![segment.clone()];
            clip.take(window, Cut { segments, next: 3000, silent_end: true, temperature }, condition);
            clip.initial(&[50], 40, 200)
        };
        assert_eq!(after(0.5, true), [40, 7, 4, 5, 50]);
        assert_eq!(after(0.6, true), [50]);
        assert_eq!(after(0.0, false), [50]);
    }

    #[test]
    fn a_window_that_gets_nowhere_is_left() {
        let mut clip = Clip::new(0, 4000, vec![], false);
        let cut = Cut { segments: Vec::new(), next: 0, silent_end: false, temperature: 0.0 };
        clip.take(Window { seek: 0, size: 3000 }, cut, true);
        assert_eq!(clip.seek, 1);
    }
}
