//! What no single file of this folder can promise: equality with the reference, and of one batch with another.

mod batching;
mod engine;
mod events;
mod gguf;
mod goldens;
mod gpu;
mod kept;
mod needs;
mod refusals;
mod schedule;
mod smollm2;
mod synth;

use std::path::{Path, PathBuf};

use ::prediction::{Event, Id, Job, LoadSpec, Loaded, Output, PredictError, Weights};
use serde_json::{Value, json};

use super::pipeline::Pipeline;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("llama/golden").join(name)
}

fn spec(weights: &Path) -> LoadSpec {
    LoadSpec {
        concurrency: Some(4),
        threads: Some(2),
        ..LoadSpec::new("tiny", "llama", Weights::Path(weights.to_owned()))
    }
}

fn load(spec: &LoadSpec) -> Result<Pipeline, PredictError> {
    Pipeline::load(spec, &mut |_| ())
}

fn tiny(name: &str) -> Pipeline {
    load(&spec(&golden(name))).unwrap()
}

fn job(id: &str, input: Value) -> Job {
    Job { id: Id::from(id), input: input.as_object().unwrap().clone(), seed: 11 }
}

/// Steps until `id` has ended or `steps` are over; every event with whose it is.
fn steps(pipeline: &mut Pipeline, steps: usize) -> Vec<(String, Event)> {
    let mut events = Vec::new();
    for _ in 0..steps {
        if pipeline.active() == 0 {
            break;
        }
        pipeline.step(&mut |id, event| events.push((id.0.clone(), event))).unwrap();
    }
    events
}

/// The events of one prediction that has the model for itself.
fn alone(pipeline: &mut Pipeline, input: Value) -> Vec<Event> {
    pipeline.admit(job("alone", input)).unwrap();
    let events = steps(pipeline, 1000).into_iter().map(|(_, event)| event).collect();
    assert_eq!(pipeline.active(), 0);
    events
}

/// The pieces of text that one prediction emitted.
fn pieces<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<String> {
    let piece = |event: &Event| match event {
        Event::Output(Output::Item(Value::String(text))) => Some(text.clone()),
        _ => None,
    };
    events.into_iter().filter_map(piece).collect()
}

fn of<'a>(id: &str, events: &'a [(String, Event)]) -> Vec<&'a Event> {
    events.iter().filter(|(whose, _)| whose == id).map(|(_, event)| event).collect()
}

fn metric(events: &[Event], wanted: &str) -> Value {
    let found = events.iter().find_map(|event| match event {
        Event::Metric { name, value } if name == wanted => Some(value.clone()),
        _ => None,
    });
    found.unwrap_or_else(|| json!(null))
}

#[test]
fn the_lock_and_the_mirrors_agree() {
    let lock = runner::weights::Lock::parse(super::ENTRY.lock).unwrap();
    for entry in &lock.weights {
        let mirrors = runner::weights::mirrors(super::ENTRY.manifest, &entry.name).unwrap();
        assert!(mirrors.len() > 1, "{}: one place to fetch it from is one too few", entry.name);
    }
    assert!(lock.entry("smollm2").is_ok());
}
