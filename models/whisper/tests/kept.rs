//! A Whisper that was unloaded and comes back from the host's memory, on the emulator.

use std::path::Path;

use ::prediction::{LoadSpec, Loaded, Weights};
use kernels::op;
use runner::synth::Synth;
use serde_json::{Value, json};

use super::super::pipeline::Pipeline;
use super::{file, hear, tone, wav};
use crate::shared::spoilt::{spoil, touch};

fn spec(folder: &Path, precision: &str) -> LoadSpec {
    LoadSpec {
        precision: Some(precision.into()),
        threads: Some(2),
        ..LoadSpec::new("whisper", "whisper", Weights::Path(folder.to_owned()))
    }
}

#[test]
fn a_whisper_that_comes_back_hears_the_same_and_reads_no_tensor() {
    let Some(_gpu) = op::emulate() else { return };
    let folder = tempfile::tempdir().unwrap();
    let shape = super::super::ENTRY.synth.iter().find(|shape| !shape.listed).unwrap();
    Synth::new(shape, "f32", 5).unwrap().write(folder.path(), &mut |_, _| ()).unwrap();
    let audio = folder.path().join("tone.wav");
    std::fs::write(&audio, wav(16_000, 1, &tone(3))).unwrap();
    let heard =
        |pipeline: &mut Pipeline| -> Value { hear(pipeline, json!({ "audio": file(&audio), "temperature": 0 })) };

    let (spec, mut lines) = (spec(folder.path(), "f32"), Vec::new());
    let mut first = Pipeline::load(&spec, None, &mut |_| ()).unwrap();
    let said = heard(&mut first);
    let kept = first.keep().unwrap().unwrap();
    assert_eq!(kept.bytes(), first.kept_bytes());
    assert!(kept.bytes() > 0);
    drop(first);
    spoil(folder.path());
    let mut second = Pipeline::load(&spec, Some(kept), &mut |line| lines.push(line.to_owned())).unwrap();
    assert!(lines[0].contains("come back from host memory"), "{lines:?}");
    assert_eq!(heard(&mut second), said);
    assert!(logits(&second).iter().all(|value| value.is_finite()));
    let read = Pipeline::load(&spec, None, &mut |_| ()).unwrap();
    assert!(logits(&read).iter().all(|value| value.is_nan()), "the files are rubbish");

    // What is of another precision or of touched files is no use.
    let refused = |spec: &LoadSpec, kept| {
        let mut lines = Vec::new();
        Pipeline::load(spec, kept, &mut |line| lines.push(line.to_owned())).unwrap();
        assert!(lines[0].ends_with("the files are read"), "{lines:?}");
    };
    refused(&LoadSpec { precision: Some("f16".into()), ..spec.clone() }, second.keep().unwrap());
    let kept = second.keep().unwrap();
    touch(folder.path());
    refused(&spec, kept);
}

/// Of the first token over what is heard of silence.
fn logits(pipeline: &Pipeline) -> Vec<f32> {
    let net = &pipeline.shared.net;
    let heard = net.hear(&net.encode(&vec![0.0; 3000 * net.config.mels]).unwrap()).unwrap();
    let mut said = net.say(1).unwrap();
    let feed =
        super::super::net::Feed { tokens: vec![0], position: 0, wanted: vec![0], heard: &heard, said: &mut said };
    net.decode(&mut [feed], None).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn on_the_cpu_there_is_nothing_to_keep() {
    let folder = tempfile::tempdir().unwrap();
    let shape = super::super::ENTRY.synth.iter().find(|shape| !shape.listed).unwrap();
    Synth::new(shape, "f32", 5).unwrap().write(folder.path(), &mut |_, _| ()).unwrap();
    assert_eq!(Pipeline::load(&spec(folder.path(), "f32"), None, &mut |_| ()).unwrap().kept_bytes(), 0);
}
