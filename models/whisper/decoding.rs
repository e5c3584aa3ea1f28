//! One window's search for its text: greedy, by samples at a temperature, or by beams with patience. Takes rows of logits
//! and says which tokens are to be fed next; refuses to know audio, text and the other windows.

use candle_core::Result;

use super::net::{Feed, Heard, Net, Said};
use super::rules::{Rules, greatest, sum_of_exponentials};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    /// The likeliest one.
    Greedy,
    /// `samples` draws at `temperature`, of which the likeliest is taken in the end.
    Sampled { temperature: f32, samples: usize, seed: u64 },
    /// The likeliest `size` texts side by side, until `size * patience` have ended.
    Beams { size: usize, patience: f64 },
}

impl Way {
    fn sequences(self) -> usize {
        match self {
            Way::Greedy => 1,
            Way::Sampled { samples, .. } => samples,
            Way::Beams { size, .. } => size,
        }
    }
}

pub struct Decoding {
    way: Way,
    length_penalty: Option<f64>,
    /// What the net reads before the first sampled token.
    initial: Vec<u32>,
    /// Where the start token stands in it, whose logits tell whether anybody speaks.
    start: usize,
    end: u32,
    no_speech: u32,
    sequences: Vec<Sequence>,
    /// Texts that have ended, the end token not among their tokens.
    ended: Vec<(Vec<u32>, f64)>,
    no_speech_probability: f32,
    /// Tokens that may be sampled.
    most: usize,
    begun: bool,
}

struct Sequence {
    tokens: Vec<u32>,
    /// The sum of the logarithms of their probabilities.
    sum: f64,
    said: Said,
    ended: bool,
}

/// The best text of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    pub tokens: Vec<u32>,
    pub mean_log_probability: f64,
    pub no_speech_probability: f32,
    pub temperature: f32,
    /// It was not over when no more tokens were allowed.
    pub cut_short: bool,
}

/// What a decoding needs to know of the vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub start: u32,
    pub end: u32,
    pub no_speech: u32,
}

impl Decoding {
    /// `initial` ends with the start sequence, perhaps with a prompt before it.
    pub fn new(net: &Net, way: Way, length_penalty: Option<f64>, initial: Vec<u32>, ends: Ends) -> Result<Self> {
        let context = net.config.text_context;
        // One more would have no position.
        let most = (context / 2).min(context + 1 - initial.len());
        let sequence =
            || Ok(Sequence { tokens: Vec::new(), sum: 0.0, said: net.say(initial.len() + most)?, ended: false });
        Ok(Self {
            sequences: (0..way.sequences()).map(|_| sequence()).collect::<Result<_>>()?,
            way,
            length_penalty,
            start: initial.iter().rposition(|&token| token == ends.start).unwrap_or(0),
            initial,
            end: ends.end,
            no_speech: ends.no_speech,
            ended: Vec::new(),
            no_speech_probability: 0.0,
            most,
            begun: false,
        })
    }

    /// What the net is to read next: once the initial tokens, then one token per living sequence.
    pub fn feeds<'a>(&'a mut self, heard: &'a Heard) -> Vec<Feed<'a>> {
        if !self.begun {
            let last = self.initial.len() - 1;
            let mut wanted = vec![self.start, last];
            wanted.dedup();
            let said = &mut self.sequences[0].said;
            return vec![Feed { tokens: self.initial.clone(), position: 0, said, heard, wanted }];
        }
        let initial = self.initial.len();
        let living = self.sequences.iter_mut().filter(|sequence| !sequence.ended);
        living
            .map(|Sequence { tokens, said, .. }| Feed {
                tokens: tokens.last().copied().into_iter().collect(),
                position: initial + tokens.len() - 1,
                said,
                heard,
                wanted: vec![0],
            })
            .collect()
    }

    /// Takes the logits that `feeds` wanted, in its order, `width` per row. True when the search is over.
    pub fn take(&mut self, logits: &mut [f32], width: usize, rules: &Rules) -> Result<bool> {
        if !self.begun {
            self.begin(logits, width)?;
            let last = logits.len() - width;
            let mut rows = logits[last..].repeat(self.sequences.len());
            return self.choose(&mut rows, width, rules);
        }
        self.choose(logits, width, rules)
    }

    fn begin(&mut self, logits: &[f32], width: usize) -> Result<()> {
        self.begun = true;
        let row = &logits[..width];
        self.no_speech_probability = (row[self.no_speech as usize] - sum_of_exponentials(row)).exp();
        let Some((first, others)) = self.sequences.split_first_mut() else { return Ok(()) };
        others.iter_mut().try_for_each(|other| other.said.copy_from(&first.said, self.initial.len()))
    }

    fn choose(&mut self, logits: &mut [f32], width: usize, rules: &Rules) -> Result<bool> {
        match self.way {
            Way::Beams { size, patience } => self.beams(logits, width, rules, size, patience),
            _ => {
                self.each(logits, width, rules);
                Ok(self.sequences.iter().all(|sequence| sequence.ended))
            }
        }
    }

    fn each(&mut self, logits: &mut [f32], width: usize, rules: &Rules) {
        let (end, most, way) = (self.end, self.most, self.way);
        let living = self.sequences.iter_mut().enumerate().filter(|(_, sequence)| !sequence.ended);
        for (row, (index, sequence)) in logits.chunks_exact_mut(width).zip(living) {
            rules.apply(row, &sequence.tokens);
            let total = sum_of_exponentials(row);
            let token = match way {
                Way::Sampled { temperature, seed, .. } => {
                    draw(row, temperature, uniform(seed, index as u64, sequence.tokens.len() as u64))
                }
                _ => greatest(row).0,
            };
            sequence.sum += f64::from(row[token] - total);
            sequence.ended = token as u32 == end;
            if !sequence.ended {
                sequence.tokens.push(token as u32);
                sequence.ended = sequence.tokens.len() == most;
            }
        }
    }

    fn beams(&mut self, logits: &mut [f32], width: usize, rules: &Rules, size: usize, patience: f64) -> Result<bool> {
        // Candidates in the order of their beams: (tokens, beam, sum). Equal texts count once.
        let mut candidates: Vec<(Vec<u32>, usize, f64)> = Vec::new();
        for (beam, (row, sequence)) in logits.chunks_exact_mut(width).zip(&self.sequences).enumerate() {
            rules.apply(row, &sequence.tokens);
            let total = sum_of_exponentials(row);
            for token in largest(row, size + 1) {
                let sum = sequence.sum + f64::from(row[token] - total);
                let tokens: Vec<u32> = sequence.tokens.iter().copied().chain([token as u32]).collect();
                match candidates.iter_mut().find(|(known, ..)| *known == tokens) {
                    Some(known) => *known = (tokens, beam, sum),
                    None => candidates.push((tokens, beam, sum)),
                }
            }
        }
        candidates.sort_by(|a, b| b.2.total_cmp(&a.2));
        let wanted = ((size as f64 * patience).round_ties_even() as usize).max(1);
        let mut next: Vec<(Vec<u32>, usize, f64)> = Vec::new();
        for (mut tokens, beam, sum) in candidates {
            if tokens.last() == Some(&self.end) {
                tokens.pop();
                if self.ended.len() < wanted {
                    self.ended.push((tokens, sum));
                }
            } else if next.len() < size {
                next.push((tokens, beam, sum));
                if next.len() == size {
                    break;
                }
            }
        }
        self.rearrange(next)?;
        let full = self.sequences.first().is_none_or(|sequence| sequence.tokens.len() == self.most);
        Ok(self.ended.len() >= wanted || full)
    }

    /// Every next beam goes on from what its source said: taken over where it can be, copied where two go on from one.
    fn rearrange(&mut self, next: Vec<(Vec<u32>, usize, f64)>) -> Result<()> {
        let positions = self.initial.len() + self.sequences.first().map_or(0, |sequence| sequence.tokens.len());
        let mut free: Vec<Option<Said>> = self.sequences.drain(..).map(|sequence| Some(sequence.said)).collect();
        let mut placed: Vec<Option<Said>> = next.iter().map(|_| None).collect();
        let mut owner: Vec<Option<usize>> = vec![None; free.len()];
        for (index, (_, source, _)) in next.iter().enumerate() {
            if let Some(said) = free[*source].take() {
                placed[index] = Some(said);
                owner[*source] = Some(index);
            }
        }
        let mut spare: Vec<Said> = free.into_iter().flatten().collect();
        for (index, (_, source, _)) in next.iter().enumerate() {
            if placed[index].is_some() {
                continue;
            }
            let mut said = spare.pop().ok_or_else(|| candle_core::Error::msg("more beams than memories"))?;
            let from = owner[*source].and_then(|owner| placed[owner].as_ref());
            said.copy_from(from.ok_or_else(|| candle_core::Error::msg("a beam from nowhere"))?, positions)?;
            placed[index] = Some(said);
        }
        self.sequences = next
            .into_iter()
            .zip(placed)
            .filter_map(|((tokens, _, sum), said)| Some(Sequence { tokens, sum, said: said?, ended: false }))
            .collect();
        Ok(())
    }

    /// The best text, once the search is over.
    pub fn finish(self) -> Decoded {
        let Self { way, length_penalty, sequences, mut ended, no_speech_probability, most, .. } = self;
        if let Way::Beams { size, .. } = way {
            let mut living: Vec<&Sequence> = sequences.iter().collect();
            living.sort_by(|a, b| b.sum.total_cmp(&a.sum));
            for sequence in living {
                if ended.len() >= size {
                    break;
                }
                ended.push((sequence.tokens.clone(), sequence.sum));
            }
        } else {
            ended.extend(sequences.into_iter().map(|sequence| (sequence.tokens, sequence.sum)));
        }
        let score = |(tokens, sum): &(Vec<u32>, f64)| {
            let length = tokens.len() as f64;
            sum / length_penalty.map_or(length.max(1.0), |alpha| ((5.0 + length) / 6.0).powf(alpha))
        };
        let mut best = (Vec::new(), f64::NEG_INFINITY);
        let mut best_score = f64::NEG_INFINITY;
        for candidate in ended {
            let score = score(&candidate);
            if score > best_score {
                (best, best_score) = (candidate, score);
            }
        }
        let (tokens, sum) = best;
        Decoded {
            cut_short: tokens.len() >= most,
            mean_log_probability: sum / (tokens.len() + 1) as f64,
            tokens,
            no_speech_probability,
            temperature: if let Way::Sampled { temperature, .. } = way { temperature } else { 0.0 },
        }
    }
}

/// The places of the `n` largest, in falling order, the first of equals first.
fn largest(logits: &[f32], n: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(n + 1);
    for (place, &logit) in logits.iter().enumerate() {
        if logit == f32::NEG_INFINITY || best.len() == n && logit <= logits[best[n - 1]] {
            continue;
        }
        let at = best.partition_point(|&other| logits[other] >= logit);
        best.insert(at, place);
        best.truncate(n);
    }
    best
}

/// A place by its probability at a temperature; `uniform` is from 0 to 1.
fn draw(logits: &[f32], temperature: f32, uniform: f64) -> usize {
    let (likeliest, most) = greatest(logits);
    let weight = |logit: f32| f64::from((logit - most) / temperature).exp();
    let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
    let mut left = uniform * total;
    for (place, &logit) in logits.iter().enumerate() {
        left -= weight(logit);
        if left < 0.0 {
            return place;
        }
    }
    likeliest
}

/// A number from 0 to 1 that hangs on the three alone (splitmix64).
fn uniform(seed: u64, sequence: u64, position: u64) -> f64 {
    let mut state = seed ^ sequence.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ position.wrapping_mul(0xA076_1D64_78BD_642F);
    for _ in 0..2 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        state ^= state >> 31;
    }
    (state >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_in_falling_order() {
        let logits = [1.0, 5.0, f32::NEG_INFINITY, 5.0, 3.0];
        assert_eq!(largest(&logits, 3), [1, 3, 4]);
        assert_eq!(largest(&logits, 9), [1, 3, 4, 0]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, (3.0f32).ln(), f32::NEG_INFINITY];
        let mut counts = [0; 3];
        for position in 0..4000 {
            counts[draw(&logits, 1.0, uniform(9, 1, position))] += 1;
        }
        assert!((900..1100).contains(&counts[0]) && counts[2] == 0, "{counts:?}");
        assert_eq!(uniform(1, 2, 3), uniform(1, 2, 3));
        assert_ne!(uniform(1, 2, 3), uniform(1, 2, 4));
    }
}
