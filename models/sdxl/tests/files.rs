//! Weights from wherever they lie: a folder, one in half precision, one in shards, a single file; and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prediction::PredictError;
use runner::synth::Synth;
use serde_json::{Value, json};

use super::super::config::{TextConfig, UnetConfig, VaeConfig};
use super::super::sizes;
use super::super::synth::SHAPES;
use super::super::unet::Unet;
use super::super::weights::{Adapter, Component, Opened};
use super::golden;
use super::nets::{error, load, opened};
use super::predictions::write;

/// Something of the UNet that hangs on all its weights.
fn said(unet: &Unet) -> Tensor {
    let ramp = |shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|n| (n as f32 * 0.37).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let config = unet.config();
    let ids = config.time_ids(64).unwrap();
    let emb = unet.times(&[500.0], &ramp(&[1, 64]), &ramp(&[1, ids])).unwrap();
    let context = unet.context(&ramp(&[1, 9, config.cross])).unwrap();
    unet.forward(&ramp(&[1, 8, 8, 4]), &emb[0], &context).unwrap()
}

fn why<T>(result: Result<T, PredictError>) -> String {
    result.err().expect("it is refused").to_string()
}

#[test]
fn a_folder_says_what_weights_made_in_place_say() {
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny", folder.path(), 0);
    let opened_folder = Opened::open(folder.path()).unwrap();
    let (folder_unet, synth_unet) = (opened_folder.unet(load()).unwrap(), opened("sdxl-tiny").unet(load()).unwrap());
    assert_eq!(error(&said(&folder_unet), &said(&synth_unet)), 0.0);
    let index = opened_folder.file("model_index.json").unwrap().unwrap();
    assert_eq!(index, opened("sdxl-tiny").file("model_index.json").unwrap().unwrap());
    assert_eq!(opened_folder.file("unet/nothing.json").unwrap(), None);
    for component in Component::ALL.into_iter().filter(|component| *component != Component::Safety) {
        let (a, b) = (opened_folder.bytes(component, load()), opened("sdxl-tiny").bytes(component, load()));
        assert_eq!(a.unwrap(), b.unwrap());
        let sorted = |opened: &Opened| BTreeMap::from_iter(opened.tensors(component).unwrap());
        let (a, b) = (sorted(&opened_folder), sorted(&opened("sdxl-tiny")));
        assert!(a == b && !a.is_empty());
    }
}

#[test]
fn half_precision_files_and_older_names_are_found() {
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny", folder.path(), 0);
    let move_to = |component: &str, from: &str, to: &str| {
        let folder = folder.path().join(component);
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    };
    move_to("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors");
    move_to("text_encoder", "model.safetensors", "model.fp16.safetensors");
    // Beside the whole weights those of half precision are let be.
    let vae = folder.path().join("vae");
    fs::write(vae.join("diffusion_pytorch_model.fp16.safetensors"), b"not read").unwrap();
    let opened = Opened::open(folder.path()).unwrap();
    opened.unet(load()).unwrap();
    opened.text_encoder(Component::Text1, load()).unwrap().unwrap();
    rewrite(&vae.join("diffusion_pytorch_model.safetensors"), |name| {
        let older = [("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")];
        older.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
    });
    rewrite(&folder.path().join("text_encoder_2/model.safetensors"), |name| name.replace("text_model.", ""));
    let opened = Opened::open(folder.path()).unwrap();
    opened.vae(load()).unwrap();
    opened.text_encoder(Component::Text2, load()).unwrap().unwrap();
}

/// Writes a file again with other names.
pub fn rewrite(path: &Path, rename: impl Fn(&str) -> String) {
    renamed(path, path, |name| Some(rename(name)));
}

/// A file's tensors under other names; those without one are left out.
pub fn renamed(from: &Path, to: &Path, rename: impl Fn(&str) -> Option<String>) {
    let tensors = candle_core::safetensors::load(from, &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().filter_map(|(name, tensor)| Some((rename(&name)?, tensor)));
    candle_core::safetensors::save(&tensors.collect(), to).unwrap();
}

fn save(path: &Path, tensors: Vec<(String, Vec<usize>, Vec<u8>)>) {
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A shape's random weights as a single checkpoint file. golden/nets.py made the table of names, and diffusers' converters
/// agreed with it.
pub fn write_single(shape: &str, path: &Path) {
    let mut text = Vec::new();
    let packed = fs::File::open(golden("names.json.gz")).unwrap();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut text).unwrap();
    let table: Value = serde_json::from_slice(&text).unwrap();
    let synth = Synth::new(crate::shape(shape).unwrap(), "f32", 0).unwrap();
    // Its tensors have the base's names.
    save(path, single(&synth, &table[shape.trim_end_matches("-inpaint")]));
}

#[test]
fn a_single_file_is_the_same_networks() {
    let folder = tempfile::tempdir().unwrap();
    for (shape, sizes) in [("sdxl-tiny", &sizes::TINY), ("sdxl-tiny-refiner", &sizes::TINY_REFINER)] {
        let path = folder.path().join(format!("{shape}.safetensors"));
        write_single(shape, &path);
        let file = Opened::open(&path).unwrap();
        let own = opened(shape);
        assert_eq!(error(&said(&file.unet(load()).unwrap()), &said(&own.unet(load()).unwrap())), 0.0);
        let latents = Tensor::arange(0f32, 64.0, &Device::Cpu).unwrap().sin().unwrap().reshape((1, 4, 4, 4)).unwrap();
        let pixels = |opened: &Opened| opened.vae(load()).unwrap().decode(&latents).unwrap();
        assert_eq!(error(&pixels(&file), &pixels(&own)), 0.0);
        let encoded = |opened: &Opened| opened.vae(load()).unwrap().encode(&pixels(&own)).unwrap().mean;
        assert_eq!(error(&encoded(&file), &encoded(&own)), 0.0);
        for component in [Component::Text1, Component::Text2] {
            let read = |opened: &Opened| {
                let encoder = opened.text_encoder(component, load()).unwrap();
                encoder.map(|encoder| encoder.forward(&[vec![49_406, 5, 77, 49_407]]).unwrap())
            };
            let (Some(a), Some(b)) = (read(&file), read(&own)) else {
                assert!(!sizes.is_base() && component == Component::Text1);
                continue;
            };
            assert_eq!(error(&a.hidden, &b.hidden), 0.0);
            assert_eq!(a.pooled.is_some(), component == Component::Text2);
            if let (Some(a), Some(b)) = (&a.pooled, &b.pooled) {
                assert_eq!(error(a, b), 0.0);
            }
            assert_eq!(file.bytes(component, load()).unwrap(), own.bytes(component, load()).unwrap());
            assert_eq!(file.tensors(component).unwrap().len(), own.tensors(component).unwrap().len());
        }
        assert!(file.file("scheduler/scheduler_config.json").unwrap().is_some(), "what such a file usually has");
    }
}

/// The tensors of a shape under a single file's names.
fn single(synth: &Synth, table: &Value) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let mut all: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for name in synth.names() {
        let (folder, own) = (name.split('/').next().unwrap(), name.rsplit('/').next().unwrap());
        let (theirs, take) = (&table[folder][own][0], &table[folder][own][1]);
        let (theirs, mut shape, mut bytes) =
            (theirs.as_str().expect(own).to_owned(), synth.shape(name).unwrap().to_vec(), synth.bytes(name).unwrap());
        if theirs.contains("attn_1") && shape.len() == 2 {
            shape.extend([1, 1]);
        }
        if take == "turned" {
            let turned = Tensor::from_raw_buffer(&bytes, DType::F32, &shape, &Device::Cpu).unwrap().t().unwrap();
            shape = turned.dims().to_vec();
            bytes =
                turned.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
        }
        // Queries come before keys and keys before values in the plan, as in the file.
        let entry = all.entry(theirs).or_insert_with(|| (shape.clone(), Vec::new()));
        if take.is_number() && !entry.1.is_empty() {
            entry.0[0] += shape[0];
        }
        entry.1.extend(bytes);
    }
    all.into_iter().map(|(name, (shape, bytes))| (name, shape, bytes)).collect()
}

#[test]
fn the_true_shapes_have_the_published_numbers_of_parameters() {
    // What diffusers counts in the configurations on the hub.
    let count = |shape: &str, component: &str| {
        let shape = SHAPES.iter().find(|known| known.name == shape).unwrap();
        let synth = Synth::new(shape, "f16", 0).unwrap();
        let own = synth.names().filter(|name| name.starts_with(&format!("{component}/")));
        own.map(|name| synth.shape(name).unwrap().iter().product::<usize>()).sum::<usize>()
    };
    assert_eq!(count("sdxl", "unet"), 2_567_463_684);
    assert_eq!(count("sdxl", "text_encoder"), 123_060_480);
    assert_eq!(count("sdxl", "text_encoder_2"), 694_659_840);
    assert_eq!(count("sdxl", "vae"), 83_653_863);
    assert_eq!(count("sdxl-refiner", "unet"), 2_259_526_660);
}

struct Doubling;

impl Adapter for Doubling {
    fn touches(&self, component: Component, name: &str) -> bool {
        component == Component::Unet && name == "mid_block.attentions.0.transformer_blocks.1.attn2.to_k.weight"
    }

    fn add(&self, _: Component, _: &str, shape: &[usize], values: &mut [f32]) -> Result<(), PredictError> {
        assert_eq!(shape, [96, 80]);
        values.iter_mut().for_each(|value| *value *= 2.0);
        Ok(())
    }
}

#[test]
fn an_adapter_changes_the_weights_that_it_touches() {
    let opened = opened("sdxl-tiny");
    let plain = said(&opened.unet(load()).unwrap());
    let changed = super::super::weights::Load { adapter: Some(&Doubling), ..load() };
    assert!(error(&said(&opened.unet(changed).unwrap()), &plain) > 1e-4);
}

#[test]
fn what_is_missing_or_of_another_shape_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write("sdxl-tiny", folder.path(), 0);
    let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    rewrite(&path, |name| name.replace("mid_block.resnets.1.conv2.bias", "elsewhere"));
    let missing = why(Opened::open(folder.path()).unwrap().unet(load()));
    assert!(missing.contains("tensor mid_block.resnets.1.conv2.bias is missing"), "{missing}");

    let config = folder.path().join("unet/config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json["cross_attention_dim"] = json!(96);
    fs::write(&config, json.to_string()).unwrap();
    let shape = why(Opened::open(folder.path()).unwrap().unet(load()));
    let told = "attn2.to_k.weight is [64, 80]; the config needs [64, 96]";
    assert!(shape.contains(told), "{shape}");

    fs::remove_dir_all(folder.path().join("vae")).unwrap();
    assert!(why(Opened::open(folder.path())).contains("has no vae/config.json: not a diffusers folder"));
    let file = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let none = "has no model.diffusion_model.input_blocks.0.0.weight: not a single-file checkpoint of SDXL";
    assert!(why(Opened::open(&file)).contains(none));
    let (first, condition) = ("input_blocks.0.0.weight", "label_emb.0.0.weight");
    let tensors = [(first, vec![3, 4, 1, 1]), (condition, vec![4, 7])].map(|(name, shape)| {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        (format!("model.diffusion_model.{name}"), shape, bytes)
    });
    save(&file, tensors.into());
    let other = why(Opened::open(&file));
    assert!(
        other.contains("no known UNet begins with [3, 4] and reads a condition of 7: not a single-file"),
        "{other}"
    );
}

#[test]
fn configurations_that_are_not_run_are_refused_with_the_field_and_the_value() {
    let files: BTreeMap<&str, Value> = sizes::TINY.files("float32").into_iter().collect();
    let changed = |file: &str, field: &str, value: Value| {
        let mut json = files[file].clone();
        json[field] = value;
        json
    };
    let unet = |field: &str, value: Value| {
        why(UnetConfig::read("unet/config.json", &changed("unet/config.json", field, value)))
    };
    assert_eq!(
        unet("resnet_time_scale_shift", json!("scale_shift")),
        "unet/config.json: resnet_time_scale_shift is \"scale_shift\"; \"default\" is run"
    );
    assert_eq!(
        unet("addition_embed_type", Value::Null),
        "unet/config.json: addition_embed_type is null; \"text_time\" is run"
    );
    assert!(unet("cross_attention_dim", json!(-1)).contains("cross_attention_dim is -1; numbers of 1 to"));
    assert!(unet("up_block_types", json!(["UpBlock2D", "UpBlock2D", "UpBlock2D"])).contains("mirror"));
    assert!(unet("attention_head_dim", json!([1, 2])).contains("there are 3 levels"));
    assert!(unet("norm_num_groups", json!(5)).contains("5 groups"));
    let vae = why(VaeConfig::read("vae/config.json", &changed("vae/config.json", "latents_mean", json!([0.0]))));
    assert_eq!(vae, "vae/config.json: latents_mean is [0.0]; null is run");
    let name = "text_encoder/config.json";
    let text = why(TextConfig::read(name, &changed(name, "hidden_act", json!("relu"))));
    assert_eq!(text, "text_encoder/config.json: hidden_act is \"relu\"; quick_gelu and gelu are run");
    let end = |id: Value| TextConfig::read(name, &changed(name, "eos_token_id", id)).unwrap().end_id;
    assert_eq!((end(json!(2)), end(json!(49_407))), (None, Some(49_407)));
}
