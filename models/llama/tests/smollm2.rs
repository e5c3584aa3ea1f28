//! SmolLM2-135M-Instruct, the real file, from the cache (the test command fetches it first): see `crate::real`.

use std::path::PathBuf;

use ::prediction::{LoadSpec, Loaded};
use candle_core::Device;
use serde_json::{Value, json};

use super::super::golden::{self, Golden, QUANTISED_TOLERANCE};
use super::super::weights::Opened;
use super::{alone, golden as file, job, load, of, pieces, spec, steps};

fn weights() -> Option<PathBuf> {
    crate::real::weights(&super::super::ENTRY, "smollm2")
}

#[test]
fn texts_have_the_tokens_that_the_reference_gives_them() {
    let Some(path) = weights() else { return };
    let (tokenizer, _) = Opened::open(&path).unwrap().tokenizer().unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(file("smollm2_tokens.json")).unwrap()).unwrap();
    assert!(cases.len() > 8);
    for case in cases {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), ids, "{case}");
    }
}

#[test]
fn it_says_what_transformers_says() {
    let Some(path) = weights() else { return };
    let opened = Opened::open(&path).unwrap();
    for name in ["smollm2_capital.safetensors", "smollm2_long.safetensors"] {
        let errors = golden::errors(&opened, &Golden::read(&file(name)).unwrap(), &Device::Cpu, None, 256).unwrap();
        println!("{name}: {errors:?}");
        assert_eq!(errors.prompt_ids, Some(0.0), "{name}");
        assert!(errors.last_logits <= QUANTISED_TOLERANCE, "{name}: {errors:?}");
    }
}

#[test]
fn it_knows_the_capital_of_france() {
    let Some(path) = weights() else { return };
    let numbers = Golden::read(&file("smollm2_capital.safetensors")).unwrap();
    let errors = golden::errors(&Opened::open(&path).unwrap(), &numbers, &Device::Cpu, None, 256).unwrap();
    assert_eq!(errors.greedy_ids, 0.0);
    let mut pipeline = load(&spec(&path)).unwrap();
    let question = json!({"prompt": "What is the capital of France?", "temperature": 0});
    assert_eq!(pieces(&alone(&mut pipeline, question)).concat(), "The capital of France is Paris.");
}

#[test]
fn four_together_say_what_each_says_alone() {
    let Some(path) = weights() else { return };
    let mut pipeline = load(&LoadSpec { context_tokens: Some(512), ..spec(&path) }).unwrap();
    let inputs = [
        json!({"prompt": "What is the capital of France?", "temperature": 0, "max_tokens": 24}),
        json!({"prompt": "Write a line about the sea.", "seed": 1, "max_tokens": 24}),
        json!({"prompt": "Count to ten. ".repeat(20), "seed": 2, "temperature": 1.2, "max_tokens": 24}),
        json!({"prompt": "Why is the sky blue?", "temperature": 0, "max_tokens": 24}),
    ];
    let texts: Vec<_> = inputs.iter().map(|input| pieces(&alone(&mut pipeline, input.clone()))).collect();
    let mut events = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        pipeline.admit(job(&index.to_string(), input.clone())).unwrap();
        events.extend(steps(&mut pipeline, 2));
    }
    events.extend(steps(&mut pipeline, 1000));
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(&pieces(of(&index.to_string(), &events)), text, "prediction {index}");
    }
}
