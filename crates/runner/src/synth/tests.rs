//! Random weights written and made in place are the same bytes, on every machine; refused before anything is written.

use std::path::Path;

use candle_core::DType;

use super::write::SHARD_BYTES;
use super::*;
use crate::SafeTensors;
use crate::weights::lock_path;

const SMALL: Shape = Shape {
    name: "small",
    about: "for tests",
    dtype: "f16",
    listed: false,
    plan: |dtype| Plan {
        files: vec![("config.json", format!("{{\"dtype\":\"{dtype}\"}}").into_bytes())],
        tensors: vec![
            Tensor { name: "a".into(), shape: vec![700, 1001], fill: Fill::Normal(0.02) },
            Tensor { name: "norm".into(), shape: vec![5], fill: Fill::Ones },
            Tensor { name: "b".into(), shape: vec![3], fill: Fill::Normal(0.02) },
        ],
    },
};

const HUGE: Shape = Shape {
    plan: |_| Plan {
        files: vec![],
        tensors: vec![Tensor { name: "a".into(), shape: vec![1 << 20, 1 << 30], fill: Fill::Ones }],
    },
    ..SMALL
};

fn write(shape: &Shape, dtype: &str, seed: u64, to: &Path) -> Result<Written, PredictError> {
    Synth::new(shape, dtype, seed)?.write(to, &mut |_, _| ())
}

#[test]
fn what_is_made_in_place_is_what_would_have_been_written() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in ["f32", "f16", "bf16"] {
        let (to, synth) = (folder.path().join(dtype), Synth::new(&SMALL, dtype, 9).unwrap());
        let mut last = (0, 0);
        let written = synth.write(&to, &mut |done, total| last = (done, total)).unwrap();
        assert_eq!(last, (synth.total_bytes(), synth.total_bytes()));
        assert_eq!((written.files, written.bytes), (2, lock_path("x", &to).unwrap().size));
        let tensors = SafeTensors::open(&to).unwrap();
        for name in ["a", "norm", "b"] {
            let tensor = tensors.tensor(name).unwrap();
            assert_eq!((tensor.dtype, tensor.shape), (synth.dtype(), synth.shape(name).unwrap()), "{name}");
            assert_eq!(tensor.bytes, synth.bytes(name).unwrap(), "{dtype} {name}");
        }
        let ones = synth.bytes("norm").unwrap();
        assert_eq!(ones, ones[..synth.dtype().size_in_bytes()].repeat(5));
        assert_eq!(synth.file("config.json").unwrap(), std::fs::read(to.join("config.json")).unwrap());
    }
}

/// Whoever changes a value changes every figure's ground: this literal says so.
#[test]
fn the_digest_hangs_on_the_shape_the_precision_and_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let digest = |dtype: &str, seed: u64, name: &str| {
        write(&SMALL, dtype, seed, &folder.path().join(name)).unwrap();
        lock_path("x", &folder.path().join(name)).unwrap().set_digest
    };
    let first = digest("bf16", 1, "one");
    assert_eq!(first, digest("bf16", 1, "two"));
    assert_ne!(first, digest("bf16", 2, "three"));
    assert_ne!(first, digest("f16", 1, "four"));
    assert_eq!(first, "sha256:c96a0ec91a8c24f0a29f753f123215b19cd063248656307822edf9fdc1f65a18");
}

#[test]
fn large_weights_come_in_shards_behind_an_index() {
    let synth = Synth::new(&SMALL, "f32", 0).unwrap();
    let (one, several) = (synth.shards(SHARD_BYTES), synth.shards(20));
    assert_eq!(one.iter().map(|shard| shard.name.as_str()).collect::<Vec<_>>(), ["model.safetensors"]);
    let sizes: Vec<_> = several.iter().map(|shard| (shard.name.as_str(), shard.tensors.len())).collect();
    assert_eq!(
        sizes,
        [
            ("model-00001-of-00003.safetensors", 1),
            ("model-00002-of-00003.safetensors", 1),
            ("model-00003-of-00003.safetensors", 1)
        ]
    );
    let folder = tempfile::tempdir().unwrap();
    synth.write_shards(folder.path(), &several, &mut |_, _| ()).unwrap();
    for (name, text) in synth.files_beside(&several) {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let tensors = SafeTensors::open(folder.path()).unwrap();
    assert_eq!(tensors.tensor("b").unwrap().bytes, synth.bytes("b").unwrap());
    assert_eq!(tensors.tensor("a").unwrap().dtype, DType::F32);
}

const NESTED: Shape = Shape {
    plan: |_| {
        let tensor = |name: &str, shape: Vec<usize>| Tensor { name: name.into(), shape, fill: Fill::NearOne(0.1) };
        Plan {
            files: vec![("index.json", b"{}".to_vec()), ("unet/config.json", b"{}".to_vec())],
            tensors: vec![
                tensor("text/model/a.weight", vec![2, 3]),
                tensor("unet/net/a.weight", vec![2, 3]),
                tensor("unet/net/b.weight", vec![4]),
            ],
        }
    },
    ..SMALL
};

#[test]
fn tensors_stand_in_the_files_that_their_names_begin_with() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("pipeline");
    let written = write(&NESTED, "f32", 0, &to).unwrap();
    assert_eq!(written.files, 4);
    let text = SafeTensors::open(&to.join("text/model.safetensors")).unwrap();
    let unet = SafeTensors::open(&to.join("unet/net.safetensors")).unwrap();
    assert_eq!((text.names().collect(), unet.names().collect()), (vec!["a.weight"], vec!["a.weight", "b.weight"]));
    assert_ne!(text.tensor("a.weight").unwrap().bytes, unet.tensor("a.weight").unwrap().bytes, "files are not alike");
    let synth = Synth::new(&NESTED, "f32", 0).unwrap();
    assert_eq!(unet.tensor("a.weight").unwrap().bytes, synth.bytes("unet/net/a.weight").unwrap());
    let files = synth.files_beside(&synth.shards(24));
    let (index, text) = &files[0];
    assert_eq!(index, "unet/net.safetensors.index.json");
    let index: serde_json::Value = serde_json::from_slice(text).unwrap();
    assert_eq!(index["weight_map"]["b.weight"], "net-00002-of-00002.safetensors");
    assert_eq!(index["metadata"]["total_size"], 40);
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.txt"), "mine").unwrap();
    let PredictError::FixInput(why) = write(&SMALL, "f16", 0, folder.path()).unwrap_err() else { panic!() };
    assert!(why.ends_with("holds something already"), "{why}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(matches!(write(&SMALL, "f16", 0, &folder.path().join("mine.txt")), Err(PredictError::FixInput(_))));
    assert!(write(&SMALL, "f16", 0, tempfile::tempdir().unwrap().path()).is_ok(), "an empty one is as good as none");
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("huge");
    let why = write(&HUGE, "f32", 0, &to).unwrap_err().to_string();
    assert!(why.contains("bytes are needed; the disk has") && why.ends_with("bytes free"), "{why}");
    assert!(!to.exists());
}

#[test]
fn precisions_that_nothing_is_stored_in_are_refused() {
    let why = Synth::new(&SMALL, "fp8", 0).err().unwrap().to_string();
    assert_eq!(why, "dtype fp8: unknown; f32, f16 and bf16 are");
}
