//! What no single file of this folder can promise: equality with the reference, of one batch with another, and what is
//! refused.

mod batching;
mod decoding;
mod kept;
mod needs;
mod real;
mod refusals;
mod tiny;

use std::path::{Path, PathBuf};

use ::prediction::{Event, Id, Job, LoadSpec, Loaded, Outcome, Output, PredictError, Weights};
use serde_json::{Value, json};

use super::pipeline::Pipeline;

pub(super) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("whisper/golden").join(name)
}

/// In f32, so that sums may be compared with the reference's.
fn spec(weights: &Path) -> LoadSpec {
    LoadSpec {
        precision: Some("f32".into()),
        concurrency: Some(4),
        threads: Some(2),
        ..LoadSpec::new("whisper", "whisper", Weights::Path(weights.to_owned()))
    }
}

fn load(spec: &LoadSpec) -> Result<Pipeline, PredictError> {
    Pipeline::load(spec, None, &mut |_| ())
}

fn job(id: &str, input: Value) -> Job {
    Job { id: Id::from(id), input: input.as_object().unwrap().clone(), seed: 11 }
}

fn file(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// Steps until everybody has ended; every event with whose it is.
fn finish(pipeline: &mut Pipeline) -> Vec<(String, Event)> {
    let mut events = Vec::new();
    while pipeline.active() > 0 {
        pipeline.step(&mut |id, event| events.push((id.0.clone(), event))).unwrap();
    }
    events
}

/// The output of one prediction that has the model for itself.
fn hear(pipeline: &mut Pipeline, input: Value) -> Value {
    pipeline.admit(job("alone", input)).unwrap();
    output("alone", &finish(pipeline))
}

fn output(id: &str, events: &[(String, Event)]) -> Value {
    let mut own = events.iter().filter(|(whose, _)| whose == id).map(|(_, event)| event);
    let found = own.find_map(|event| match event {
        Event::Output(Output::Whole(output)) => Some(output.clone()),
        Event::Ended(outcome) => panic!("{id} ended without an output: {outcome:?}"),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{id} has no output"))
}

fn logs(events: &[(String, Event)]) -> String {
    let log = |(_, event): &(String, Event)| match event {
        Event::Log(text) => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(log).collect()
}

fn failure(events: &[(String, Event)]) -> String {
    match events.last() {
        Some((_, Event::Ended(Outcome::Failed { error }))) => error.clone(),
        other => panic!("the last event is {other:?}"),
    }
}

/// A RIFF file of 16-bit samples.
pub fn wav(rate: u32, channels: u16, samples: &[i16]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let align = 2 * channels;
    let mut file =
        [b"RIFF".as_slice(), &(36 + data.len() as u32).to_le_bytes(), b"WAVEfmt ", &16u32.to_le_bytes()].concat();
    file.extend(1u16.to_le_bytes());
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend((rate * u32::from(align)).to_le_bytes());
    file.extend(align.to_le_bytes());
    file.extend(16u16.to_le_bytes());
    file.extend([b"data".as_slice(), &(data.len() as u32).to_le_bytes(), &data].concat());
    file
}

/// A tone that rises and falls in loudness, with pauses: something to hear.
fn tone(seconds: usize) -> Vec<i16> {
    let loud = |i: usize| if i / 16_000 % 5 == 4 { 0.0 } else { 6000.0 + 3000.0 * ((i / 1600) as f64).sin() };
    (0..seconds * 16_000).map(|i| (loud(i) * (i as f64 * (0.1 + (i / 8000 % 7) as f64 * 0.03)).sin()) as i16).collect()
}

#[test]
fn the_lock_and_the_mirrors_agree() {
    let lock = runner::weights::Lock::parse(super::ENTRY.lock).unwrap();
    for entry in &lock.weights {
        let mirrors = runner::weights::mirrors(super::ENTRY.manifest, &entry.name).unwrap();
        for file in &entry.files {
            assert!(mirrors.iter().any(|mirror| mirror.only.as_ref() == Some(&file.path)), "{}", file.path);
        }
    }
    assert!(lock.entry("whisper-base").is_ok() && lock.entry("whisper-tiny.en").is_ok());
}

#[test]
fn the_schema_is_the_hosted_models_and_what_is_ours_comes_behind() {
    let schema = (super::ENTRY.schema)();
    let input = schema.input_json();
    assert_eq!(input["required"], json!(["audio"]));
    assert_eq!(input["properties"]["audio"]["format"], "uri");
    assert_eq!(input["properties"]["no_speech_threshold"]["x-order"], 12);
    assert_eq!(input["properties"]["temperature"]["default"], json!(0));
    assert_eq!(schema.choices_json()["language"]["enum"].as_array().map(Vec::len), Some(213));
    let output = schema.output_json();
    assert_eq!(output["required"], json!(["detected_language", "transcription", "segments"]));
    assert_eq!(output["properties"]["srt_file"]["format"], "uri");
}
