//! A recording without its silences: pieces of it, one behind the other, and the way back from a time in them to the time
//! in the recording. Everything at once is a timeline too. Refuses to know what is heard.

use super::clip::Segment;
use super::config::FRAMES;
use super::mel::FRAMES_PER_SECOND;
use super::recording::seconds;

#[derive(Debug, Clone)]
pub struct Timeline {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// Its first frame in the recording.
    from: usize,
    /// Its first frame here.
    at: usize,
    frames: usize,
}

impl Timeline {
    /// Stretches of a recording in their order, in frames, that do not meet.
    pub fn new(stretches: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut at = 0;
        let piece = |(from, to): (usize, usize)| {
            let piece = Piece { from, at, frames: to.saturating_sub(from) };
            at += piece.frames;
            piece
        };
        Self { pieces: stretches.into_iter().map(piece).filter(|piece| piece.frames > 0).collect() }
    }

    pub fn frames(&self) -> usize {
        self.pieces.last().map_or(0, |piece| piece.at + piece.frames)
    }

    /// Which frames of the recording a window here is: runs of (first, frames).
    pub fn runs(&self, first: usize, size: usize) -> Vec<(usize, usize)> {
        let end = first + size;
        let meets = self.pieces.iter().filter(|piece| piece.at < end && piece.at + piece.frames > first);
        meets
            .map(|piece| {
                let (from, to) = (first.max(piece.at), end.min(piece.at + piece.frames));
                (piece.from + from - piece.at, to - from)
            })
            .collect()
    }

    /// The frame of the recording that is here: at a border, the beginning of the later piece.
    pub fn frame(&self, here: usize) -> usize {
        let piece = self.pieces.iter().rfind(|piece| piece.at <= here);
        piece.map_or(here, |piece| piece.from + here - piece.at)
    }

    /// The time in the recording of a time here; at a border, `ends` takes the end of the earlier piece.
    fn time(&self, here: f64, ends: bool) -> f64 {
        let begun = |piece: &&Piece| if ends { seconds(piece.at) < here } else { seconds(piece.at) <= here + TINY };
        let piece = self.pieces.iter().rfind(begun).or(self.pieces.first());
        let shift = piece.map_or(0.0, |piece| piece.from as f64 - piece.at as f64) / FRAMES_PER_SECOND as f64;
        // A hundredth is as exact as a frame is.
        if shift == 0.0 { here } else { ((here + shift) * 100.0).round() / 100.0 }
    }

    /// A segment's times as the recording has them.
    pub fn restore(&self, segment: &mut Segment) {
        segment.seek = self.frame(segment.seek);
        segment.start = self.time(segment.start, false);
        segment.end = self.time(segment.end, true).max(segment.start);
        for word in segment.words.iter_mut().flatten() {
            word.start = self.time(word.start, false);
            word.end = self.time(word.end, true).max(word.start);
        }
    }

    /// Parts of a window at most, as long as pieces let them be; a longer piece is cut where `loudness` is least.
    pub fn windows(&self, loudness: impl Fn(usize) -> f32) -> Vec<(usize, usize)> {
        let mut windows = Vec::new();
        let mut start = 0;
        let frames = self.frames();
        while frames - start > FRAMES {
            let latest = start + FRAMES;
            let border = self.pieces.iter().map(|piece| piece.at).rfind(|&at| at > start && at <= latest);
            let border = border.filter(|&at| latest - at <= CUT_WITHIN);
            let quietest = || {
                let places = (latest - CUT_WITHIN..latest).map(|at| (at, loudness(self.frame(at))));
                places.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(latest, |(at, _)| at)
            };
            let end = border.unwrap_or_else(quietest);
            windows.push((start, end));
            start = end;
        }
        if frames > start {
            windows.push((start, frames));
        }
        windows
    }
}

/// How much of a window may be given up for a better place to cut: 8 s.
const CUT_WITHIN: usize = 800;
/// Less than any frame, in seconds.
const TINY: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_back_to_where_they_were() {
        let timeline = Timeline::new([(100, 300), (1000, 1500)]);
        assert_eq!(timeline.frames(), 700);
        assert_eq!((timeline.frame(0), timeline.frame(199), timeline.frame(200)), (100, 299, 1000));
        assert_eq!((timeline.time(0.5, false), timeline.time(2.0, false), timeline.time(2.0, true)), (1.5, 10.0, 3.0));
        assert_eq!(timeline.time(7.0, true), 15.0);
        assert_eq!(timeline.runs(150, 100), [(250, 50), (1000, 50)]);
        assert_eq!(timeline.runs(300, 100), [(1100, 100)]);
    }

    #[test]
    fn a_whole_recording_is_its_own_timeline() {
        let timeline = Timeline::new([(0, 5000)]);
        assert_eq!(timeline.runs(3000, 2000), [(3000, 2000)]);
        assert_eq!((timeline.time(12.34, false), timeline.time(12.34, true)), (12.34, 12.34));
        assert_eq!(Timeline::new([]).frames(), 0);
        assert_eq!(Timeline::new([]).windows(|_| 0.0), []);
    }

    #[test]
    fn windows_end_at_borders_or_where_it_is_quiet() {
        let timeline = Timeline::new([(0, 2500), (4000, 4400), (6000, 14_000)]);
        let windows = timeline.windows(|frame| if frame == 7990 { -5.0 } else { -1.0 });
        assert_eq!(windows[0], (0, 2900));
        // Frame 7990 of the recording is 4890 of the timeline: too early for a cut, so the first of equals is.
        assert_eq!(windows[1].0, 2900);
        assert!(windows.iter().all(|(from, to)| to - from <= FRAMES && to > from), "{windows:?}");
        assert_eq!(windows.last().map(|window| window.1), Some(timeline.frames()));
        let quiet = timeline.windows(|frame| if frame == 8990 { -5.0 } else { -1.0 });
        assert_eq!(quiet[1], (2900, 5890));
    }
}
