//! The networks beside diffusers and transformers, on seeded random weights of the tiny shapes: golden/nets.py has the
//! recipe, golden/nets.safetensors what they said.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use kernels::Pool;
use runner::SafeTensors;

use super::super::unet::Unet;
use super::super::vae::Vae;
use super::super::weights::{Component, Load, Opened};
use crate::shared::shelf::Shelf;

/// Largest error over the largest value. What was seen is under 4e-6; the limit is 1e-3.
const TOLERANCE: f32 = 3e-5;

pub fn pool() -> &'static Arc<Pool> {
    static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
    POOL.get_or_init(|| Arc::new(Pool::new(2)))
}

pub fn load() -> Load<'static> {
    let shelf = Box::leak(Box::new(Shelf::forgetful(&Device::Cpu)));
    Load { device: &Device::Cpu, pool: pool(), precision: None, adapter: None, shelf }
}

pub fn opened(shape: &str) -> Opened {
    Opened::synth(shape, "f32", 0).unwrap()
}

/// What the recipe kept under this name, with its numbers as they are.
fn golden(name: &str) -> Tensor {
    static FILE: OnceLock<SafeTensors> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        SafeTensors::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sdxl/golden/nets.safetensors")).unwrap()
    });
    let tensor = file.tensor(name).unwrap();
    Tensor::from_raw_buffer(tensor.bytes, tensor.dtype, tensor.shape, &Device::Cpu).unwrap()
}

/// `[batch, channels, height, width]` there, channels last here.
fn image(name: &str) -> Tensor {
    golden(name).permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

fn ids(name: &str) -> Vec<Vec<u32>> {
    golden(name).to_vec2().unwrap()
}

pub fn error(own: &Tensor, reference: &Tensor) -> f32 {
    assert_eq!(own.dims(), reference.dims());
    let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let error = largest(&(own - reference).unwrap()) / largest(reference);
    assert!(error.is_finite());
    error
}

#[track_caller]
fn close(what: &str, own: &Tensor, reference: &Tensor) {
    let error = error(own, reference);
    eprintln!("{what}: {error:.1e}");
    assert!(error < TOLERANCE, "{what}: {error} of the largest value");
}

#[test]
fn the_text_encoders_read_what_transformers_reads() {
    let opened = opened("sdxl-tiny");
    let first = opened.text_encoder(Component::Text1, load()).unwrap().unwrap().forward(&ids("ids1")).unwrap();
    close("hidden1", &first.hidden, &golden("hidden1"));
    assert!(first.pooled.is_none(), "nothing projects");
    let second = opened.text_encoder(Component::Text2, load()).unwrap().unwrap().forward(&ids("ids2")).unwrap();
    close("hidden2", &second.hidden, &golden("hidden2"));
    close("pooled2", &second.pooled.unwrap(), &golden("pooled2"));
}

#[test]
fn the_unet_says_what_diffusers_says_at_every_time() {
    for (name, shape) in [("unet", "sdxl-tiny"), ("refiner", "sdxl-tiny-refiner")] {
        let unet = opened(shape).unet(load()).unwrap();
        let context = unet.context(&golden(&format!("{name}_text"))).unwrap();
        let times = [("981", 981.0), ("801", 801.0), ("261.5", 261.5), ("1", 1.0)];
        let steps: Vec<f32> = times.iter().map(|(_, time)| *time).collect();
        let (pooled, ids) = (golden(&format!("{name}_pooled")), golden(&format!("{name}_ids")));
        let embedded = unet.times(&steps, &pooled, &ids).unwrap();
        for ((time, _), emb) in times.iter().zip(&embedded) {
            let said = unet.forward(&image(&format!("{name}_latents")), emb, &context).unwrap();
            close(&format!("{name} at {time}"), &said, &image(&format!("{name}_t{time}")));
        }
    }
}

#[test]
fn the_autoencoder_encodes_and_decodes_as_diffusers_does() {
    let vae = opened("sdxl-tiny").vae(load()).unwrap();
    let latents = vae.encode(&image("pixels")).unwrap();
    close("mean", &latents.mean, &image("mean"));
    close("deviation", &latents.deviation, &image("deviation"));
    close("decoded", &vae.decode(&image("latents")).unwrap(), &image("decoded"));
}

#[test]
fn tiles_fade_into_each_other_as_diffusers_tiles_do() {
    let mut vae = opened("sdxl-tiny").vae(load()).unwrap();
    assert_eq!(vae.config().sample_size, 128, "both images are larger than a tile");
    close("decoded in tiles", &vae.decode(&image("large")).unwrap(), &image("large_decoded"));
    close("encoded in tiles", &vae.encode(&image("wide")).unwrap().mean, &image("wide_mean"));
    vae.set_tile(256);
    let whole = error(&vae.decode(&image("large")).unwrap(), &image("large_decoded"));
    assert!(whole > TOLERANCE, "a tile sees nothing beyond its edge: {whole}");
}

/// Random weights whose conditions do nothing would hide every mistake in their way.
#[test]
fn text_pooled_text_and_time_ids_each_move_the_output_by_several_per_cent() {
    for (name, shape) in [("unet", "sdxl-tiny"), ("refiner", "sdxl-tiny-refiner")] {
        let unet = opened(shape).unet(load()).unwrap();
        let first = |what: &str| golden(&format!("{name}_{what}")).narrow(0, 0, 1).unwrap();
        let other = |what: &str| golden(&format!("{name}_{what}")).narrow(0, 1, 1).unwrap();
        let latents = image(&format!("{name}_latents")).narrow(0, 0, 1).unwrap();
        let say = |text: &Tensor, pooled: &Tensor, ids: &Tensor| {
            let emb = unet.times(&[801.0], pooled, ids).unwrap();
            unet.forward(&latents, &emb[0], &unet.context(text).unwrap()).unwrap()
        };
        let mean = |t: &Tensor| t.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let usual = say(&first("text"), &first("pooled"), &first("ids"));
        let moved = |said: Tensor| mean(&(said - &usual).unwrap()) / mean(&usual);
        let text = moved(say(&other("text"), &first("pooled"), &first("ids")));
        let pooled = moved(say(&first("text"), &other("pooled"), &first("ids")));
        let ids = moved(say(&first("text"), &first("pooled"), &other("ids")));
        assert!([text, pooled, ids].iter().all(|moved| (0.03..1.0).contains(moved)), "{name}: {text} {pooled} {ids}");
    }
}

#[test]
fn an_image_is_the_same_alone_and_in_a_batch_to_the_bit() {
    let opened = opened("sdxl-tiny");
    let unet: Unet = opened.unet(load()).unwrap();
    let say = |from: usize, count: usize| {
        let part = |name: &str| golden(name).narrow(0, from, count).unwrap().contiguous().unwrap();
        let emb = unet.times(&[801.0, 1.0], &part("unet_pooled"), &part("unet_ids")).unwrap();
        let latents = image("unet_latents").narrow(0, from, count).unwrap().contiguous().unwrap();
        let said = unet.forward(&latents, &emb[1], &unet.context(&part("unet_text")).unwrap()).unwrap();
        said.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (both, second) = (say(0, 2), say(1, 1));
    assert_eq!(both[both.len() / 2..], second);
    let vae: Vae = opened.vae(load()).unwrap();
    let decode = |from: usize, count: usize| {
        vae.decode(&image("latents").narrow(0, from, count).unwrap()).unwrap().flatten_all().unwrap()
    };
    let (both, second) = (decode(0, 2).to_vec1::<f32>().unwrap(), decode(1, 1).to_vec1::<f32>().unwrap());
    assert_eq!(both[both.len() / 2..], second);
}

#[test]
fn weights_of_sixteen_bits_stay_so_and_say_nearly_the_same() {
    let whole = opened("sdxl-tiny");
    let half = Opened::synth("sdxl-tiny", "f16", 0).unwrap();
    let say = |opened: &Opened| {
        let unet = opened.unet(load()).unwrap();
        let emb = unet.times(&[801.0], &golden("unet_pooled"), &golden("unet_ids")).unwrap();
        let context = unet.context(&golden("unet_text")).unwrap();
        (unet.forward(&image("unet_latents"), &emb[0], &context).unwrap(), unet.bytes())
    };
    let ((a, full_bytes), (b, half_bytes)) = (say(&whole), say(&half));
    let error = error(&b, &a);
    assert!((1e-6..2e-2).contains(&error), "{error}");
    assert!(half_bytes * 100 < full_bytes * 53, "{half_bytes} of {full_bytes} bytes");
}

#[test]
fn texts_latents_and_conditions_of_other_sizes_are_refused() {
    let opened = opened("sdxl-tiny");
    let text = opened.text_encoder(Component::Text1, load()).unwrap().unwrap();
    let why = |error: candle_core::Error| error.to_string();
    let long = text.forward(&[vec![1; 78]]).err().map(why).unwrap();
    assert!(long.contains("texts of [78] tokens; one length up to 77 is read"), "{long}");
    let unknown = text.forward(&[vec![49_408; 77]]).err().map(why).unwrap();
    assert!(unknown.contains("token 49408 of a vocabulary of 49408 and 0 learned tokens"), "{unknown}");
    let unet = opened.unet(load()).unwrap();
    assert_eq!((unet.config().time_ids(64), unet.config().time_ids(65)), (Some(6), None));
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let five = unet.times(&[1.0], &zeros(&[1, 64]), &zeros(&[1, 5])).err().map(why).unwrap();
    assert!(five.contains("256 features are read"), "{five}");
    let narrow = unet.context(&zeros(&[1, 77, 79])).err().map(why).unwrap();
    assert!(narrow.contains("80 features are read"), "{narrow}");
    let emb = unet.times(&[1.0], &zeros(&[1, 64]), &zeros(&[1, 6])).unwrap();
    let context = unet.context(&zeros(&[1, 77, 80])).unwrap();
    assert!(unet.forward(&zeros(&[1, 8, 8, 9]), &emb[0], &context).is_err());
    assert!(unet.forward(&zeros(&[2, 8, 8, 4]), &emb[0], &context).is_err());
}

#[test]
fn learned_tokens_stand_behind_the_vocabulary() {
    let text = opened("sdxl-tiny").text_encoder(Component::Text1, load()).unwrap().unwrap();
    let learned = Tensor::full(0.5f32, (2, 32), &Device::Cpu).unwrap();
    let known = ids("ids1")[1..2].to_vec();
    let mut told = known.clone();
    told[0][2] = 49_409;
    let plain = text.forward(&known).unwrap().hidden;
    assert_eq!(error(&text.forward_with(&known, Some(&learned)).unwrap().hidden, &plain), 0.0);
    let other = text.forward_with(&told, Some(&learned)).unwrap().hidden;
    let before = |hidden: &Tensor| hidden.narrow(1, 0, 2).unwrap();
    assert_eq!(error(&before(&other), &before(&plain)), 0.0, "a token sees what stands before it");
    assert!(error(&other, &plain) > 0.01);
}

/// What torch counts in the reference's forward at this size, the way of the time and the text's keys and values aside.
#[test]
fn the_unet_counts_its_operations_as_torch_does() {
    let unet = opened("sdxl-tiny").unet(load()).unwrap();
    assert_eq!(unet.operations(13, 10, 77), 210_004_992);
}
