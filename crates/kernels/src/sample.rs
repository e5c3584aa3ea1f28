//! Logits to tokens, a whole batch at once. A row's choice hangs on its logits, its settings, its seed and its place alone:
//! never on the rows beside it, on threads, or on when its prediction began. Refuses to know text and predictions.
//!
//! # What a row goes through
//!
//! `l` is the row's logits, `V` of them; everything is f32 unless said otherwise.
//!
//! 1. `l[b] = -inf` for every banned `b`.
//! 2. With `repetition_penalty != 1`, for every seen `i`: `l[i] > 0 ? l[i] / repetition : l[i] * repetition`.
//! 3. With a presence or frequency penalty, for every seen `i` that was generated `t > 0` times:
//!    `l[i] -= presence + frequency * t`.
//! 4. `m = max l`, at its first place. A NaN anywhere, or an `m` that is not finite, ends the row in [`NotANumber`].
//!    With a temperature below 1e-5 that place is the choice.
//! 5. `w[i] = e^((l[i] - m) / temperature)`; below e^-87 it is 0. A token of weight 0 is out.
//! 6. With `top_k > 0` only the `top_k` heaviest stay; equal weights stay in the order of ids.
//! 7. With `top_p < 1` only the fewest heaviest stay whose weights, summed in f64 from the heaviest on, reach `top_p` times
//!    the sum of what step 6 left: at least one.
//! 8. One draw: `u` in `[0, 1)` from [`uniform`] of seed and place, times the sum (f64) of what is left. Weights are taken
//!    off it one by one until it is below 0: heaviest first if step 6 or 7 cut, else in the order of ids.
//!
//! Floors for SmolLM2's 49,152 logits on one AVX2 core: greedy reads 0.2 MB, 7 us at 28 GB/s; a draw adds 14 operations a
//! value, 35 us (see `softmax`).

use std::cell::RefCell;
use std::cmp::Ordering;

use crate::pool::{Pool, Shares};

/// Below this the softmax is a step: the greatest logit is taken.
pub const GREEDY_TEMPERATURE: f64 = 1e-5;
/// First guess of how many tokens hold `top_p` of the mass.
const NUCLEUS_TOKENS: usize = 64;

/// What one row asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// 0 is greedy.
    pub temperature: f64,
    /// 0 is off; so is what reaches over the vocabulary.
    pub top_k: usize,
    /// 1 is off; 0 leaves the heaviest token.
    pub top_p: f64,
    /// Taken off a token that was generated before.
    pub presence_penalty: f32,
    /// Taken off for every time that it was generated before.
    pub frequency_penalty: f32,
    /// Divides a positive, multiplies a negative logit of a seen token; 1 is off.
    pub repetition_penalty: f32,
    pub seed: u64,
    /// How many tokens this prediction has drawn before.
    pub place: u64,
    /// Tokens of the prompt and of the text so far, each once, with the times it was generated (0: in the prompt alone).
    /// Only the penalties read it. Ids outside the vocabulary are passed over.
    pub seen: &'a [(u32, u32)],
    /// Tokens that may not be chosen. Ids outside the vocabulary are passed over.
    pub banned: &'a [u32],
}

impl Ask<'_> {
    /// The greatest logit, without penalties.
    pub fn greedy() -> Ask<'static> {
        Ask {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            place: 0,
            seen: &[],
            banned: &[],
        }
    }
}

/// The logits held no finite greatest value: the weights or the arithmetic are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotANumber;

thread_local! {
    /// The tokens that are still in and their weights: kept, so that a draw allocates nothing.
    static KEPT: RefCell<Vec<(f32, u32)>> = const { RefCell::new(Vec::new()) };
}

/// Chooses one token per row of `logits` (`[asks.len(), vocabulary]`, scratch afterwards) into `chosen`.
pub fn sample(
    logits: &mut [f32],
    vocabulary: usize,
    asks: &[Ask],
    chosen: &mut [Result<u32, NotANumber>],
    pool: &Pool,
) {
    assert!(logits.len() == asks.len() * vocabulary && chosen.len() == asks.len(), "logits are [asks, {vocabulary}]");
    let logits = Shares::new(logits);
    pool.chunks(chosen, 1, |row, chosen| {
        // SAFETY: every row is one unit's.
        let logits = unsafe { logits.share(row * vocabulary, vocabulary) };
        chosen[0] = KEPT.with_borrow_mut(|kept| one(logits, &asks[row], kept));
    });
}

fn one(logits: &mut [f32], ask: &Ask, kept: &mut Vec<(f32, u32)>) -> Result<u32, NotANumber> {
    for &id in ask.banned {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    penalise(logits, ask);
    let (greatest, max) = greatest(logits)?;
    if ask.temperature < GREEDY_TEMPERATURE { Ok(greatest) } else { draw(logits, max, ask, kept) }
}

fn penalise(logits: &mut [f32], ask: &Ask) {
    let Ask { presence_penalty, frequency_penalty, repetition_penalty, .. } = *ask;
    let spoken = presence_penalty != 0.0 || frequency_penalty != 0.0;
    if repetition_penalty == 1.0 && !spoken {
        return;
    }
    for &(id, times) in ask.seen {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        if repetition_penalty != 1.0 {
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
        }
        if spoken && times > 0 {
            *logit -= presence_penalty + frequency_penalty * times as f32;
        }
    }
}

/// Steps 5 to 8.
fn draw(logits: &mut [f32], max: f32, ask: &Ask, kept: &mut Vec<(f32, u32)>) -> Result<u32, NotANumber> {
    let mut total = crate::softmax::weigh(logits, max, ask.temperature as f32);
    let Ask { top_k, top_p, .. } = *ask;
    // Tokens lighter than this hold less than `1 - top_p` of the mass all together, so `top_p` cuts every one of
    // them: thousands of tokens need not be sorted. Half of it, for rounding.
    let floor = if top_k == 0 { 0.5 * (1.0 - top_p) * total / logits.len() as f64 } else { 0.0 };
    let floor = (floor as f32).max(f32::MIN_POSITIVE);
    let weights = logits.iter().copied().zip(0u32..);
    kept.clear();
    kept.extend(weights.filter(|&(weight, _)| weight >= floor));
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, heavier);
        kept.truncate(top_k);
        kept.sort_unstable_by(heavier);
        total = mass(kept);
    }
    if top_p < 1.0 {
        keep_nucleus(kept, top_p * total);
    }
    let mut left = uniform(ask.seed, ask.place) * mass(kept);
    for &(weight, id) in kept.iter() {
        left -= f64::from(weight);
        if left < 0.0 {
            return Ok(id);
        }
    }
    // Rounding can leave a crumb: it belongs to the last one.
    kept.last().map(|&(_, id)| id).ok_or(NotANumber)
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

/// A number in `[0, 1)` for one place of one seed, a multiple of 2^-53: SplitMix64's finisher over both, so that no state
/// is carried along.
pub fn uniform(seed: u64, place: u64) -> f64 {
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
    use std::collections::HashSet;

    use super::*;
    use crate::testing::Random;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn warm() -> Ask<'static> {
        Ask { temperature: 1.0, ..Ask::greedy() }
    }

    fn next(ask: Ask) -> u32 {
        one(&mut LOGITS.clone(), &ask, &mut Vec::new()).unwrap()
    }

    /// How often each token comes over many seeds.
    fn shares(ask: Ask) -> Vec<f64> {
        const SEEDS: u64 = 20_000;
        let mut counts = vec![0.0; LOGITS.len()];
        for seed in 0..SEEDS {
            counts[next(Ask { seed, ..ask }) as usize] += 1.0 / SEEDS as f64;
        }
        counts
    }

    #[test]
    fn temperature_zero_takes_the_greatest() {
        assert_eq!(next(Ask::greedy()), 1);
        assert_eq!(next(Ask { banned: &[1, 99], ..Ask::greedy() }), 2);
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
        assert_eq!(only(shares(Ask { top_k: 1, ..warm() })), [1]);
        assert_eq!(only(shares(Ask { top_k: 3, ..warm() })), [0, 1, 2]);
        assert_eq!(only(shares(Ask { top_p: 0.6, ..warm() })), [1]);
        assert_eq!(only(shares(Ask { top_p: 0.8, ..warm() })), [1, 2]);
        assert_eq!(only(shares(Ask { top_k: 2, top_p: 0.99, ..warm() })), [1, 2]);
    }

    #[test]
    fn top_p_zero_leaves_the_heaviest_token() {
        assert!((0..200).all(|seed| next(Ask { top_p: 0.0, seed, ..warm() }) == 1));
        assert!((0..200).all(|seed| next(Ask { top_p: 0.0, top_k: 4, temperature: 5.0, seed, ..warm() }) == 1));
    }

    #[test]
    fn top_k_over_the_vocabulary_cuts_nobody() {
        for seed in 0..500 {
            let hot = Ask { temperature: 3.0, seed, ..warm() };
            assert_eq!(next(Ask { top_k: LOGITS.len(), ..hot }), next(hot));
            assert_eq!(next(Ask { top_k: usize::MAX, ..hot }), next(hot));
        }
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
            let drawn = (0..4000)
                .map(|seed| one(&mut logits.clone(), &Ask { top_p, seed, ..warm() }, &mut Vec::new()).unwrap());
            let drawn: HashSet<u32> = drawn.collect();
            assert!(drawn.is_subset(&nucleus), "{top_p}");
            let lightest = sorted[nucleus.len() / 2].1;
            assert!(nucleus.contains(&lightest) && drawn.len() > nucleus.len() / 8, "{top_p}: {}", drawn.len());
        }
    }

    #[test]
    fn penalties_fall_on_what_was_seen_and_generated() {
        let seen = [(1, 1), (2, 0)];
        let greedy = Ask { seen: &seen, ..Ask::greedy() };
        assert_eq!(next(Ask { presence_penalty: 1.5, ..greedy }), 2);
        assert_eq!(next(Ask { frequency_penalty: 0.75, ..greedy }), 1);
        assert_eq!(next(Ask { frequency_penalty: 0.75, seen: &[(1, 2)], ..greedy }), 2);
        // 3 / 4 and 2 / 4 against 1: the prompt alone is enough for this one.
        assert_eq!(next(Ask { repetition_penalty: 4.0, ..greedy }), 0);
        assert_eq!(next(Ask { repetition_penalty: 4.0, seen: &[(1, 0), (99, 3)], ..greedy }), 2);
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
    fn a_row_of_a_batch_is_what_it_is_alone_and_a_broken_one_breaks_alone() {
        const VOCABULARY: usize = 700;
        let mut random = Random::fresh();
        let mut logits: Vec<f32> = random.normal(12 * VOCABULARY).iter().map(|v| 3.0 * v).collect();
        logits[5 * VOCABULARY + 300] = f32::NAN;
        logits[9 * VOCABULARY..][..VOCABULARY].fill(f32::NEG_INFINITY);
        let seen: Vec<(u32, u32)> = (0..50).map(|id| (id * 13, id % 3)).collect();
        let asks: Vec<Ask> = (0..12u64)
            .map(|row| Ask {
                temperature: [0.0, 0.7, 1.9][row as usize % 3],
                top_k: [0, 40][row as usize % 2],
                top_p: [1.0, 0.95, 0.3, 0.999][row as usize % 4],
                repetition_penalty: [1.0, 1.2][row as usize / 3 % 2],
                frequency_penalty: [0.0, 0.4][row as usize / 4 % 2],
                seed: row * row,
                place: 100 - row,
                seen: &seen,
                ..Ask::greedy()
            })
            .collect();
        let alone: Vec<_> = logits
            .chunks(VOCABULARY)
            .zip(&asks)
            .map(|(logits, ask)| one(&mut logits.to_vec(), ask, &mut Vec::new()))
            .collect();
        for threads in [1, 3] {
            let mut chosen = vec![Ok(0); asks.len()];
            sample(&mut logits.clone(), VOCABULARY, &asks, &mut chosen, &Pool::new(threads));
            assert_eq!(chosen, alone, "{threads} threads, seed {}", random.seed);
        }
        let broken: Vec<usize> = (0..12).filter(|row| alone[*row].is_err()).collect();
        assert_eq!(broken, [5, 9], "seed {}", random.seed);
    }
}
