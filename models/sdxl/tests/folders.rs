//! What a pipeline's folder may hold beside a base's own parts, as predictions show it: a refiner in a single file, another VAE,
//! a net that only paints over images.

use std::fs;
use std::path::Path;

use prediction::{Loaded, Weights};
use serde_json::json;

use super::super::weights::{Component, Opened};
use super::files::{renamed, write_single};
use super::nets::load;
use super::predictions::{difference, example, images, loaded, refusal, run, write};

fn model(folder: &Path) -> Box<dyn Loaded> {
    loaded(Weights::Path(folder.into()))
}

#[test]
fn a_refiner_in_a_single_file_paints_what_the_same_in_a_folder_paints() {
    let [folder, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    write("sdxl-tiny", folder.path(), 0);
    write("sdxl-tiny-refiner", &folder.path().join("refiner"), 0);
    write("sdxl-tiny", other.path(), 0);
    write_single("sdxl-tiny-refiner", &other.path().join("sd_xl_refiner_1.0.safetensors"));
    let (mut folder, mut single) = (model(folder.path()), model(other.path()));
    assert_eq!(folder.bytes(), single.bytes());
    for refine in ["expert_ensemble_refiner", "base_image_refiner"] {
        let asked = json!({"num_inference_steps": 5, "seed": 1, "refine": refine});
        let (a, b) = (images(&run(&mut *folder, asked.clone())), images(&run(&mut *single, asked)));
        assert!(a[0] == b[0], "{refine}: {}", difference(&a[0], &b[0]));
    }
}

#[test]
fn a_vae_beside_the_index_is_used_in_place_of_the_folders_own() {
    let [folder, replaced] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    write("sdxl-tiny", folder.path(), 0);
    write("sdxl-tiny", replaced.path(), 0);
    let plain = images(&run(&mut *model(folder.path()), json!({"seed": 1})));
    // Random weights of another seed.
    let other = tempfile::tempdir().unwrap();
    write("sdxl-tiny", other.path(), 5);
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(other.path().join("vae").join(name), replaced.path().join("vae").join(name)).unwrap();
        fs::copy(other.path().join("vae").join(name), folder.path().join(name)).unwrap();
    }
    let wanted = images(&run(&mut *model(replaced.path()), json!({"seed": 1})));
    assert!(difference(&plain[0], &wanted[0]) > 1.0);
    assert!(images(&run(&mut *model(folder.path()), json!({"seed": 1})))[0] == wanted[0]);
    // The same as a single file, under the first implementation's names.
    fs::remove_file(folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    let whole = folder.path().join("whole.safetensors");
    write_single("sdxl-tiny", &whole);
    renamed(&whole, &folder.path().join("sdxl_vae.safetensors"), |name| {
        name.strip_prefix("first_stage_model.").map(str::to_owned)
    });
    assert!(images(&run(&mut *model(folder.path()), json!({"seed": 1})))[0] == plain[0]);
}

#[test]
fn a_net_that_only_paints_over_images_paints_and_refuses_everything_else_at_once() {
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny-inpaint", folder.path(), 0);
    let mut model = model(folder.path());
    let asked = |seed: u64| json!({"image": example("plain.png"), "mask": example("mask.png"), "seed": seed});
    let (one, other) = (images(&run(&mut *model, asked(1))), images(&run(&mut *model, asked(2))));
    assert!(difference(&one[0], &other[0]) > 1.0);
    for asked in [json!({}), json!({"image": example("plain.png")})] {
        let why = refusal(&mut *model, asked);
        assert_eq!(why, "this UNet reads 9 channels: it paints over an image, so image and mask are needed");
    }
    let file = folder.path().join("inpaint.safetensors");
    write_single("sdxl-tiny-inpaint", &file);
    let opened = Opened::open(&file).unwrap();
    assert_eq!(opened.unet_config().in_channels, 9);
    assert_eq!(
        opened.bytes(Component::Unet, load()).unwrap(),
        Opened::open(folder.path()).unwrap().bytes(Component::Unet, load()).unwrap()
    );
}
