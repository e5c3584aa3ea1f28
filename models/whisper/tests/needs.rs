//! What is said to be needed covers what is then held and worked with.

use ::prediction::Model;

use super::super::pipeline::Whisper;
use super::*;

#[test]
fn what_is_needed_is_the_weights_the_windows_and_the_room_for_a_step() {
    const POSITIONS: u64 = 1500;
    let needs = |shape: &str, device: &str, concurrency: u32| {
        let weights = Weights::Synth { shape: shape.into(), dtype: "f16".into(), seed: 0 };
        let spec = LoadSpec {
            concurrency: Some(concurrency),
            device: device.into(),
            ..LoadSpec::new("w", "whisper", weights)
        };
        Whisper.needs(&spec, &mut |_| ()).unwrap()
    };
    let (hidden, layers, heads, parameters) = (1280, 32, 20, 1_543_490_560u64);
    let windows = |places: u64| places * 2 * 2 * layers * (POSITIONS + 448) * hidden;
    let large = needs("whisper-large-v3", "cpu", 16);
    // One layer of the encoder: the fed-forward rows alone are four times as wide.
    assert!(large > 2 * parameters + windows(16) + 4 * POSITIONS * 4 * hidden, "{large}");
    assert!(large < 2 * parameters + windows(16) + 500_000_000, "{large}");
    assert!(needs("whisper-large-v3", "cpu", 32) - large >= windows(16));
    // Away from the CPU every head's scores are there at once.
    assert!(needs("whisper-large-v3", "cuda:0", 16) - large >= 2 * 4 * heads * POSITIONS * POSITIONS);
}

#[test]
fn what_is_held_is_less_than_what_was_needed() {
    let folder = tiny::write(9);
    let spec = spec(folder.path());
    let needed = Whisper.needs(&spec, &mut |_| ()).unwrap();
    let held = ::prediction::Loaded::bytes(&load(&spec).unwrap());
    assert!(held < needed, "{held} bytes are held, {needed} were needed");
}
