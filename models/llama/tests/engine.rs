//! The whole engine on tiny weights: the same logits to the bit however a sequence was run, and what happens when blocks
//! or numbers give out.

use std::sync::Arc;

use ::prediction::{Event, Id, Loaded, Outcome, PredictError};
use candle_core::Device;
use kernels::{Pool, op};
use serde_json::{Value, json};

use super::super::blocks::Blocks;
use super::super::net::{Cache, Net};
use super::super::pipeline::Pipeline;
use super::super::rows::Rows;
use super::super::sampler::{Sampler, Settings};
use super::super::schedule::{Past, Schedule, Turn};
use super::super::weights::Opened;
use super::{alone, golden, job, of, pieces, spec, steps, tiny};

/// A sequence, and everything it was told: the bits of its logits, token by token.
struct Listener {
    name: usize,
    sampler: Sampler,
    tokens: usize,
    heard: Vec<(Vec<u32>, u32)>,
}

type Heard = Vec<(Vec<(Vec<u32>, u32)>, Past)>;

struct Engine<'a> {
    net: &'a Net,
    cache: Cache,
    schedule: Schedule<Listener>,
}

impl Engine<'_> {
    fn new(net: &Net, blocks: usize, most_idle: usize) -> Engine<'_> {
        let cache = Cache::new(net, blocks, 256, candle_core::DType::F16).unwrap();
        Engine { net, cache, schedule: Schedule::new(Blocks::new(blocks, most_idle)) }
    }

    /// Everything that these prompts hear, run together.
    fn run(&mut self, prompts: &[(Vec<u32>, Settings)], tokens: usize, budget: usize) -> Heard {
        for (name, (prompt, settings)) in prompts.iter().enumerate() {
            let sampler = Sampler::new(settings.clone(), prompt);
            self.schedule.admit(Listener { name, sampler, tokens, heard: Vec::new() }, prompt.clone()).unwrap();
        }
        let mut heard = vec![Default::default(); prompts.len()];
        let mut rows = Rows::default();
        while !self.schedule.is_empty() {
            self.schedule.plan(budget, &mut rows);
            let Some(logits) = self.net.forward(&rows, &mut self.cache).unwrap() else {
                self.schedule.ran(|listener, _, _| unreachable!("nobody wants logits, but {} does", listener.name));
                continue;
            };
            let bits = logits.to_vec2::<f32>().unwrap();
            let asks: Vec<_> = self.schedule.wanted().map(|listener| listener.sampler.ask(&[], 0)).collect();
            let chosen = op::sample(&logits, &asks, &self.net.pool).unwrap();
            let mut turns = bits.into_iter().zip(chosen);
            self.schedule.ran(|listener, past, _| {
                let (bits, chosen) = turns.next().unwrap();
                let token = chosen.unwrap();
                listener.sampler.took(token);
                listener.heard.push((bits.into_iter().map(f32::to_bits).collect(), token));
                if listener.heard.len() < listener.tokens {
                    return Turn::Said(token);
                }
                heard[listener.name] = (std::mem::take(&mut listener.heard), past);
                Turn::Ended
            });
        }
        heard
    }
}

/// Sixteen, half of them with a beginning in common; greedy, and with seeds and penalties.
fn sixteen() -> Vec<(Vec<u32>, Settings)> {
    let settings = |n: usize| match n % 3 {
        0 => Settings::greedy(),
        1 => Settings { temperature: 1.3, top_p: 0.9, seed: n as u64, ..Settings::greedy() },
        _ => Settings { temperature: 0.8, top_k: 30, repetition_penalty: 1.2, seed: n as u64, ..Settings::greedy() },
    };
    let prompt = |n: u32| -> Vec<u32> {
        let own = (0..1 + 11 * n % 97).map(|i| 3 + (i * i + 31 * n) % 500);
        if n.is_multiple_of(2) { (0..66).map(|i| 5 + i).chain(own).collect() } else { own.collect() }
    };
    (0..16).map(|n| (prompt(n as u32), settings(n))).collect()
}

#[test]
fn logits_are_bit_equal_alone_in_a_batch_with_known_beginnings_and_after_preemption() {
    const TOKENS: usize = 90;
    for weights in ["tiny-llama3", "tiny-tied", "tiny-q.gguf"] {
        let opened = Opened::open(&golden(weights)).unwrap();
        let net = opened.net(&Device::Cpu, &Arc::new(Pool::new(2)), None).unwrap();
        let asked = sixteen();
        let alone: Heard = asked
            .iter()
            .map(|one| Engine::new(&net, 4, 0).run(std::slice::from_ref(one), TOKENS, 512).remove(0))
            .collect();
        assert!(alone.iter().all(|(heard, _)| heard.len() == TOKENS));
        let same = |heard: &Heard, how: &str| {
            for (name, (heard, alone)) in heard.iter().zip(&alone).enumerate() {
                assert_eq!(heard.0.len(), TOKENS, "{weights}, {how}: prediction {name}");
                let differs = heard.0.iter().zip(&alone.0).position(|(heard, alone)| heard != alone);
                assert_eq!(differs, None, "{weights}, {how}: the token at which prediction {name} differs");
            }
        };
        let found = |heard: &Heard| heard.iter().map(|(_, past)| past.found).sum::<usize>();
        let preempted = |heard: &Heard| heard.iter().filter(|(_, past)| past.preempted > 0).count();

        let batch = Engine::new(&net, 64, 0).run(&asked, TOKENS, 4000);
        assert_eq!((found(&batch), preempted(&batch)), (0, 0));
        same(&batch, "a batch of 16");
        for budget in [1, 7, 64] {
            same(&Engine::new(&net, 64, 0).run(&asked, TOKENS, budget), "prompts in parts");
        }
        let mut engine = Engine::new(&net, 64, 64);
        same(&engine.run(&asked, TOKENS, 100), "beginnings read by others");
        let again = engine.run(&asked, TOKENS, 100);
        assert!(found(&again) > found(&batch) + 8 * 64, "{} positions were known", found(&again));
        same(&again, "known beginnings");
        for (blocks, idle) in [(5, 0), (7, 3), (9, 9)] {
            let heard = Engine::new(&net, blocks, idle).run(&asked, TOKENS, 24);
            assert!(preempted(&heard) > 0, "{blocks} blocks were enough");
            same(&heard, "preemption");
        }
    }
}

fn small(weights: &str, blocks: usize) -> Pipeline {
    Pipeline::with_cache(&spec(&golden(weights)), Some(blocks), None, &mut |_| ()).unwrap()
}

/// How often a prediction gave up its blocks, as its log has it.
pub fn stops(events: &[&Event]) -> usize {
    let told = events.iter().find_map(|event| match event {
        Event::Log(text) => text.split("stopped ").nth(1)?.split(' ').next()?.parse().ok(),
        _ => None,
    });
    told.expect("asked to log it")
}

#[test]
fn with_too_few_blocks_for_all_everybody_says_what_it_says_alone() {
    let input = |n: usize| {
        let prompt = "the tide gauge ".repeat(1 + 2 * n);
        json!({"prompt": prompt, "seed": n + 1, "temperature": 0.5 * n as f64, "max_tokens": 70,
            "min_tokens": 70, "log_performance_metrics": true})
    };
    let mut roomy = tiny("tiny-llama3");
    let texts: Vec<_> = (0..4).map(|n| pieces(&alone(&mut roomy, input(n)))).collect();
    let mut pipeline = small("tiny-llama3", 5);
    for n in 0..4 {
        pipeline.admit(job(&n.to_string(), input(n))).unwrap();
    }
    let events = steps(&mut pipeline, 5000);
    let each: Vec<_> = (0..4).map(|n| of(&n.to_string(), &events)).collect();
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(&pieces(each[n].iter().copied()), text, "prediction {n}");
        let starts = each[n].iter().filter(|event| matches!(event, Event::Started)).count();
        assert_eq!(starts, 1, "prediction {n}");
    }
    let stopped: Vec<_> = each.iter().map(|events| stops(events)).collect();
    assert!(stopped[0] == 0 && stopped.iter().sum::<usize>() > 0, "{stopped:?}");
}

#[test]
fn a_prompt_that_needs_more_blocks_than_there_are_is_refused_with_both_numbers() {
    let mut pipeline = small("tiny-tied", 2);
    let input = json!({"prompt": "the ".repeat(150)});
    let PredictError::FixInput(why) = pipeline.admit(job("long", input)).unwrap_err() else { panic!("whose error?") };
    assert!(why.contains("need 3 blocks of 64 in the cache, which has 2 (E1002)"), "{why}");
    assert_eq!(pipeline.active(), 0);
}

#[test]
fn the_text_ends_where_the_cache_is_full_for_one_alone() {
    let mut pipeline = small("tiny-llama3", 1);
    let events = alone(&mut pipeline, json!({"prompt": "Hi", "temperature": 0, "min_tokens": 200, "max_tokens": 200}));
    let count = |name| super::metric(&events, name).as_u64().unwrap();
    assert_eq!(count("input_token_count") + count("output_token_count"), 64);
    assert_eq!(events.last(), Some(&Event::Ended(Outcome::Succeeded)));
}

#[test]
fn one_cancelled_in_the_middle_of_a_batch_changes_nobody() {
    let input =
        |n: usize| json!({"prompt": format!("buoy number {n} ").repeat(4 * n + 1), "seed": n + 1, "max_tokens": 30});
    let mut roomy = tiny("tiny-tied");
    let texts: Vec<_> = (0..4).map(|n| pieces(&alone(&mut roomy, input(n)))).collect();
    for cancelled in 0..4 {
        for after in [1, 4, 12] {
            let mut pipeline = small("tiny-tied", 8);
            pipeline.seconds_per_row = Some(f64::INFINITY); // The slowest device: prompts are read in the smallest parts.
            (0..4).for_each(|n| pipeline.admit(job(&n.to_string(), input(n))).unwrap());
            let mut events = steps(&mut pipeline, after);
            pipeline.cancel(&Id::from(cancelled.to_string().as_str()));
            events.extend(steps(&mut pipeline, 5000));
            for n in (0..4).filter(|n| *n != cancelled) {
                let said = pieces(of(&n.to_string(), &events));
                assert_eq!(said, texts[n], "prediction {n} with {cancelled} cancelled after {after} steps");
            }
        }
    }
}

/// tiny-llama3 with one token whose embedding is no number.
fn poisoned(token: u32) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("tiny-llama3")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if path.ends_with("model.safetensors") {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
            let embed = &header["model.embed_tokens.weight"];
            assert_eq!(embed["dtype"], "F32");
            let width = 4 * embed["shape"][1].as_u64().unwrap() as usize;
            let at = 8 + length + embed["data_offsets"][0].as_u64().unwrap() as usize + token as usize * width;
            bytes[at..at + width].chunks_exact_mut(4).for_each(|v| v.copy_from_slice(&f32::NAN.to_le_bytes()));
        }
        std::fs::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    copy
}

#[test]
fn a_prediction_without_numbers_fails_and_the_others_go_on() {
    let good = |n: usize| json!({"prompt": "Hi ".repeat(n), "temperature": 0, "max_tokens": 12});
    let bad = json!({"prompt": "Hi Hi~", "temperature": 0, "max_tokens": 12});
    let mut sound = tiny("tiny-llama3");
    let texts: Vec<_> = (1..4).map(|n| pieces(&alone(&mut sound, good(n)))).collect();
    let read = |input: &Value| {
        let input = input.as_object().unwrap().clone();
        let asked = super::super::input::Asked::read(input, &Default::default(), 1).unwrap();
        sound.prompt(&asked).unwrap()
    };
    let (bad_ids, good_ids) = (read(&bad), read(&good(3)));
    let token = *bad_ids.iter().find(|id| !good_ids.contains(id)).expect("a token of its own");
    let folder = poisoned(token);
    let mut pipeline = super::load(&spec(folder.path())).unwrap();
    pipeline.admit(job("1", good(1))).unwrap();
    pipeline.admit(job("2", good(2))).unwrap();
    let mut events = steps(&mut pipeline, 3);
    pipeline.admit(job("bad", bad)).unwrap();
    pipeline.admit(job("3", good(3))).unwrap();
    events.extend(steps(&mut pipeline, 1000));
    let Some(Event::Ended(Outcome::Failed { error })) = of("bad", &events).last().copied() else {
        panic!("{events:?}")
    };
    assert_eq!(error, "The model computed no number for token 1 (NaN or infinity)");
    for (n, text) in (1..4).zip(&texts) {
        assert_eq!(&pieces(of(&n.to_string(), &events)), text, "prediction {n}");
        assert_eq!(of(&n.to_string(), &events).last(), Some(&&Event::Ended(Outcome::Succeeded)));
    }
    assert_eq!(pipeline.active(), 0);
}

#[test]
fn a_stop_string_is_found_across_the_border_of_blocks() {
    let mut pipeline = small("tiny-llama3", 4);
    let mut across = 0;
    for pad in 0..20 {
        let input = |stop: &str| {
            json!({"prompt": format!("{}{}", "salt ".repeat(8), "x".repeat(pad)), "temperature": 0, "max_tokens": 60,
                "min_tokens": 60, "stop_sequences": stop})
        };
        let events = alone(&mut pipeline, input(""));
        let read = super::metric(&events, "input_token_count").as_u64().unwrap() as usize;
        let said = pieces(&events);
        // The tokens on both sides of the border, as far as each shows as a piece of its own.
        let Some(border) = 64usize.checked_sub(read).filter(|border| (2..56).contains(border)) else { continue };
        let (whole, Some(sides)) = (said.concat(), said.get(border - 1..border + 1)) else { continue };
        let stop = sides.concat();
        if stop.is_empty() || stop.contains([',', '\u{fffd}']) || stop.trim().is_empty() {
            continue;
        }
        let stopped = pieces(&alone(&mut pipeline, input(&stop))).concat();
        assert_eq!(stopped, whole[..whole.find(&stop).unwrap()], "{stop:?} at token {border}");
        across += 1;
    }
    assert!(across > 2, "{across} stop strings stood across a border");
}

#[test]
fn two_hundred_at_once_all_end_and_start_in_the_order_they_came() {
    let mut pipeline = small("tiny-tied", 6);
    let (mut waiting, mut events) = ((0..200).rev().collect::<Vec<usize>>(), Vec::new());
    while !waiting.is_empty() || pipeline.active() > 0 {
        while pipeline.active() < pipeline.capacity()
            && let Some(n) = waiting.pop()
        {
            let input = json!({"prompt": "wave ".repeat(1 + n % 30), "seed": n + 1, "max_tokens": 1 + n % 9});
            pipeline.admit(job(&n.to_string(), input)).unwrap();
        }
        events.extend(steps(&mut pipeline, 1));
    }
    let named = |wanted: fn(&Event) -> bool| -> Vec<usize> {
        events.iter().filter(|(_, event)| wanted(event)).map(|(name, _)| name.parse().unwrap()).collect()
    };
    assert_eq!(named(|event| *event == Event::Started), (0..200).collect::<Vec<_>>());
    assert_eq!(named(|event| *event == Event::Ended(Outcome::Succeeded)).len(), 200);
}
