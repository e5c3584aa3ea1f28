//! Which tokens may come next: no blanks first, nothing that is no speech, timestamps in pairs that never go back. Knows
//! the tokens sampled so far and a row of logits; refuses to know how one of them is chosen.

use super::vocabulary::Specials;

pub struct Rules {
    /// Never.
    suppressed: Vec<u32>,
    /// Not as the first token.
    not_first: Vec<u32>,
    specials: Specials,
    /// The first timestamp is this many steps after the window's beginning at most.
    latest_first: usize,
}

/// 1 s.
const LATEST_FIRST_TIME: usize = 50;

impl Rules {
    /// `suppressed` beside the special tokens that are no text; `blank` spells a blank.
    pub fn new(suppressed: impl IntoIterator<Item = u32>, blank: Vec<u32>, specials: Specials) -> Self {
        let Specials { transcribe, translate, start, previous, start_of_model, no_speech, .. } = specials;
        let mut suppressed: Vec<u32> = suppressed.into_iter().collect();
        suppressed.extend([transcribe, translate, start, previous, start_of_model, no_speech]);
        suppressed.push(specials.no_timestamps);
        let not_first = blank.into_iter().chain([specials.end]).collect();
        Self { suppressed, not_first, specials, latest_first: LATEST_FIRST_TIME }
    }

    /// Sets the logits of what may not come after `sampled` to minus infinity.
    pub fn apply(&self, logits: &mut [f32], sampled: &[u32]) {
        const NEVER: f32 = f32::NEG_INFINITY;
        let Specials { end, first_time, .. } = self.specials;
        let (end, times) = (end as usize, first_time as usize);
        if sampled.is_empty() {
            self.not_first.iter().for_each(|&id| logits[id as usize] = NEVER);
        }
        for &id in &self.suppressed {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = NEVER;
            }
        }
        let is_time = |id: Option<&u32>| id.is_some_and(|&id| id >= first_time);
        let last_was_time = is_time(sampled.last());
        let before_was_time = sampled.len() < 2 || is_time(sampled.get(sampled.len() - 2));
        if last_was_time {
            match before_was_time {
                true => logits[times..].fill(NEVER),
                false => logits[..end].fill(NEVER),
            }
        }
        if let Some(&last) = sampled.iter().rev().find(|&&id| id >= first_time) {
            // A segment's end may be its next one's beginning, but no segment is empty.
            let allowed = if last_was_time && !before_was_time { last } else { last + 1 } as usize;
            logits[times..allowed].fill(NEVER);
        }
        if sampled.is_empty() {
            logits[..times].fill(NEVER);
            logits[times + self.latest_first + 1..].fill(NEVER);
        }
        // Where any timestamp is likelier than every text token, it is a timestamp.
        let (text, time) = logits.split_at_mut(times);
        if sum_of_exponentials(time) > greatest(text).1 {
            text.fill(NEVER);
        }
    }
}

/// The place and the value of the largest one, the first of equals.
pub fn greatest(logits: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (place, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (place, logit);
        }
    }
    best
}

/// The logarithm of the sum of all exponentials.
pub fn sum_of_exponentials(logits: &[f32]) -> f32 {
    let (_, most) = greatest(logits);
    if most == f32::NEG_INFINITY {
        return most;
    }
    let sum = kernels::softmax::weigh(&mut logits.to_vec(), most, 1.0);
    (f64::from(most) + sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIALS: Specials = Specials {
        end: 10,
        start: 11,
        languages: 1,
        translate: 13,
        transcribe: 14,
        start_of_model: 15,
        previous: 16,
        no_speech: 17,
        no_timestamps: 18,
        first_time: 19,
    };

    /// The tokens that may follow, where text is likelier than times.
    fn allowed(sampled: &[u32]) -> Vec<usize> {
        let mut logits = vec![0.0; 19 + 100];
        logits[..19].fill(9.0);
        Rules::new([3], vec![2], SPECIALS).apply(&mut logits, sampled);
        (0..logits.len()).filter(|&id| logits[id] > f32::NEG_INFINITY).collect()
    }

    #[test]
    fn the_first_token_is_a_time_of_the_first_second() {
        assert_eq!(allowed(&[]), (19..=19 + 50).collect::<Vec<_>>());
    }

    #[test]
    fn text_follows_the_first_time_and_blanks_may_follow_text() {
        assert_eq!(allowed(&[19]), [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 12]);
        assert!(allowed(&[19, 5]).contains(&2) && !allowed(&[19, 5]).contains(&3));
    }

    #[test]
    fn times_come_in_pairs_and_never_go_back() {
        // After a segment's end: its equal, a later time, or the end.
        let after = allowed(&[19, 5, 40]);
        assert_eq!(after[0], 10);
        assert!(after.contains(&40) && !after.contains(&39) && !after.contains(&5));
        // Two in a row: text is next.
        assert!(allowed(&[19, 5, 40, 40]).iter().all(|&id| id < 19));
        // In the middle of a segment: only times after its beginning.
        let inside = allowed(&[40, 5]);
        assert!(inside.contains(&41) && !inside.contains(&40) && inside.contains(&5));
    }

    #[test]
    fn times_together_outweigh_a_likelier_text() {
        let mut logits = vec![0.0; 19 + 100];
        logits[5] = 2.0;
        Rules::new([], vec![], SPECIALS).apply(&mut logits, &[19, 4]);
        assert_eq!(logits[5], f32::NEG_INFINITY);
        let mut logits = vec![0.0; 19 + 100];
        logits[5] = 6.0;
        Rules::new([], vec![], SPECIALS).apply(&mut logits, &[19, 4]);
        assert_eq!(logits[5], 6.0);
    }
}
