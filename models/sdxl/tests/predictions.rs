//! Predictions through the seam, on tiny random weights: what they say, what they give, what is refused before a net is
//! touched, and what ends one without the others.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prediction::{Event, Id, Job, LoadSpec, Loaded, Map, Model, Outcome, Output, PredictError, Weights};
use runner::synth::Synth;
use serde_json::{Value, json};

use super::super::pipeline::Sdxl;
use super::super::synth::SHAPES;

pub(super) fn spec(weights: Weights) -> LoadSpec {
    let mut spec = LoadSpec { threads: Some(2), ..LoadSpec::new("tiny", "sdxl", weights) };
    spec.provenance.insert("version".into(), "0123".into());
    spec.provenance.insert("weights".into(), "sha256:4567".into());
    spec
}

pub(super) fn synth() -> Weights {
    Weights::Synth { shape: "sdxl-tiny".into(), dtype: "f32".into(), seed: 0 }
}

pub(super) fn loaded(weights: Weights) -> Box<dyn Loaded> {
    Sdxl.load(&spec(weights), &mut |_| ()).unwrap()
}

pub(super) fn write(shape: &str, to: &Path, seed: u64) {
    let shape = SHAPES.iter().find(|known| known.name == shape).unwrap();
    Synth::new(shape, "f32", seed).unwrap().write(to, &mut |_, _| ()).unwrap();
}

fn id() -> Id {
    Id::from("one")
}

/// Small and short, unless `more` says otherwise; a null of it leaves a field out.
pub(super) fn admit(model: &mut dyn Loaded, more: Value) -> Result<(), PredictError> {
    let mut input = json!({"prompt": "a clock", "width": 64, "height": 64, "num_inference_steps": 2});
    let input = input.as_object_mut().unwrap();
    input.extend(more.as_object().unwrap().clone());
    input.retain(|_, value| !value.is_null());
    model.admit(Job { id: id(), input: input.clone(), seed: 77 })
}

#[derive(Default)]
pub(super) struct Said {
    pub logs: String,
    pub outputs: Vec<Vec<String>>,
    pub metrics: Map,
    pub ended: Option<Outcome>,
}

fn step(model: &mut dyn Loaded, said: &mut Said) {
    let hear = &mut |of: &Id, event| {
        assert_eq!(*of, id());
        match event {
            Event::Started => {}
            Event::Log(text) => said.logs.push_str(&text),
            Event::Output(Output::Whole(files)) => said.outputs.push(serde_json::from_value(files).unwrap()),
            Event::Output(Output::Item(item)) => panic!("a list is given whole: {item}"),
            Event::Metric { name, value } => drop(said.metrics.insert(name, value)),
            Event::Ended(outcome) => said.ended = Some(outcome),
        }
    };
    model.step(hear).unwrap();
}

pub(super) fn run(model: &mut dyn Loaded, more: Value) -> Said {
    admit(model, more).unwrap();
    let mut said = Said::default();
    while said.ended.is_none() {
        step(model, &mut said);
    }
    assert_eq!(model.active(), 0);
    said
}

pub(super) fn refusal(model: &mut dyn Loaded, more: Value) -> String {
    let why = admit(model, more).unwrap_err();
    assert_eq!(model.active(), 0);
    match why {
        PredictError::FixInput(why) => why,
        other => panic!("{other}"),
    }
}

fn file(uri: &str) -> Vec<u8> {
    STANDARD.decode(uri.split_once(";base64,").unwrap().1).unwrap()
}

fn pixels(uri: &str) -> image::RgbImage {
    image::load_from_memory(&file(uri)).unwrap().into_rgb8()
}

pub(super) fn images(said: &Said) -> Vec<image::RgbImage> {
    assert_eq!(said.ended, Some(Outcome::Succeeded), "{}", said.logs);
    said.outputs.last().unwrap().iter().map(|uri| pixels(uri)).collect()
}

/// How different two images are, in steps of a byte.
pub(super) fn difference(a: &image::RgbImage, b: &image::RgbImage) -> f64 {
    let all = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
    all.sum::<f64>() / a.as_raw().len() as f64
}

pub(super) fn example(name: &str) -> String {
    format!("file://{}/sdxl/tests/images/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_prompt_gives_an_image_and_says_how_far_it_is() {
    let mut model = loaded(synth());
    let said = run(&mut *model, json!({"height": 96, "seed": 5}));
    let all = images(&said);
    assert_eq!(all.iter().map(image::RgbImage::dimensions).collect::<Vec<_>>(), [(64, 96)]);
    assert!(said.logs.starts_with("Using seed: 5\n"), "{}", said.logs);
    for line in ["  0%|          | 0/2 [", " 50%|█████     | 1/2 [", "100%|██████████| 2/2 ["]
    {
        assert!(said.logs.lines().any(|said| said.starts_with(line)), "{line} is not in\n{}", said.logs);
    }
    assert!(said.logs.contains("on this processor: 2 calls of the network, 64 x 96, at "), "{}", said.logs);
    assert!(said.logs.contains("the images are not checked"), "{}", said.logs);
    assert_eq!((&said.metrics["image_count"], &said.metrics["step_count"]), (&json!(1), &json!(2)));
    assert_eq!(said.outputs.len(), 1);
}

#[test]
fn a_png_says_how_it_was_made() {
    let said = run(&mut *loaded(synth()), json!({"image": example("plain.png"), "num_inference_steps": 4}));
    let bytes = file(&said.outputs[0][0]);
    let reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
    let text = reader.info().utf8_text[0].get_text().unwrap();
    let how: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&how["version"], &how["weights"], &how["seed"]), (&json!("0123"), &json!("sha256:4567"), &json!(77)));
    assert_eq!((&how["input"]["prompt"], &how["image"], &how["model"]), (&json!("a clock"), &json!(0), &json!("tiny")));
    assert!(!text.contains("file://"), "no path of this machine: {text}");
}

#[test]
fn an_image_hangs_on_its_seed_and_number_alone() {
    let mut model = loaded(synth());
    let one = images(&run(&mut *model, json!({"seed": 1})));
    let two = images(&run(&mut *model, json!({"seed": 1, "num_outputs": 2})));
    let other = images(&run(&mut *model, json!({"seed": 2})));
    assert_eq!((one.len(), two.len()), (1, 2));
    assert!(one[0] == two[0]);
    assert!(difference(&two[0], &two[1]) > 1.0 && difference(&one[0], &other[0]) > 1.0);
}

#[test]
fn every_scheduler_and_every_format_gives_images() {
    let mut model = loaded(synth());
    for scheduler in super::super::input::SCHEDULERS {
        let said = run(&mut *model, json!({"scheduler": scheduler, "num_inference_steps": 3}));
        assert_eq!(images(&said).len(), 1, "{scheduler}");
    }
    for (format, kind) in [("webp", "data:image/webp;base64,"), ("jpg", "data:image/jpeg;base64,")] {
        let said = run(&mut *model, json!({"output_format": format}));
        assert!(said.outputs[0][0].starts_with(kind), "{format}");
        assert_eq!(images(&said)[0].dimensions(), (64, 64));
    }
}

#[test]
fn a_cancel_is_heard_within_one_step() {
    let mut model = loaded(synth());
    admit(&mut *model, json!({"num_inference_steps": 500})).unwrap();
    let mut said = Said::default();
    while !said.logs.contains(" 3/500 ") {
        step(&mut *model, &mut said);
    }
    let before = said.logs.lines().count();
    model.cancel(&Id::from("another"));
    assert_eq!(model.active(), 1);
    model.cancel(&id());
    assert_eq!(model.active(), 0);
    step(&mut *model, &mut said);
    assert_eq!((said.logs.lines().count(), said.ended), (before, None));
    assert_eq!(images(&run(&mut *model, json!({}))).len(), 1);
}

#[test]
fn a_step_is_one_call_of_the_network() {
    let mut model = loaded(synth());
    admit(&mut *model, json!({"num_inference_steps": 4})).unwrap();
    let mut said = Said::default();
    while said.ended.is_none() {
        let before = said.logs.matches("/4 [").count();
        step(&mut *model, &mut said);
        assert!(said.logs.matches("/4 [").count() <= before + 1, "{}", said.logs);
    }
}

#[test]
fn an_image_is_painted_over_and_what_the_mask_keeps_is_kept() {
    let mut model = loaded(synth());
    let image = example("plain.png");
    let more = json!({"image": image, "prompt_strength": 0.5, "num_inference_steps": 4, "seed": 3});
    let said = run(&mut *model, more);
    assert!(said.logs.contains("image: 48 x 32, resized to 64 x 64\n"), "{}", said.logs);
    assert!(said.logs.contains("| 2/2 ["), "half of the steps: {}", said.logs);
    let within = |mask: &str| json!({"image": image, "mask": example(mask), "num_inference_steps": 4, "seed": 3});
    let said = run(&mut *model, within("mask.png"));
    assert!(said.logs.contains("mask: 48 x 32, resized to 64 x 64\n"), "{}", said.logs);
    let painted = &images(&said)[0];
    let other = json!({"image": image, "mask": example("mask.png"), "num_inference_steps": 4, "seed": 4});
    let other = &images(&run(&mut *model, other))[0];
    let half = |image: &image::RgbImage, left: u32| image::imageops::crop_imm(image, left, 0, 16, 64).to_image();
    let (kept, changed) =
        (difference(&half(painted, 0), &half(other, 0)), difference(&half(painted, 48), &half(other, 48)));
    assert!(kept * 3.0 < changed, "another seed changes what is kept by {kept}, what is painted by {changed}");
}

#[test]
fn a_mask_without_an_image_is_ignored_with_a_line_in_the_logs() {
    let mut model = loaded(synth());
    let said = run(&mut *model, json!({"mask": example("mask.png"), "seed": 1}));
    assert!(said.logs.contains("mask: there is no image that it could be of; it is ignored"), "{}", said.logs);
    assert!(images(&said)[0] == images(&run(&mut *model, json!({"seed": 1})))[0]);
}

#[test]
fn every_kind_of_image_is_read_and_a_bad_one_refused_before_the_network_is_called() {
    let mut model = loaded(synth());
    for name in ["animated.gif", "cmyk.jpg", "16bit.png", "turned.jpg", "alpha.png"] {
        let said = run(&mut *model, json!({"image": example(name)}));
        assert_eq!(images(&said).len(), 1, "{name}");
        assert_eq!(said.logs.contains("the first frame of a GIF"), name == "animated.gif", "{}", said.logs);
    }
    let bomb = refusal(&mut *model, json!({"image": example("bomb.png")}));
    assert!(bomb.contains("image: it is 30000 x 30000 pixels; at most 16384 on a side"), "{bomb}");
    let mask = refusal(&mut *model, json!({"image": example("plain.png"), "mask": example("bomb.png")}));
    assert!(mask.starts_with("mask: it is 30000 x 30000 pixels"), "{mask}");
}

#[test]
fn what_cannot_be_done_is_refused_before_the_network_is_called() {
    let mut model = loaded(synth());
    for (given, expected) in [
        (json!({"width": 0}), "width is 0; 64 to 2048 pixels can be painted"),
        (json!({"num_inference_steps": 10_000}), "num_inference_steps: Must be less than or equal to 500"),
        (json!({"scheduler": "EULER"}), "scheduler must be one of the following"),
        (json!({"refine": "expert_ensemble_refiner"}), "refine: these weights have no refiner"),
        (
            json!({"image": example("plain.png"), "prompt_strength": 0.1}),
            "prompt_strength is 0.1: of 2 steps it leaves none",
        ),
        (json!({"image": "file:///nowhere.png"}), "image: No such file"),
        // Painted as large as it is, unless somebody asks for a size.
        (
            json!({"image": example("plain.png"), "width": null}),
            "image has a width of 48 pixels; 64 to 2048 can be painted",
        ),
    ] {
        let why = refusal(&mut *model, given.clone());
        assert!(why.contains(expected), "{given}: {why}");
    }
}

#[test]
fn latents_that_are_no_numbers_end_their_prediction_with_the_steps_number_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny", folder.path(), 0);
    let weights = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let place = 8 + header + entries["conv_out.bias"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let mut model = loaded(Weights::Path(folder.path().into()));
    for _ in 0..2 {
        let said = run(&mut *model, json!({}));
        let Some(Outcome::Failed { error }) = said.ended else { panic!("{:?}", said.ended) };
        assert!(error.starts_with("step 1 (timestep ") && error.contains("no numbers"), "{error}");
    }
}

#[test]
fn a_refiner_in_the_folder_takes_over_or_paints_again() {
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny", folder.path(), 0);
    write("sdxl-tiny-refiner", &folder.path().join("refiner"), 0);
    let mut model = loaded(Weights::Path(folder.path().into()));
    let plain = images(&run(&mut *model, json!({"num_inference_steps": 10, "seed": 1})));
    let refined = json!({"num_inference_steps": 10, "seed": 1, "refine": "expert_ensemble_refiner"});
    let said = run(&mut *model, refined);
    assert!(said.logs.contains("| 10/10 ["), "{}", said.logs);
    assert!(difference(&plain[0], &images(&said)[0]) > 0.1);
    let again = json!({"num_inference_steps": 10, "refine_steps": 10, "seed": 1, "refine": "base_image_refiner"});
    let said = run(&mut *model, again);
    assert!(said.logs.contains("| 13/13 ["), "{}", said.logs);
}

#[test]
fn previews_are_small_and_the_images_come_last() {
    let mut model = loaded(synth());
    let said = run(&mut *model, json!({"preview_every": 2, "num_inference_steps": 6, "width": 512, "height": 256}));
    assert_eq!(said.outputs.len(), 3, "after two and four of six steps, and at the end");
    assert!(said.outputs[0][0].starts_with("data:image/jpeg;base64,"));
    let small = pixels(&said.outputs[0][0]).dimensions();
    assert!(small.0 <= 256 && small.1 <= 256, "{small:?}");
    assert_eq!(images(&said)[0].dimensions(), (512, 256));
}

#[test]
fn a_deployment_is_told_what_it_needs_and_that_one_is_drawn_at_a_time() {
    let needs = Sdxl.needs(&spec(synth()), &mut |_| ()).unwrap();
    let model = loaded(synth());
    assert!(needs > model.bytes() && model.bytes() > 1 << 20, "{needs} {}", model.bytes());
    assert_eq!(model.capacity(), 1);
    let several = LoadSpec { concurrency: Some(2), ..spec(synth()) };
    let why = Sdxl.load(&several, &mut |_| ()).err().unwrap();
    assert!(why.to_string().contains("concurrency is 2; an SDXL draws for one prediction at a time"), "{why}");
}
