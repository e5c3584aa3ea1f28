//! Tiny seeded weights against transformers' numbers, on every run.

use candle_core::Device;

use super::super::golden::{self, CONVERTED_TOLERANCE, Golden, PLAIN_TOLERANCE};
use super::super::weights::Opened;
use super::golden as file;

/// What f32 weights, keys and values may lose as f16; bf16 weights have 8 times less.
const HALF_TOLERANCE: f32 = 5e-3;

/// (weights, golden, tolerance). Greedy ids are equal whatever the logits' last digits.
const TINY: [(&str, &str, f32); 4] = [
    ("tiny-llama3", "tiny-llama3/golden.safetensors", PLAIN_TOLERANCE),
    ("tiny-tied", "tiny-tied/golden.safetensors", PLAIN_TOLERANCE),
    ("tiny-sharded-bf16", "tiny-sharded-bf16/golden.safetensors", PLAIN_TOLERANCE),
    ("tiny-q.gguf", "tiny-q.golden.safetensors", CONVERTED_TOLERANCE),
];

#[test]
fn tiny_weights_say_what_transformers_says() {
    for (weights, numbers, tolerance) in TINY {
        let numbers = Golden::read(&file(numbers)).unwrap();
        let errors =
            golden::errors(&Opened::open(&file(weights)).unwrap(), &numbers, &Device::Cpu, Some("f32"), 256).unwrap();
        println!("{weights}: {errors:?}");
        assert_eq!(errors.prompt_ids, Some(0.0), "{weights}: template or tokenizer");
        assert!(errors.last_logits <= tolerance, "{weights}: {errors:?}, allowed {tolerance:e}");
        assert_eq!(errors.greedy_ids, 0.0, "{weights}: {errors:?}");
    }
}

#[test]
fn half_precision_caches_stay_close() {
    let numbers = Golden::read(&file("tiny-llama3/golden.safetensors")).unwrap();
    let opened = Opened::open(&file("tiny-llama3")).unwrap();
    for precision in ["f16", "bf16"] {
        let errors = golden::errors(&opened, &numbers, &Device::Cpu, Some(precision), 256).unwrap();
        println!("{precision}: {errors:?}");
        let tolerance = if precision == "f16" { HALF_TOLERANCE } else { 8.0 * HALF_TOLERANCE };
        assert!(errors.last_logits <= tolerance, "{precision}: {errors:?}, allowed {tolerance:e}");
    }
}

#[test]
fn a_prompt_in_parts_has_the_same_logits_to_the_bit() {
    for (weights, numbers, _) in TINY {
        let numbers = Golden::read(&file(numbers)).unwrap();
        let opened = Opened::open(&file(weights)).unwrap();
        let whole = golden::errors(&opened, &numbers, &Device::Cpu, None, 256).unwrap();
        for chunk in [1, 7, 32] {
            assert_eq!(
                golden::errors(&opened, &numbers, &Device::Cpu, None, chunk).unwrap(),
                whole,
                "{weights} in parts of {chunk}"
            );
        }
    }
}

#[test]
fn the_comparison_prints_one_line_per_tensor() {
    let mut out = Vec::new();
    let equal = golden::compare(&file("tiny-tied"), &[], &file("tiny-tied/golden.safetensors"), &Device::Cpu, &mut out)
        .unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(equal, "{text}");
    let names: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["prompt_ids", "last_logits", "greedy_ids"]);
    let other =
        golden::compare(&file("tiny-llama3"), &[], &file("tiny-q.golden.safetensors"), &Device::Cpu, &mut Vec::new());
    assert!(!other.unwrap(), "other weights are not equal");
}
