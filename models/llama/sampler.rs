//! One row of logits to one token. The choice hangs on the logits, the settings, the seed and the place alone: never on
//! who else is in the batch, nor on when the prediction was started.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// Below this the softmax is a step: the greatest logit is taken.
const GREEDY_TEMPERATURE: f64 = 1e-5;
/// First guess of how many tokens hold `top_p` of the mass.
const NUCLEUS_TOKENS: usize = 64;

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

/// The logits held no finite greatest value: the weights or the arithmetic are broken.
#[derive(Debug, PartialEq, Eq)]
pub struct NotANumber;

#[derive(Debug)]
pub struct Sampler {
    settings: Settings,
    /// Only filled where the repetition penalty needs it.
    prompt: HashSet<u32>,
    generated: HashMap<u32, u32>,
    count: usize,
}

impl Sampler {
    pub fn new(settings: Settings, prompt: &[u32]) -> Self {
        let repeats = settings.repetition_penalty != 1.0;
        let prompt = if repeats { prompt.iter().copied().collect() } else { HashSet::new() };
        Self { settings, prompt, generated: HashMap::new(), count: 0 }
    }

    /// Chooses the next token and remembers it. `logits` is scratch afterwards.
    pub fn next(&mut self, logits: &mut [f32], ends: &[u32]) -> Result<u32, NotANumber> {
        if self.count < self.settings.min_tokens {
            for &end in ends {
                if let Some(logit) = logits.get_mut(end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        self.penalise(logits);
        let token =
            if self.settings.temperature < GREEDY_TEMPERATURE { greatest(logits)?.0 } else { self.draw(logits)? };
        self.count += 1;
        *self.generated.entry(token).or_default() += 1;
        Ok(token)
    }

    fn penalise(&self, logits: &mut [f32]) {
        let Settings { presence_penalty, frequency_penalty, repetition_penalty, .. } = self.settings;
        if repetition_penalty != 1.0 {
            let fresh = self.generated.keys().filter(|&id| !self.prompt.contains(id));
            for &id in self.prompt.iter().chain(fresh) {
                let Some(logit) = logits.get_mut(id as usize) else { continue };
                *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            }
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            for (&id, &times) in &self.generated {
                logits[id as usize] -= presence_penalty + frequency_penalty * times as f32;
            }
        }
    }

    /// Temperature, then `top_k`, then `top_p`, then one draw from what is left.
    fn draw(&self, logits: &mut [f32]) -> Result<u32, NotANumber> {
        let (_, max) = greatest(logits)?;
        let mut total = kernels::softmax::weigh(logits, max, self.settings.temperature as f32);
        let Settings { top_k, top_p, .. } = self.settings;
        // Tokens lighter than this hold less than `1 - top_p` of the mass all together, so `top_p` cuts every one of
        // them: thousands of tokens need not be sorted. Half of it, for rounding.
        let floor = if top_k == 0 { 0.5 * (1.0 - top_p) * total / logits.len() as f64 } else { 0.0 };
        let floor = (floor as f32).max(f32::MIN_POSITIVE);
        let weights = logits.iter().copied().zip(0u32..);
        let mut kept: Vec<(f32, u32)> = weights.filter(|&(weight, _)| weight >= floor).collect();
        if top_k > 0 && top_k < kept.len() {
            kept.select_nth_unstable_by(top_k - 1, heavier);
            kept.truncate(top_k);
            kept.sort_unstable_by(heavier);
            total = mass(&kept);
        }
        if top_p < 1.0 {
            keep_nucleus(&mut kept, top_p * total);
        }
        let mut left = uniform(self.settings.seed, self.count as u64) * mass(&kept);
        for &(weight, id) in &kept {
            left -= f64::from(weight);
            if left < 0.0 {
                return Ok(id);
            }
        }
        // Rounding can leave a crumb: it belongs to the last one.
        kept.last().map(|&(_, id)| id).ok_or(NotANumber)
    }
}

/// Cuts to the fewest heaviest tokens that hold the mass `goal`; always at least one.
fn keep_nucleus(kept: &mut Vec<(f32, u32)>, goal: f64) {
    let mut size = NUCLEUS_TOKENS;
    loop {
        size = size.min(kept.len());
        if size < kept.len() {
            kept.select_nth_unstable_by(size, heavier);
        }
        kept[..size].sort_unstable_by(heavier);
        let mut sum = 0.0;
        let reached = kept[..size].iter().position(|&(weight, _)| {
            sum += f64::from(weight);
            sum >= goal
        });
        if let Some(last) = reached {
            kept.truncate(last + 1);
            return;
        }
        if size == kept.len() {
            return;
        }
        size *= 4;
    }
}

fn mass(kept: &[(f32, u32)]) -> f64 {
    kept.iter().map(|&(weight, _)| f64::from(weight)).sum()
}

/// Heaviest first; equal weights in the order of ids, so that the order is total.
fn heavier(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The first of the greatest logits and its value.
pub fn greatest(logits: &[f32]) -> Result<(u32, f32), NotANumber> {
    /// Side by side, so that the compiler uses vectors.
    const LANES: usize = 16;
    let (mut max, mut broken) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            max[lane] = if chunk[lane] > max[lane] { chunk[lane] } else { max[lane] };
            broken[lane] |= chunk[lane].is_nan();
        }
    }
    let max = max.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    if broken.contains(&true) || rest.iter().any(|x| x.is_nan()) || !max.is_finite() {
        return Err(NotANumber);
    }
    let place = logits.iter().position(|&x| x == max);
    place.map(|place| (place as u32, max)).ok_or(NotANumber)
}

/// A number in [0, 1) for one place of one seed: SplitMix64's finisher over both, so that no state is carried along.
fn uniform(seed: u64, place: u64) -> f64 {
    let mixed = mix(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ place.wrapping_mul(0xD1B5_4A32_D192_ED03));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn next(settings: Settings, prompt: &[u32], ends: &[u32]) -> Vec<u32> {
        let mut sampler = Sampler::new(settings, prompt);
        (0..4).map(|_| sampler.next(&mut LOGITS.clone(), ends).unwrap()).collect()
    }

    /// How often each token comes over many seeds.
    fn shares(settings: Settings) -> Vec<f64> {
        const SEEDS: u64 = 20_000;
        let mut counts = vec![0.0; LOGITS.len()];
        for seed in 0..SEEDS {
            let mut sampler = Sampler::new(Settings { seed, ..settings.clone() }, &[]);
            counts[sampler.next(&mut LOGITS.clone(), &[]).unwrap() as usize] += 1.0 / SEEDS as f64;
        }
        counts
    }

    fn warm() -> Settings {
        Settings { temperature: 1.0, ..Settings::greedy() }
    }

    #[test]
    fn temperature_zero_takes_the_greatest() {
        assert_eq!(next(Settings::greedy(), &[], &[]), [1, 1, 1, 1]);
    }

    #[test]
    fn shares_follow_the_softmax() {
        let weights: Vec<f64> = LOGITS.iter().map(|&l| f64::from(l).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (got, want) in shares(warm()).iter().zip(weights) {
            assert!((got - want / total).abs() < 0.015, "{got} for {}", want / total);
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_heaviest() {
        // Softmax: 0.072, 0.636, 0.234, 0.012, 0.032.
        let only = |shares: Vec<f64>| -> Vec<usize> { (0..5).filter(|&i| shares[i] > 0.0).collect() };
        assert_eq!(only(shares(Settings { top_k: 1, ..warm() })), [1]);
        assert_eq!(only(shares(Settings { top_k: 3, ..warm() })), [0, 1, 2]);
        assert_eq!(only(shares(Settings { top_p: 0.0, ..warm() })), [1]);
        assert_eq!(only(shares(Settings { top_p: 0.6, ..warm() })), [1]);
        assert_eq!(only(shares(Settings { top_p: 0.8, ..warm() })), [1, 2]);
        assert_eq!(only(shares(Settings { top_k: 2, top_p: 0.99, ..warm() })), [1, 2]);
    }

    #[test]
    fn a_nucleus_wider_than_the_first_guess_is_found() {
        let mut kept: Vec<(f32, u32)> = (0..1000).map(|id| (1.0, id)).collect();
        keep_nucleus(&mut kept, 500.0);
        assert_eq!(kept.len(), 500);
        assert_eq!(kept.last(), Some(&(1.0, 499)), "equal weights leave in the order of ids");
    }

    #[test]
    fn skipping_the_light_tokens_changes_nobody_in_the_nucleus() {
        let logits: Vec<f32> = (0..5000u64).map(|id| 8.0 * uniform(11, id) as f32).collect();
        let mut sorted: Vec<(f32, u32)> = logits.iter().map(|l| l.exp()).zip(0..).collect();
        sorted.sort_unstable_by(heavier);
        for top_p in [0.1, 0.5, 0.95, 0.999] {
            let goal = top_p * mass(&sorted);
            let before = sorted.iter().scan(0.0, |sum, &(weight, id)| {
                let before = *sum;
                *sum += f64::from(weight);
                Some((before, id))
            });
            let nucleus: HashSet<u32> = before.take_while(|&(before, _)| before < goal).map(|(_, id)| id).collect();
            let drawn = (0..4000).map(|seed| {
                let settings = Settings { temperature: 1.0, top_p, seed, ..Settings::greedy() };
                Sampler::new(settings, &[]).next(&mut logits.clone(), &[]).unwrap()
            });
            let drawn: HashSet<u32> = drawn.collect();
            assert!(drawn.is_subset(&nucleus), "{top_p}");
            let lightest = sorted[nucleus.len() / 2].1;
            assert!(nucleus.contains(&lightest) && drawn.len() > nucleus.len() / 8, "{top_p}: {}", drawn.len());
        }
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
    fn penalties_fall_on_what_was_generated() {
        assert_eq!(next(Settings { presence_penalty: 1.5, ..Settings::greedy() }, &[2], &[]), [1, 2, 1, 1]);
        assert_eq!(next(Settings { frequency_penalty: 0.75, ..Settings::greedy() }, &[], &[]), [1, 1, 2, 1]);
    }

    #[test]
    fn the_repetition_penalty_falls_on_the_prompt_too() {
        assert_eq!(next(Settings { repetition_penalty: 4.0, ..Settings::greedy() }, &[1], &[]), [2, 0, 1, 1]);
    }

    #[test]
    fn the_first_of_the_greatest_is_found_anywhere() {
        for place in [0, 15, 16, 31, 32, 36] {
            let mut logits = [-2.0; 37];
            logits[place..].fill(-1.5);
            assert_eq!(greatest(&logits), Ok((place as u32, -1.5)));
            logits[place] = f32::NAN;
            assert_eq!(greatest(&logits), Err(NotANumber));
        }
    }

    #[test]
    fn broken_logits_are_told() {
        for bad in [[f32::NAN, 1.0], [f32::NEG_INFINITY, f32::NEG_INFINITY]] {
            assert_eq!(Sampler::new(warm(), &[]).next(&mut bad.clone(), &[]), Err(NotANumber));
            assert_eq!(Sampler::new(Settings::greedy(), &[]).next(&mut bad.clone(), &[]), Err(NotANumber));
        }
    }
}
