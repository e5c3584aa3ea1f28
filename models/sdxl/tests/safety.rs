//! The safety checker beside diffusers' and transformers' (golden/safety.py has the recipe), and what becomes of a prediction
//! whose images it flags.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use prediction::{Model, Outcome, PredictError, Weights};
use runner::SafeTensors;
use serde_json::{Value, json};

use super::super::image::Picture;
use super::super::pipeline::Sdxl;
use super::super::safety::{Checker, Scores};
use super::super::vision_image;
use super::super::weights::{Component, Opened};
use super::files::{rewrite, write_single};
use super::golden;
use super::nets::{error, load};
use super::predictions::{Said, images, loaded, run, spec, write};

/// Of the net's side.
const SIDE: usize = 32;
const IMAGES: usize = 6;
/// Largest error over the largest value.
const TOLERANCE: f32 = 1e-5;

/// A tiny pipeline with the recipe's checker.
pub(super) fn pipeline() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny", folder.path(), 0);
    for part in ["safety_checker", "feature_extractor"] {
        fs::create_dir(folder.path().join(part)).unwrap();
        for file in fs::read_dir(golden("safety").join(part)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(part).join(file.file_name())).unwrap();
        }
    }
    folder
}

fn weights(folder: &Path) -> PathBuf {
    folder.join("safety_checker/model.safetensors")
}

fn checker(path: &Path) -> Checker {
    Opened::open(path).unwrap().checker(load()).unwrap().unwrap()
}

fn said(name: &str) -> Tensor {
    let file = SafeTensors::open(&golden("safety.safetensors")).unwrap();
    let tensor = file.tensor(name).unwrap();
    Tensor::from_raw_buffer(tensor.bytes, tensor.dtype, tensor.shape, &Device::Cpu).unwrap()
}

fn pictures() -> Vec<Picture> {
    let picture = |number| {
        let pixels = said(&format!("picture_{number}"));
        let (height, width, _) = pixels.dims3().unwrap();
        Picture { width, height, pixels: pixels.flatten_all().unwrap().to_vec1().unwrap() }
    };
    (0..IMAGES).map(picture).collect()
}

#[test]
fn an_image_is_resized_cut_and_normalised_as_pillow_and_transformers_do_to_the_byte() {
    let theirs: Vec<f32> = said("pixels").flatten_all().unwrap().to_vec1().unwrap();
    for (picture, theirs) in pictures().iter().zip(theirs.chunks_exact(3 * SIDE * SIDE)) {
        let ours = vision_image::pixels(picture, SIDE);
        let off = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // A byte is 0.0146 here.
        assert!(ours.len() == theirs.len() && off < 1e-6, "{} x {}: {off}", picture.width, picture.height);
    }
}

#[test]
fn embeddings_scores_and_flags_are_diffusers() {
    let folder = pipeline();
    let checker = checker(folder.path());
    let embeds = said("embeds");
    let scores: Vec<Vec<f32>> = said("scores").to_dtype(DType::F32).unwrap().to_vec2().unwrap();
    let flags: Vec<u8> = said("flags").to_vec1().unwrap();
    for (number, picture) in pictures().iter().enumerate() {
        let ours = checker.look(picture).unwrap();
        let error = error(&Tensor::new(&ours[..], &Device::Cpu).unwrap(), &embeds.get(number).unwrap());
        eprintln!("embedding {number}: {error:.1e}");
        assert!(error < TOLERANCE, "image {number}: {error}");
        let Scores { special, concepts } = checker.scores(&ours);
        let all = [special, concepts].concat();
        // Both are rounded to thousandths, the reference's in another precision.
        let near = all.iter().zip(&scores[number]).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near && all.len() == 20, "image {number}: {all:?} {:?}", scores[number]);
        assert_eq!(checker.is_flagged(picture).unwrap(), flags[number] == 1, "image {number}");
    }
    assert_eq!(flags.iter().filter(|flag| **flag == 1).count(), 3);
}

#[test]
fn the_published_files_names_are_read_too() {
    let folder = pipeline();
    let picture = &pictures()[0];
    let newer = checker(folder.path()).look(picture).unwrap();
    rewrite(&weights(folder.path()), |name| name.replace("vision_model.", "vision_model.vision_model."));
    assert_eq!(checker(folder.path()).look(picture).unwrap(), newer);
}

#[test]
fn a_single_checkpoint_file_has_the_checker_that_lies_beside_it() {
    let folder = pipeline();
    let file = folder.path().join("checkpoint.safetensors");
    write_single("sdxl-tiny", &file);
    let picture = &pictures()[0];
    assert_eq!(checker(&file).look(picture).unwrap(), checker(folder.path()).look(picture).unwrap());
    fs::remove_dir_all(folder.path().join("safety_checker")).unwrap();
    assert!(!Opened::open(&file).unwrap().has_checker());
}

/// The pipeline's checker with thresholds of its own.
fn set_thresholds(folder: &Path, thresholds: &[f32]) {
    let path = weights(folder);
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let own = Tensor::new(thresholds, &Device::Cpu).unwrap();
    tensors.insert("concept_embeds_weights".into(), own);
    candle_core::safetensors::save(&tensors, &path).unwrap();
}

fn failed(said: &Said) -> &str {
    match &said.ended {
        Some(Outcome::Failed { error }) => error,
        other => panic!("{other:?}\n{}", said.logs),
    }
}

const ALL_FLAGGED: &str = "NSFW content detected. Try running it again, or try a different prompt.";
const NOT_CHECKED: &str = "the images are not checked";

#[test]
fn a_flagged_image_is_left_out_and_all_of_them_fail_the_prediction() {
    let folder = pipeline();
    let two = |more: Value| {
        let mut asked = json!({"seed": 1, "num_outputs": 2});
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        run(&mut *loaded(Weights::Path(folder.path().into())), asked)
    };
    set_thresholds(folder.path(), &[1.1; 17]);
    let fine = two(json!({}));
    let both = images(&fine);
    assert!(both.len() == 2 && !fine.logs.contains("NSFW") && !fine.logs.contains(NOT_CHECKED), "{}", fine.logs);

    // The first image alone is too near to the concept that tells the two apart best.
    set_thresholds(folder.path(), &[0.0; 17]);
    let checker = checker(folder.path());
    let cosines = both.iter().map(|image| {
        let picture = Picture { width: 64, height: 64, pixels: image.as_raw().clone() };
        checker.scores(&checker.look(&picture).unwrap()).concepts
    });
    let cosines: Vec<Vec<f32>> = cosines.collect();
    let apart = |concept: &usize| cosines[0][*concept] - cosines[1][*concept];
    let concept = (0..17).max_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap();
    assert!(apart(&concept) > 0.004, "{cosines:?}");
    let mut thresholds = [1.1; 17];
    thresholds[concept] = (cosines[0][concept] + cosines[1][concept]) / 2.0;
    set_thresholds(folder.path(), &thresholds);
    let one = two(json!({}));
    assert!(one.logs.contains("\nNSFW content detected in image 0\n") && !one.logs.contains("image 1"), "{}", one.logs);
    let left = images(&one);
    assert!(left.len() == 1 && left[0] == both[1]);
    assert_eq!((&one.metrics["image_count"], &one.metrics["step_count"]), (&json!(1), &json!(4)));

    set_thresholds(folder.path(), &[-1.1; 17]);
    let none = two(json!({}));
    assert_eq!(failed(&none), ALL_FLAGGED);
    assert!(none.outputs.is_empty() && none.logs.contains("NSFW content detected in image 1\n"), "{}", none.logs);
    // Nor is anybody shown one that is not ready.
    let previewed = two(json!({"preview_every": 1, "num_inference_steps": 3}));
    assert_eq!((failed(&previewed), &previewed.outputs[..]), (ALL_FLAGGED, &[vec![]][..]));
    let disabled = two(json!({"disable_safety_checker": true}));
    assert!(images(&disabled) == both && !disabled.logs.contains("NSFW"), "{}", disabled.logs);
    assert!(!disabled.logs.contains(NOT_CHECKED), "{}", disabled.logs);
}

#[test]
fn its_weights_count_in_what_a_deployment_needs() {
    let folder = pipeline();
    let needs = || Sdxl.needs(&spec(Weights::Path(folder.path().into())), &mut |_| ()).unwrap();
    let with = needs();
    let own = Opened::open(folder.path()).unwrap().bytes(Component::Safety, load()).unwrap();
    assert!(own > 50_000, "{own}");
    fs::remove_dir_all(folder.path().join("safety_checker")).unwrap();
    assert_eq!(with - needs(), own);
}

#[test]
fn what_another_checker_would_do_is_refused_with_the_field() {
    let why = |file: &str, field: &str, value: Value| {
        let folder = pipeline();
        let path = folder.path().join(file);
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        *json.pointer_mut(field).unwrap() = value;
        fs::write(&path, json.to_string()).unwrap();
        let checker = Opened::open(folder.path()).and_then(|opened| opened.checker(load()));
        checker.err().unwrap().to_string()
    };
    let settings = "feature_extractor/preprocessor_config.json";
    assert_eq!(why(settings, "/resample", json!(2)), format!("{settings}: resample is 2; 3 is run"));
    let mean = why(settings, "/image_mean", json!([0.5, 0.5, 0.5]));
    assert!(mean.contains("image_mean is [0.5,0.5,0.5]; [0.48145466,0.4578275,0.40821073] is run"), "{mean}");
    let size = why(settings, "/crop_size/height", json!(31));
    assert!(size.contains("crop_size is") && size.contains("the net looks at 32 x 32 pixels"), "{size}");
    let config = "safety_checker/config.json";
    let act = why(config, "/vision_config/hidden_act", json!("relu"));
    assert!(act.contains("vision_config: hidden_act is \"relu\"; quick_gelu and gelu are run"), "{act}");
    let wide = why(config, "/projection_dim", json!(25));
    assert!(wide.contains("special_care_embeds is [3, 24]; the config needs [3, 25]"), "{wide}");
    let patch = why(config, "/vision_config/patch_size", json!(33));
    assert!(patch.contains("patch_size is 33; an image of 32 has no such patch"), "{patch}");
}

#[test]
fn a_net_that_sees_no_numbers_lets_nothing_pass() {
    let folder = pipeline();
    let path = weights(folder.path());
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let broken = Tensor::full(f32::NAN, (24, 32), &Device::Cpu).unwrap();
    tensors.insert("visual_projection.weight".into(), broken);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let why = checker(folder.path()).is_flagged(&pictures()[0]).unwrap_err();
    let PredictError::Operator(why) = why else { panic!("{why:?}") };
    assert!(why.starts_with("the safety checker sees no numbers"), "{why}");
}
