//! What a prediction asks of the sampling of its next token: its settings, and what it has read and said. How a token is
//! chosen is `kernels::sample`'s; this keeps the record of one prediction, wherever its rows run.

use std::collections::HashMap;

use kernels::op::Ask;

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// 0 is greedy.
    pub temperature: f64,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f64,
    /// End tokens cannot be chosen before so many tokens were.
    pub min_tokens: usize,
    /// Taken off a token that was generated before.
    pub presence_penalty: f32,
    /// Taken off for every time that it was generated before.
    pub frequency_penalty: f32,
    /// Divides a positive, multiplies a negative logit of a token in the prompt or the text so far; 1 is off.
    pub repetition_penalty: f32,
    pub seed: u64,
}

#[cfg(test)]
impl Settings {
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_tokens: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

#[derive(Debug)]
pub struct Sampler {
    settings: Settings,
    /// Tokens of the prompt and of the text, with the times they were generated: only kept where a penalty needs them.
    seen: Vec<(u32, u32)>,
    /// Where in `seen` a token stands.
    places: HashMap<u32, usize>,
    count: usize,
}

impl Sampler {
    pub fn new(settings: Settings, prompt: &[u32]) -> Self {
        let mut sampler = Self { settings, seen: Vec::new(), places: HashMap::new(), count: 0 };
        if sampler.settings.repetition_penalty != 1.0 {
            for &token in prompt {
                sampler.see(token);
            }
        }
        sampler
    }

    /// What is asked of the logits of the next token, or of the one behind `unknown` others that were chosen and not told yet:
    /// those are not among the seen. `ends` are the tokens that `min_tokens` keeps away.
    pub fn ask<'a>(&'a self, ends: &'a [u32], unknown: usize) -> Ask<'a> {
        let (settings, count) = (&self.settings, self.count + unknown);
        Ask {
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            presence_penalty: settings.presence_penalty,
            frequency_penalty: settings.frequency_penalty,
            repetition_penalty: settings.repetition_penalty,
            seed: settings.seed,
            place: count as u64,
            seen: &self.seen,
            banned: if count < settings.min_tokens { ends } else { &[] },
        }
    }

    /// The token that was chosen.
    pub fn took(&mut self, token: u32) {
        self.count += 1;
        let Settings { presence_penalty, frequency_penalty, repetition_penalty, .. } = self.settings;
        if presence_penalty != 0.0 || frequency_penalty != 0.0 || repetition_penalty != 1.0 {
            let place = self.see(token);
            self.seen[place].1 += 1;
        }
    }

    fn see(&mut self, token: u32) -> usize {
        *self.places.entry(token).or_insert_with(|| {
            self.seen.push((token, 0));
            self.seen.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use kernels::Pool;
    use kernels::sample::sample;

    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn next(settings: Settings, prompt: &[u32], ends: &[u32]) -> Vec<u32> {
        let mut sampler = Sampler::new(settings, prompt);
        let draw = |_| {
            let mut chosen = [Ok(0)];
            sample(&mut LOGITS.clone(), LOGITS.len(), &[sampler.ask(ends, 0)], &mut chosen, &Pool::new(1));
            sampler.took(chosen[0].unwrap());
            chosen[0].unwrap()
        };
        (0..4).map(draw).collect()
    }

    #[test]
    fn temperature_zero_takes_the_greatest() {
        assert_eq!(next(Settings::greedy(), &[], &[]), [1, 1, 1, 1]);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let hot = |seed| next(Settings { temperature: 3.0, seed, ..Settings::greedy() }, &[], &[]);
        assert_eq!(hot(7), hot(7));
        assert!((0..20).any(|seed| hot(seed) != hot(7)));
    }

    #[test]
    fn end_tokens_wait_for_min_tokens() {
        let settings = Settings { min_tokens: 2, ..Settings::greedy() };
        assert_eq!(next(settings, &[], &[1]), [2, 2, 1, 1]);
    }

    #[test]
    fn what_is_asked_ahead_counts_the_tokens_that_are_not_known() {
        let settings = Settings { min_tokens: 2, repetition_penalty: 1.5, ..Settings::greedy() };
        let mut sampler = Sampler::new(settings, &[4]);
        let asked = |sampler: &Sampler, unknown| {
            let ask = sampler.ask(&[9], unknown);
            (ask.place, ask.banned.len(), ask.seen.len())
        };
        assert_eq!((asked(&sampler, 0), asked(&sampler, 1)), ((0, 1, 1), (1, 1, 1)));
        sampler.took(3);
        assert_eq!((asked(&sampler, 0), asked(&sampler, 1)), ((1, 1, 2), (2, 0, 2)));
    }

    #[test]
    fn penalties_fall_on_what_was_generated() {
        assert_eq!(next(Settings { presence_penalty: 1.5, ..Settings::greedy() }, &[2], &[]), [1, 2, 1, 1]);
        assert_eq!(next(Settings { frequency_penalty: 0.75, ..Settings::greedy() }, &[], &[]), [1, 1, 2, 1]);
    }

    #[test]
    fn the_repetition_penalty_falls_on_the_prompt_too() {
        assert_eq!(next(Settings { repetition_penalty: 4.0, ..Settings::greedy() }, &[1], &[]), [2, 0, 1, 1]);
    }
}
