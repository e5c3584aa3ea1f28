//! An SDXL that was unloaded and comes back from the host's memory, on the emulator: base, refiner and safety checker.

use std::path::Path;

use kernels::op;
use prediction::{Kept, Loaded, Model, Outcome, Weights};
use serde_json::{Value, json};

use super::super::pipeline::Sdxl;
use super::golden;
use super::predictions::{run, spec, write};
use super::safety::pipeline;
use crate::shared::spoilt::{spoil, touch};

/// The model, from what was kept if there is something, and the lines of its load.
fn load(folder: &Path, precision: Option<&str>, kept: Option<Box<dyn Kept>>) -> (Box<dyn Loaded>, Vec<String>) {
    let (mut spec, mut lines) = (spec(Weights::Path(folder.to_owned())), Vec::new());
    spec.precision = precision.map(str::to_owned);
    let mut report = |line: &str| lines.push(line.to_owned());
    let loaded = match kept {
        Some(kept) => Sdxl.load_kept(&spec, kept, &mut report),
        None => Sdxl.load(&spec, &mut report),
    };
    (loaded.unwrap(), lines)
}

fn drawn(model: &mut dyn Loaded, more: Value) -> Vec<Vec<String>> {
    let mut input = json!({"seed": 3, "disable_safety_checker": true});
    input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let said = run(model, input);
    assert!(!said.outputs.is_empty(), "{:?}: {}", said.ended, said.logs);
    said.outputs
}

/// What base and refiner draw together, and what the checker makes of it, which flags everything that is a number.
fn seen(model: &mut dyn Loaded) -> (Vec<Vec<String>>, Option<Outcome>) {
    let refined = json!({"refine": "base_image_refiner", "refine_steps": 4});
    let outputs = drawn(model, refined);
    let flagged = run(model, json!({"seed": 3})).ended;
    assert!(matches!(&flagged, Some(Outcome::Failed { error }) if error.contains("NSFW")), "{flagged:?}");
    (outputs, flagged)
}

#[test]
fn an_sdxl_that_comes_back_draws_the_same_and_reads_no_tensor() {
    let Some(_gpu) = op::emulate() else { return };
    let folder = pipeline();
    write("sdxl-tiny-refiner", &folder.path().join("refiner"), 1);
    let (mut first, _) = load(folder.path(), None, None);
    let expected = seen(&mut *first);
    let kept = first.keep().unwrap().unwrap();
    assert_eq!(kept.bytes(), first.kept_bytes());
    assert!(kept.bytes() > 0);
    drop(first);
    spoil(folder.path());
    let (mut second, lines) = load(folder.path(), None, Some(kept));
    assert!(lines[0].contains("come back from host memory"), "{lines:?}");
    assert_eq!(seen(&mut *second), expected);
    // Once more, from what came back.
    let kept = second.keep().unwrap();
    let (mut third, _) = load(folder.path(), None, kept);
    assert_eq!(seen(&mut *third), expected);

    // What is of another precision or of touched files is no use.
    let (_, lines) = load(folder.path(), Some("f16"), third.keep().unwrap());
    assert!(lines[0].ends_with("the files are read"), "{lines:?}");
    touch(folder.path());
    let (_, lines) = load(folder.path(), None, third.keep().unwrap());
    assert!(lines[0].ends_with("the files are read"), "{lines:?}");
}

#[test]
fn weights_that_a_prediction_changed_are_not_kept_and_read_again_they_are() {
    let Some(_gpu) = op::emulate() else { return };
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny", folder.path(), 0);
    let (mut model, _) = load(folder.path(), None, None);
    let (plain, whole) = (json!({}), model.kept_bytes());
    let expected = drawn(&mut *model, plain.clone());
    let mut changed = plain.clone();
    changed["replicate_weights"] = format!("file://{}", golden("lora-kohya.safetensors").display()).into();
    assert_ne!(drawn(&mut *model, changed), expected);
    assert_eq!(model.kept_bytes(), 0, "what it holds now is no file's");
    assert_eq!(drawn(&mut *model, plain.clone()), expected);
    assert_eq!(model.kept_bytes(), whole);
    let (mut back, lines) = load(folder.path(), None, model.keep().unwrap());
    assert!(lines[0].contains("come back from host memory"), "{lines:?}");
    assert_eq!(drawn(&mut *back, plain), expected);
}

#[test]
fn on_the_cpu_there_is_nothing_to_keep() {
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny", folder.path(), 0);
    assert_eq!(load(folder.path(), None, None).0.kept_bytes(), 0);
}
