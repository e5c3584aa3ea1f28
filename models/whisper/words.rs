//! When each word was spoken: the decoder reads a window's text once more, and the heads that follow the audio say where
//! they look; the cheapest path through that picture gives every token its time. Refuses to know how the text was found.

use candle_core::Result;

use super::clip::{Segment, Word};
use super::net::{Feed, Heard, Net};
use super::recording::seconds;
use super::vocabulary::Vocabulary;

/// Positions of the encoder per second.
const POSITIONS_PER_SECOND: f64 = 50.0;
/// Neighbouring positions whose median is taken.
const MEDIAN: usize = 7;
const PREPENDED: &str = "\"'“¿([{-";
const APPENDED: &str = "\"'.。,，!！?？:：”)]}、";
const SENTENCE_ENDS: &str = ".。!！?？";
/// No word is expected to take longer, in seconds.
const LONGEST_MEDIAN: f64 = 0.7;

#[derive(Debug, Clone, PartialEq)]
struct Timing {
    text: String,
    tokens: usize,
    start: f64,
    end: f64,
    probability: f64,
}

/// What the reading is about.
pub struct Reading<'a> {
    pub net: &'a Net,
    pub heard: &'a Heard,
    pub vocabulary: &'a Vocabulary,
    /// The start sequence.
    pub start: &'a [u32],
    pub language: usize,
    /// The window's frames.
    pub size: usize,
}

impl Reading<'_> {
    /// Gives every segment of a window its words, and moves the segments' borders to them. `last_end` is when the last
    /// word before the window ended.
    pub fn time(&self, segments: &mut [Segment], mut last_end: f64) -> Result<()> {
        let end = self.vocabulary.specials.end;
        let texts: Vec<Vec<u32>> =
            segments.iter().map(|s| s.tokens.iter().copied().filter(|&token| token < end).collect()).collect();
        let mut timings = self.align(&texts.concat())?;
        let (median, longest) = typical(&timings);
        if median > 0.0 {
            shorten_at_sentence_ends(&mut timings, longest);
        }
        merge_punctuation(&mut timings);
        let offset = segments.first().map_or(0.0, |segment| seconds(segment.seek));
        let mut timings = timings.into_iter();
        for (segment, text) in segments.iter_mut().zip(&texts) {
            let (mut words, mut covered) = (Vec::new(), 0);
            while covered < text.len() {
                let Some(timing) = timings.next() else { break };
                covered += timing.tokens;
                if !timing.text.is_empty() {
                    words.push(Word {
                        text: timing.text,
                        start: hundredths(offset + timing.start),
                        end: hundredths(offset + timing.end),
                        probability: timing.probability,
                    });
                }
            }
            if !words.is_empty() {
                settle(segment, &mut words, median, longest, last_end);
                last_end = segment.end;
            }
            segment.words = Some(words);
        }
        Ok(())
    }

    fn align(&self, text: &[u32]) -> Result<Vec<Timing>> {
        let specials = &self.vocabulary.specials;
        let words = self.vocabulary.words(text, self.language);
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let before = self.start.len();
        let tokens = [self.start, &[specials.no_timestamps], text, &[specials.end]].concat();
        let rows = tokens.len();
        let positions = (self.size / 2).max(1);
        let mut said = self.net.say(rows)?;
        let heads = &self.net.config.alignment_heads;
        let mut picture = vec![0f64; rows * positions];
        let wanted = (before..before + text.len()).collect();
        let mut feeds = [Feed { tokens, position: 0, said: &mut said, heard: self.heard, wanted }];
        let scale = self.net.scale();
        let logits = self.net.decode(
            &mut feeds,
            Some(&mut |layer, q| {
                for (_, head) in heads.iter().filter(|(of, _)| *of == layer) {
                    let scores = self.heard.scores(layer, *head, q, positions, scale)?;
                    add_head(&mut picture, &scores, positions);
                }
                Ok(())
            }),
        )?;
        let width = self.net.config.vocabulary;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let probability = |(row, &token): (&[f32], &u32)| {
            let row = &row[..specials.end as usize];
            f64::from((row[token as usize] - super::rules::sum_of_exponentials(row)).exp())
        };
        let probabilities: Vec<f64> = logits.chunks_exact(width).zip(text).map(probability).collect();

        let rows = &picture[before * positions..(rows - 1) * positions];
        let times = first_times(rows, positions);
        let mut at = 0;
        let timing = |(text, tokens): (String, Vec<u32>)| {
            let (from, to) = (at, at + tokens.len());
            at = to;
            Timing {
                text,
                tokens: tokens.len(),
                start: times[from],
                end: times[to],
                probability: probabilities[from..to].iter().sum::<f64>() / tokens.len().max(1) as f64,
            }
        };
        Ok(words.into_iter().map(timing).collect())
    }
}

/// Adds one head's picture: its softmax over positions, made comparable over tokens, its noise taken away.
fn add_head(picture: &mut [f64], scores: &[f32], positions: usize) {
    let rows = scores.len() / positions;
    let mut weights = Vec::with_capacity(scores.len());
    for row in scores.chunks_exact(positions) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials: Vec<f64> = row.iter().map(|score| f64::from(score - most).exp()).collect();
        let total: f64 = exponentials.iter().sum();
        weights.extend(exponentials.iter().map(|weight| weight / total));
    }
    for position in 0..positions {
        let column = || (0..rows).map(|row| row * positions + position);
        let mean = column().map(|at| weights[at]).sum::<f64>() / rows as f64;
        let deviation = (column().map(|at| (weights[at] - mean).powi(2)).sum::<f64>() / rows as f64).sqrt();
        for at in column() {
            weights[at] = (weights[at] - mean) / deviation;
        }
    }
    for (row, sums) in weights.chunks_exact(positions).zip(picture.chunks_exact_mut(positions)) {
        for (position, sum) in sums.iter_mut().enumerate() {
            *sum += median_around(row, position);
        }
    }
}

/// Mirrored at both ends; rows shorter than half the width are left as they are.
fn median_around(row: &[f64], position: usize) -> f64 {
    let half = MEDIAN / 2;
    if row.len() <= half {
        return row[position];
    }
    let mirrored = |offset: usize| {
        let at = (position + offset).abs_diff(half);
        row[if at < row.len() { at } else { 2 * (row.len() - 1) - at }]
    };
    let mut around: [f64; MEDIAN] = std::array::from_fn(mirrored);
    around.sort_by(f64::total_cmp);
    around[half]
}

/// When each row of the picture begins on the cheapest path from its first to its last corner, in seconds. The cost of a
/// place is what stands there, with its sign turned.
fn first_times(picture: &[f64], positions: usize) -> Vec<f64> {
    #[derive(Clone, Copy)]
    enum From {
        Both,
        Row,
        Position,
    }
    let rows = picture.len() / positions;
    let width = positions + 1;
    let mut from = vec![From::Position; (rows + 1) * width];
    let mut above = vec![f32::INFINITY; width];
    above[0] = 0.0;
    for row in 1..=rows {
        let mut costs = vec![f32::INFINITY; width];
        for position in 1..=positions {
            let (both, one_row, one_position) = (above[position - 1], above[position], costs[position - 1]);
            let (cost, step) = if both < one_row && both < one_position {
                (both, From::Both)
            } else if one_row < both && one_row < one_position {
                (one_row, From::Row)
            } else {
                (one_position, From::Position)
            };
            costs[position] = (f64::from(cost) - picture[(row - 1) * positions + position - 1]) as f32;
            from[row * width + position] = step;
        }
        above = costs;
    }
    let mut times = vec![0.0; rows];
    let (mut row, mut position) = (rows, positions);
    while row > 0 {
        // The last one seen of a row, going back, is its first.
        times[row - 1] = position.saturating_sub(1) as f64 / POSITIONS_PER_SECOND;
        match if position == 0 { From::Row } else { from[row * width + position] } {
            From::Both => (row, position) = (row - 1, position - 1),
            From::Row => row -= 1,
            From::Position => position -= 1,
        }
    }
    times
}

/// The median duration of the words that have one, and the longest that a word is expected to take.
fn typical(timings: &[Timing]) -> (f64, f64) {
    let mut durations: Vec<f64> = timings.iter().map(|t| t.end - t.start).filter(|&duration| duration != 0.0).collect();
    durations.sort_by(f64::total_cmp);
    let middle = durations.len() / 2;
    let median = match durations.len() {
        0 => 0.0,
        n if n % 2 == 1 => durations[middle],
        _ => (durations[middle - 1] + durations[middle]) / 2.0,
    };
    let median = median.min(LONGEST_MEDIAN);
    (median, 2.0 * median)
}

fn shorten_at_sentence_ends(timings: &mut [Timing], longest: f64) {
    for i in 1..timings.len() {
        if timings[i].end - timings[i].start > longest {
            if SENTENCE_ENDS.contains(&timings[i].text) {
                timings[i].end = timings[i].start + longest;
            } else if SENTENCE_ENDS.contains(&timings[i - 1].text) {
                timings[i].start = timings[i].end - longest;
            }
        }
    }
}

/// Opening marks go to the word behind them, closing ones to the word before; an emptied place stays.
fn merge_punctuation(timings: &mut [Timing]) {
    let mut following = timings.len().saturating_sub(1);
    for i in (0..timings.len().saturating_sub(1)).rev() {
        if timings[i].text.starts_with(' ') && PREPENDED.contains(timings[i].text.trim()) {
            let text = std::mem::take(&mut timings[i].text);
            let tokens = std::mem::take(&mut timings[i].tokens);
            timings[following].text.insert_str(0, &text);
            timings[following].tokens += tokens;
        } else {
            following = i;
        }
    }
    let mut previous = 0;
    for i in 1..timings.len() {
        if !timings[previous].text.ends_with(' ') && APPENDED.contains(&timings[i].text) {
            let text = std::mem::take(&mut timings[i].text);
            let tokens = std::mem::take(&mut timings[i].tokens);
            timings[previous].text.push_str(&text);
            timings[previous].tokens += tokens;
        } else {
            previous = i;
        }
    }
}

/// The first and the last word of a segment may have swallowed a pause; the segment's own times say so.
fn settle(segment: &mut Segment, words: &mut [Word], median: f64, longest: f64, last_end: f64) {
    let second = words.get(1).map(|word| (word.start, word.end));
    let stretched =
        words[0].end - words[0].start > longest || second.is_some_and(|(_, end)| end - words[0].start > 2.0 * longest);
    if words[0].end - last_end > 4.0 * median && stretched {
        if let Some((start, end)) = second
            && end - start > longest
        {
            let border = (end / 2.0).max(end - longest);
            words[0].end = border;
            words[1].start = border;
        }
        words[0].start = (words[0].end - longest).max(0.0);
    }
    if segment.start < words[0].end && segment.start - 0.5 > words[0].start {
        words[0].start = (words[0].end - median).min(segment.start).max(0.0);
    } else {
        segment.start = words[0].start;
    }
    let last = &mut words[words.len() - 1];
    if segment.end > last.start && segment.end + 0.5 < last.end {
        last.end = (last.start + median).max(segment.end);
    } else {
        segment.end = last.end;
    }
}

fn hundredths(time: f64) -> f64 {
    (time * 100.0).round_ties_even() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_follows_what_is_bright() {
        // Three tokens over ten positions: bright at 0-2, 3-6, 7-9.
        let bright = |row: usize, position: usize| [0..3, 3..7, 7..10][row].contains(&position);
        let picture: Vec<f64> = (0..30).map(|at| if bright(at / 10, at % 10) { 1.0 } else { -1.0 }).collect();
        assert_eq!(first_times(&picture, 10), [0.0, 0.06, 0.14]);
    }

    #[test]
    fn medians_are_mirrored_at_the_ends() {
        let row = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        assert_eq!(median_around(&row, 0), 2.0);
        assert_eq!(median_around(&row, 7), 5.0);
        assert_eq!(median_around(&[5.0, 1.0], 1), 1.0);
    }

    #[test]
    fn punctuation_goes_to_its_word() {
        let timing = |text: &str| Timing { text: text.into(), tokens: 1, start: 0.0, end: 1.0, probability: 1.0 };
        let mut timings = [" \"", "Ask", " not", ",", "\"", " he"].map(timing);
        merge_punctuation(&mut timings);
        let texts: Vec<_> = timings.iter().map(|t| (t.text.as_str(), t.tokens)).collect();
        assert_eq!(texts, [("", 0), (" \"Ask", 2), (" not,\"", 3), ("", 0), ("", 0), (" he", 1)]);
    }
}
