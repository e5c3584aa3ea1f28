//! Who shares a step with whom changes nothing in what anybody says.

use std::sync::Arc;

use ::prediction::{Event, Id, Loaded};
use candle_core::Device;
use kernels::Pool;
use serde_json::{Value, json};

use super::super::net::{Cache, Net};
use super::super::rows::Rows;
use super::super::weights::Opened;
use super::{alone, golden, job, of, pieces, steps, tiny};

const WEIGHTS: [&str; 4] = ["tiny-llama3", "tiny-tied", "tiny-sharded-bf16", "tiny-q.gguf"];

/// Prompts short and long, greedy and with seeds, with penalties and without.
fn inputs() -> Vec<Value> {
    vec![
        json!({"prompt": "The lamp of the outer light", "temperature": 0, "max_tokens": 24}),
        json!({"prompt": "Who rang the pilot station twice? ".repeat(4), "seed": 3, "temperature": 1.5, "max_tokens": 20}),
        json!({"prompt": "x", "seed": 4, "temperature": 0.9, "top_k": 20, "frequency_penalty": 0.5, "max_tokens": 31}),
        json!({"prompt": "nine people aboard", "temperature": 0, "repetition_penalty": 1.3, "max_tokens": 9}),
    ]
}

#[test]
fn together_they_say_what_each_says_alone() {
    for weights in WEIGHTS {
        let mut pipeline = tiny(weights);
        let texts: Vec<_> = inputs().into_iter().map(|input| pieces(&alone(&mut pipeline, input))).collect();
        assert!(texts.iter().all(|text| text.len() > 3), "{weights}: {texts:?}");
        // Each joins while the others are at work, in this order and in the other.
        for order in [[0, 1, 2, 3], [3, 2, 1, 0]] {
            let mut events = Vec::new();
            for index in order {
                pipeline.admit(job(&index.to_string(), inputs()[index].clone())).unwrap();
                events.extend(steps(&mut pipeline, 2));
            }
            events.extend(steps(&mut pipeline, 1000));
            for (index, text) in texts.iter().enumerate() {
                assert_eq!(
                    &pieces(of(&index.to_string(), &events)),
                    text,
                    "{weights}: prediction {index} of {order:?}"
                );
            }
        }
    }
}

#[test]
fn a_prediction_that_is_cancelled_leaves_no_trace() {
    let mut pipeline = tiny("tiny-llama3");
    let text = pieces(&alone(&mut pipeline, inputs()[0].clone()));
    for id in ["a", "b", "c", "d"] {
        pipeline.admit(job(id, inputs()[1].clone())).unwrap();
    }
    steps(&mut pipeline, 3);
    for id in ["a", "c", "nobody"] {
        pipeline.cancel(&Id::from(id));
    }
    assert_eq!(pipeline.active(), 2);
    pipeline.admit(job("e", inputs()[0].clone())).unwrap();
    let events = steps(&mut pipeline, 1000);
    assert_eq!(pieces(of("e", &events)), text);
    assert!(of("a", &events).is_empty() && of("c", &events).is_empty());
}

#[test]
fn a_seed_repeats_and_another_one_differs() {
    let mut pipeline = tiny("tiny-tied");
    let mut say = |seed: i64| {
        pieces(&alone(&mut pipeline, json!({"prompt": "Hi", "temperature": 2, "seed": seed, "max_tokens": 16})))
    };
    assert_eq!(say(5), say(5));
    assert_ne!(say(5), say(6));
    assert_eq!(say(0), say(11), "0 means the job's seed");
}

#[test]
fn a_long_prompt_does_not_silence_the_others() {
    const TOKENS: usize = 40;
    let mut pipeline = tiny("tiny-llama3");
    pipeline.seconds_per_row = Some(f64::INFINITY); // The slowest device: prompts are read in the smallest parts.
    let speaker = json!({"prompt": "x", "temperature": 0, "min_tokens": TOKENS, "max_tokens": TOKENS});
    pipeline.admit(job("speaker", speaker)).unwrap();
    while steps(&mut pipeline, 1).iter().all(|(_, event)| !matches!(event, Event::Output(_))) {}
    pipeline.admit(job("reader", json!({"prompt": "salted cod ".repeat(12), "max_tokens": 1}))).unwrap();
    let ended = |events: &[(String, Event)], who: &str| {
        events.iter().any(|(id, event)| id == who && matches!(event, Event::Ended(_)))
    };
    let (mut read, mut spoken) = (None, 0);
    loop {
        let events = steps(&mut pipeline, 1);
        spoken += 1;
        if ended(&events, "reader") {
            read = Some(spoken);
        }
        if ended(&events, "speaker") {
            break;
        }
    }
    assert!(read.is_some_and(|steps| steps > 2), "the prompt went through in {read:?} steps");
    assert!(spoken < TOKENS, "{spoken} steps for the {TOKENS} tokens less those spoken before");
}

/// The bits of the last logits of `prompts`, each in the block named, all in one forward.
fn logits(net: &Net, prompts: &[(u32, &[u32])]) -> Vec<Vec<u32>> {
    let mut cache = Cache::new(net, 4, 64, candle_core::DType::F16).unwrap();
    let mut rows = Rows::default();
    for &(block, tokens) in prompts {
        rows.push(&[block], 0, tokens);
        rows.want_last(u64::from(block));
    }
    let logits = net.forward(&rows, &mut cache).unwrap().unwrap().to_vec2::<f32>().unwrap();
    logits.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

#[test]
fn logits_are_bit_equal_in_any_company_and_on_any_number_of_threads() {
    for weights in WEIGHTS {
        let opened = Opened::open(&golden(weights)).unwrap();
        let nets = [1, 2, 3].map(|threads| opened.net(&Device::Cpu, &Arc::new(Pool::new(threads)), None).unwrap());
        let prompt: Vec<u32> = (10..43).collect();
        let want = logits(&nets[0], &[(0, &prompt)]);
        for net in &nets {
            assert_eq!(logits(net, &[(3, &prompt)]), want, "{weights}: another block, {} threads", net.pool.threads());
            let company = logits(net, &[(1, &[7, 8, 9]), (0, &prompt), (2, &[300]), (3, &prompt[..20])]);
            assert_eq!(company[1], want[0], "{weights}: in company, {} threads", net.pool.threads());
        }
    }
}
