//! The networks as a GPU has them, on the emulator: candle's tensors in f16, our kernels between them, beside the CPU's.

use candle_core::{DType, Device, Tensor};
use kernels::op;

use super::super::noise::{Noise, Seeded, Use};
use super::super::pipeline::on_gpu;
use super::super::weights::{Component, Opened};
use super::nets::{error, load};

/// Unit normal numbers, others for every seed.
fn tensor(seed: u64, dims: &[usize]) -> Tensor {
    let flat = [1, 1, 1, dims.iter().product()];
    Seeded { seed, image: 0 }.draw(Use::Start, &flat, &Device::Cpu).unwrap().reshape(dims).unwrap()
}

#[test]
fn a_unet_on_a_gpu_says_nearly_what_the_cpu_says_of_the_same_weights() {
    // One whose heads the kernel takes, and one whose heads it does not.
    for (shape, height, width, how) in [
        ("sdxl-small", 9, 7, "our CUDA kernels run it in f16"),
        ("sdxl-tiny", 6, 5, "run it in f16, but attention over heads of [16] is composed of candle's ops"),
    ] {
        let opened = Opened::synth(shape, "f16", 0).unwrap();
        let latents = tensor(1, &[2, height, width, 4]);
        let (text, pooled) = (tensor(2, &[2, 77, 80]), tensor(3, &[2, 64]));
        let ids = Tensor::new(&[[64f32, 48., 0., 0., 64., 48.]; 2], &Device::Cpu).unwrap();
        let say = || {
            let unet = opened.unet(load()).unwrap();
            let emb = unet.times(&[801.0, 41.0], &pooled, &ids).unwrap();
            let context = unet.context(&text).unwrap();
            let said = unet.forward(&latents, &emb[1], &context).unwrap();
            (said, unet.activations(), on_gpu(&unet), unet.bytes())
        };
        let (expected, dtype, _, cpu_bytes) = say();
        assert_eq!(dtype, DType::F32);
        let Some(_gpu) = op::emulate() else { return };
        let (got, dtype, told, bytes) = say();
        assert_eq!((dtype, got.dtype()), (DType::F16, DType::F32));
        assert!(told.contains(how), "{told}");
        assert!(bytes <= cpu_bytes, "{bytes}, {cpu_bytes} on the CPU");
        let error = error(&got, &expected);
        assert!((1e-6..1e-2).contains(&error), "{shape}: {error} of the largest value");
    }
}

#[test]
fn texts_on_a_gpu_are_read_as_on_the_cpu() {
    let opened = Opened::synth("sdxl-tiny", "f16", 0).unwrap();
    let ids = vec![vec![49_406, 320, 1929, 49_407, 49_407, 7], vec![49_406, 11, 12, 13, 14, 49_407]];
    let say = || {
        let read = |component| opened.text_encoder(component, load()).unwrap().unwrap().forward(&ids).unwrap();
        let (first, second) = (read(Component::Text1), read(Component::Text2));
        [first.hidden, second.hidden, second.pooled.unwrap()]
    };
    let expected = say();
    let Some(_gpu) = op::emulate() else { return };
    for (got, expected) in say().iter().zip(&expected) {
        let error = error(got, expected);
        assert!((1e-6..1e-2).contains(&error), "{error} of the largest value");
    }
}

#[test]
fn an_autoencoder_that_leaves_the_range_of_f16_is_f32_on_a_gpu_too() {
    // Of f16 weights; the shape says that it leaves the range.
    let opened = Opened::synth("sdxl-tiny", "f16", 0).unwrap();
    let (latents, pixels) = (tensor(1, &[1, 3, 4, 4]), tensor(2, &[1, 24, 16, 3]));
    let say = || {
        let vae = opened.vae(load()).unwrap();
        (vae.decode(&latents).unwrap(), vae.encode(&pixels).unwrap().mean)
    };
    let expected = say();
    let Some(_gpu) = op::emulate() else { return };
    let got = say();
    for (got, expected) in [(got.0, expected.0), (got.1, expected.1)] {
        let error = error(&got, &expected);
        assert!(error < 3e-5, "{error} of the largest value");
    }
}
