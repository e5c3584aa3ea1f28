//! What is said to be needed is what is then held.

use ::prediction::{LoadSpec, Loaded, Model, Weights};

use super::super::needs::Needs;
use super::super::pipeline::{Llama, needs};
use super::{golden, load, spec};

fn agrees(spec: &LoadSpec) {
    let told = needs(spec, &mut |_| ()).unwrap();
    let pipeline = load(spec).unwrap();
    let (weights, held) = (pipeline.net.bytes(), pipeline.bytes());
    assert_eq!((told.weights, told.cache), (weights, held - weights), "{:?} {:?}", spec.weights, spec.precision);
    assert!(told.step > 0);
    assert_eq!(Llama.needs(spec, &mut |_| ()).unwrap(), held + told.step);
}

#[test]
fn what_is_needed_is_what_is_held_and_the_room_for_a_step() {
    for weights in ["tiny-llama3", "tiny-tied", "tiny-sharded-bf16", "tiny-q.gguf"] {
        for precision in [None, Some("f32"), Some("f16"), Some("bf16")] {
            let spec = spec(&golden(weights));
            agrees(&LoadSpec { precision: precision.map(str::to_owned), context_tokens: Some(100), ..spec });
        }
    }
}

#[test]
fn the_real_weights_need_what_they_hold() {
    let Some(path) = crate::real::weights(&super::super::ENTRY, "smollm2") else { return };
    agrees(&spec(&path));
}

#[test]
fn what_is_too_large_is_refused_before_anything_is_allocated() {
    let weights = Weights::Synth { shape: "llama-3-70b".into(), dtype: "f32".into(), seed: 0 };
    // 4096 predictions of 8192 tokens: 11 TB of cache, which the CPU takes as it is written.
    let spec = LoadSpec { weights, concurrency: Some(4096), ..spec(&golden("tiny-tied")) };
    let parameters = 70_553_706_496u64;
    assert!(Llama.needs(&spec, &mut |_| ()).unwrap() > 4 * parameters);
    let Some(memory) = runner::device::memory() else { return };
    if memory.total_bytes > 4 * parameters {
        return; // A machine that has room for it.
    }
    let why = load(&spec).err().unwrap().to_string();
    assert!(why.contains("the model needs ") && why.contains("the device has ") && why.contains("in all"), "{why}");
}

#[test]
fn the_sum_names_what_is_needed_and_what_is_free() {
    let free = runner::device::memory().unwrap();
    let check = |weights| Needs { weights, cache: u64::MAX / 2, step: 0 }.check(&candle_core::Device::Cpu);
    assert!(check(1).is_ok(), "a cache on the CPU takes memory as it is written");
    let over = free.total_bytes + 1;
    let why = check(over).unwrap_err().to_string();
    assert!(why.starts_with(&format!("the model needs {over} bytes")), "{why}");
}
