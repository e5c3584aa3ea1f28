//! The choice of tokens, against the rules said plainly: sort everything, sum in f64.

use std::collections::BTreeMap;

use super::*;
use crate::cuda::params::Ask;
use crate::cuda::rows::{self, Choice, IN_PROMPT};
use crate::math::exp;

const NOBODY: u32 = u32::MAX;

/// What SplitMix64's finisher makes of a seed and a place.
fn uniform(seed: u64, place: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let mixed = mix(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ place.wrapping_mul(0xD1B5_4A32_D192_ED03));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

/// The rules of `sample.rs`, step by step.
fn expected(logits: &[f32], ask: &Ask, seen: &BTreeMap<u32, u32>, bans: &[u32]) -> u32 {
    let mut l = logits.to_vec();
    for &ban in bans {
        if let Some(l) = l.get_mut(ban as usize) {
            *l = f32::NEG_INFINITY;
        }
    }
    for (&id, &count) in seen {
        let (l, times) = (&mut l[id as usize], count & !IN_PROMPT);
        if ask.repetition != 1.0 {
            *l = if *l > 0.0 { *l / ask.repetition } else { *l * ask.repetition };
        }
        if times > 0 {
            *l -= ask.presence + ask.frequency * times as f32;
        }
    }
    let max = l.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if l.iter().any(|v| v.is_nan()) || !max.is_finite() {
        return NOBODY;
    }
    if ask.by == 0.0 {
        return l.iter().position(|v| *v == max).unwrap() as u32;
    }
    let mut kept: Vec<(f32, u32)> =
        l.iter().map(|v| exp((v - max) * ask.by)).zip(0..).filter(|(w, _)| *w > 0.0).collect();
    let mass = |kept: &[(f32, u32)]| kept.iter().map(|(w, _)| f64::from(*w)).sum::<f64>();
    let heavier = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if ask.top_k > 0 && (ask.top_k as usize) < kept.len() {
        kept.sort_by(heavier);
        kept.truncate(ask.top_k as usize);
    }
    if ask.top_p < 1.0 {
        kept.sort_by(heavier);
        let (goal, mut sum) = (ask.top_p * mass(&kept), 0.0);
        let size = kept.iter().position(|(w, _)| {
            sum += f64::from(*w);
            sum >= goal
        });
        kept.truncate(size.map_or(kept.len(), |last| last + 1));
    }
    let mut left = uniform(ask.seed, ask.place) * mass(&kept);
    let drawn = kept.iter().find(|(w, _)| {
        left -= f64::from(*w);
        left < 0.0
    });
    drawn.or(kept.last()).unwrap().1
}

struct Row {
    logits: Vec<f32>,
    ask: Ask,
    seen: BTreeMap<u32, u32>,
    bans: Vec<u32>,
}

impl Row {
    fn of(logits: Vec<f32>, ask: Ask) -> Row {
        Row { logits, ask, seen: BTreeMap::new(), bans: Vec::new() }
    }

    fn expected(&self) -> u32 {
        expected(&self.logits, &self.ask, &self.seen, &self.bans)
    }
}

/// Chooses for all rows at once; checks that the counts grew by the choices alone.
fn run(machine: &dyn Machine, random: &mut Random, batch: &mut [Row]) -> Vec<u32> {
    let vocabulary = batch[0].logits.len();
    let (mut logits, mut counts, mut bans, mut asks) =
        (Vec::<f32>::new(), Vec::<u32>::new(), Vec::<u32>::new(), Vec::new());
    for row in batch.iter_mut() {
        logits.extend(&row.logits);
        (row.ask.first_ban, row.ask.ban_count) = (bans.len() as u32, row.bans.len() as u32);
        bans.extend(&row.bans);
        row.ask.counts = -1;
        if !row.seen.is_empty() {
            row.ask.counts = (counts.len() / vocabulary) as i32;
            counts.extend((0..vocabulary as u32).map(|id| row.seen.get(&id).copied().unwrap_or(0)));
        }
        asks.push(row.ask);
    }
    let (logits, asks, bans, counters) = (
        Buffer::of(machine, &logits),
        Buffer::of(machine, &asks),
        Buffer::of(machine, &bans),
        Buffer::of(machine, &counts),
    );
    let chosen = Buffer::of(machine, &vec![77u32; batch.len()]);
    let choice = Choice {
        logits: logits.ptr(),
        asks: asks.ptr(),
        counts: counters.ptr(),
        bans: bans.ptr(),
        chosen: chosen.ptr(),
    };
    machine.run(&rows::choose(&choice, batch.len(), vocabulary), random.below(1 << 30) as u64);
    let chosen = chosen.read::<u32>();
    for (row, token) in batch.iter().zip(&chosen) {
        if row.ask.counts >= 0 && *token != NOBODY {
            counts[row.ask.counts as usize * vocabulary + *token as usize] += 1;
        }
    }
    assert_eq!(counters.read::<u32>(), counts);
    chosen
}

/// Logits of several characters: peaked, flat, with ties, with a few ruled out.
fn logits(random: &mut Random, vocabulary: usize) -> Vec<f32> {
    let spread = [0.1, 1.0, 4.0, 20.0][random.below(4)];
    let mut logits: Vec<f32> = random.normal(vocabulary).iter().map(|v| v * spread).collect();
    if random.below(3) == 0 {
        logits.iter_mut().for_each(|v| *v = v.round());
    }
    for _ in 0..random.below(20) {
        let at = random.below(vocabulary);
        logits[at] = f32::NEG_INFINITY;
    }
    logits
}

pub fn every_setting_chooses_what_the_rules_say(bench: &mut Bench) {
    let Bench { machine, random } = bench;
    let mut different = 0;
    for vocabulary in [1, 5, 1000, 1024, 2500, 5003] {
        for _ in 0..6 {
            let mut batch: Vec<Row> = (0..8)
                .map(|_| {
                    let temperature = [0.0, 0.2, 0.7, 1.0, 2.0][random.below(5)];
                    let ask = Ask {
                        seed: random.below(usize::MAX) as u64,
                        place: random.below(4000) as u64,
                        top_p: [1.0, 1.0, 0.95, 0.5, 0.0, 0.9999][random.below(6)],
                        by: if temperature == 0.0 { 0.0 } else { 1.0 / temperature },
                        top_k: [0, 0, 1, 50, 1024, 1030, 1 << 30][random.below(7)],
                        ..Ask::GREEDY
                    };
                    let mut row = Row::of(logits(random, vocabulary), ask);
                    if random.below(2) == 0 {
                        for _ in 0..40 {
                            let in_prompt = if random.below(2) == 0 { IN_PROMPT } else { 0 };
                            let times = random.below(4) as u32;
                            if in_prompt + times > 0 {
                                row.seen.insert(random.below(vocabulary) as u32, in_prompt + times);
                            }
                        }
                        row.ask.presence = [0.0, 0.3][random.below(2)];
                        row.ask.frequency = [0.0, 0.7][random.below(2)];
                        row.ask.repetition = [1.0, 1.3][random.below(2)];
                    }
                    let bans = if vocabulary > 100 { random.below(4) } else { 0 };
                    row.bans = (0..bans).map(|_| random.below(vocabulary + 9) as u32).collect();
                    row
                })
                .collect();
            let chosen = run(*machine, random, &mut batch);
            for (row, token) in batch.iter().zip(chosen) {
                different += u32::from(token != 0);
                assert_eq!(token, row.expected(), "{:?} of {vocabulary}, seed {}", row.ask, random.seed);
            }
        }
    }
    assert!(different > 100, "the rows chose more than the first token: {different}");
}

pub fn a_flat_row_has_more_candidates_than_there_is_room_for(bench: &mut Bench) {
    let Bench { machine, random } = bench;
    let flat = |ask: Ask| Row::of(vec![1.5; 6000], ask);
    let warm = Ask { by: 1.0, top_p: 0.9, seed: random.below(1 << 40) as u64, ..Ask::GREEDY };
    let mut batch = vec![flat(warm), flat(Ask { top_k: 3000, ..warm }), flat(Ask { top_p: 1.0, ..warm })];
    let chosen = run(*machine, random, &mut batch);
    let expected: Vec<u32> = batch.iter().map(Row::expected).collect();
    assert_eq!(chosen, expected, "seed {}", random.seed);
}

pub fn broken_logits_are_told_and_the_others_go_on(bench: &mut Bench) {
    let Bench { machine, random } = bench;
    let vocabulary = 1500;
    let mut rows: Vec<Row> = (0..6)
        .map(|i| Row::of(random.normal(vocabulary), Ask { by: if i % 2 == 0 { 0.0 } else { 1.0 }, ..Ask::GREEDY }))
        .collect();
    for i in [0, 1] {
        let at = random.below(vocabulary);
        rows[i].logits[at] = f32::NAN;
    }
    rows[2].logits.fill(f32::NEG_INFINITY);
    rows[3].logits[700] = f32::INFINITY;
    let chosen = run(*machine, random, &mut rows);
    assert_eq!(chosen[..4], [NOBODY; 4], "seed {}", random.seed);
    assert_eq!(chosen[4..], [rows[4].expected(), rows[5].expected()], "seed {}", random.seed);
}

pub fn a_row_that_is_not_in_use_keeps_what_it_had(bench: &mut Bench) {
    let Bench { machine, random } = bench;
    let mut rows =
        [Row::of(vec![f32::NAN; 40], Ask { by: -1.0, ..Ask::GREEDY }), Row::of(random.normal(40), Ask::GREEDY)];
    assert_eq!(run(*machine, random, &mut rows), [77, rows[1].expected()]);
}
