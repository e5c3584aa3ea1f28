//! Files written by the safetensors crate and by hand, honest and hostile.

use proptest::prelude::*;
use safetensors::tensor::TensorView;

use super::*;

fn bytes(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.to_string(), TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn refusal(path: &Path) -> String {
    SafeTensors::open(path).err().expect("it is refused").to_string()
}

#[test]
fn tensors_come_by_name_from_a_file_and_from_its_folder() {
    let data: Vec<u8> = (0..24).collect();
    let files = folder(&[("model.safetensors", &bytes(&[("w", Dtype::F16, &[3, 4], &data)])), ("config.json", b"{}")]);
    for path in [files.path().to_owned(), files.path().join("model.safetensors")] {
        let tensors = SafeTensors::open(&path).unwrap();
        let w = tensors.tensor("w").unwrap();
        assert_eq!((w.dtype, w.shape, w.bytes), (DType::F16, &[3usize, 4][..], &data[..]));
        assert!(tensors.has("w") && !tensors.has("v"));
        assert!(tensors.tensor("v").err().unwrap().text().ends_with("tensor v is missing (1 others are there)"));
        tensors.advise_drop("w");
        assert_eq!(tensors.tensor("w").unwrap().bytes, data);
    }
}

#[test]
fn a_part_of_a_file_is_a_file_of_its_own() {
    let part = bytes(&[("w", Dtype::U8, &[3], &[1, 2, 3])]);
    let whole = [&[9; 700][..], &part, &[9; 5]].concat();
    let files = folder(&[("archive", &whole)]);
    let path = files.path().join("archive");
    let range = 700..700 + part.len() as u64;
    let tensors = SafeTensors::open_part(&path, range.clone(), "w.safetensors").unwrap();
    assert_eq!(tensors.tensor("w").unwrap().bytes, [1, 2, 3]);
    tensors.advise_drop("w");
    assert_eq!(tensors.tensor("w").unwrap().bytes, [1, 2, 3]);
    for (range, expected) in [
        (range.start..range.end + 5, "w.safetensors: not a usable safetensors file of"),
        (range.start..range.end + 6, "w.safetensors: lies at bytes"),
        (700..700, "w.safetensors: lies at bytes 700..700"),
    ] {
        let said = SafeTensors::open_part(&path, range, "w.safetensors").err().unwrap();
        assert!(said.text().starts_with(expected), "{said}");
    }
}

#[test]
fn a_slice_along_any_dimension_is_what_it_says() {
    // [2, 3, 2] of u8, so that an element is its own number.
    let data: Vec<u8> = (0..12).collect();
    let files = folder(&[("m.safetensors", &bytes(&[("w", Dtype::U8, &[2, 3, 2], &data)]))]);
    let tensors = SafeTensors::open(files.path()).unwrap();
    let slice = |dim, range| tensors.slice("w", dim, range).map(Cow::into_owned);
    assert_eq!(slice(0, 1..2).unwrap(), [6, 7, 8, 9, 10, 11]);
    assert_eq!(slice(1, 1..3).unwrap(), [2, 3, 4, 5, 8, 9, 10, 11]);
    assert_eq!(slice(2, 0..1).unwrap(), [0, 2, 4, 6, 8, 10]);
    assert!(slice(1, 2..2).unwrap().is_empty());
    assert!(matches!(tensors.slice("w", 0, 0..1).unwrap(), Cow::Borrowed(_)));
    assert!(slice(1, 2..4).unwrap_err().text().contains("of shape [2, 3, 2] has no 2..4 in dimension 1"));
    assert!(slice(3, 0..1).unwrap_err().text().contains("in dimension 3"));
}

#[test]
fn shards_are_read_through_their_index() {
    let one = bytes(&[("a", Dtype::U8, &[2], &[1, 2])]);
    let two = bytes(&[("b", Dtype::U8, &[1], &[3])]);
    let index = br#"{"metadata": {"total_size": 3}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
    let files = folder(&[("1.safetensors", &one), ("2.safetensors", &two), ("model.safetensors.index.json", index)]);
    let tensors = SafeTensors::open(files.path()).unwrap();
    assert_eq!(tensors.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(tensors.tensor("b").unwrap().bytes, [3]);
}

#[test]
fn the_index_of_a_variant_is_one_too() {
    let one = bytes(&[("a", Dtype::U8, &[2], &[1, 2])]);
    let index = br#"{"weight_map": {"a": "m.fp16-00001-of-00001.safetensors"}}"#;
    let files = folder(&[("m.safetensors.index.fp16.json", index), ("m.fp16-00001-of-00001.safetensors", &one)]);
    let tensors = SafeTensors::open(&files.path().join("m.safetensors.index.fp16.json")).unwrap();
    assert_eq!(tensors.tensor("a").unwrap().bytes, [1, 2]);
    fs::write(files.path().join("m.json"), index).unwrap();
    assert!(refusal(&files.path().join("m.json")).contains("not a usable safetensors file"));
}

#[test]
fn an_index_that_lies_is_refused() {
    let one = bytes(&[("a", Dtype::U8, &[2], &[1, 2])]);
    for (map, expected) in [
        (r#"{"a": "../1.safetensors"}"#, "points out of its folder: \"../1.safetensors\""),
        (r#"{"a": "/etc/passwd"}"#, "points out of its folder"),
        (r#"{"a": ""}"#, "points out of its folder"),
        (r#"{}"#, "names 0 shards; 1 to 1024"),
        (r#"{"a": "1.safetensors", "b": "1.safetensors"}"#, "says that b is in 1.safetensors, and it is not"),
        (r#"{"a": "3.safetensors"}"#, "3.safetensors: No such file"),
        (r#"{"a": 1}"#, "invalid type"),
    ] {
        let index = format!(r#"{{"weight_map": {map}}}"#);
        let files = folder(&[("1.safetensors", &one), ("model.safetensors.index.json", index.as_bytes())]);
        let said = refusal(files.path());
        assert!(said.contains(expected), "{said}\n  should contain: {expected}");
    }
}

#[test]
fn a_folder_without_safetensors_says_what_it_has() {
    let files = folder(&[("pytorch_model.bin", b"PK\x03\x04")]);
    assert!(refusal(files.path()).contains("only pytorch_model.bin, a Python pickle"));
    assert!(refusal(&files.path().join("pytorch_model.bin")).contains("is a Python pickle"));
    assert!(refusal(folder(&[]).path()).contains("has no safetensors file"));
    let twice = bytes(&[("a", Dtype::U8, &[1], &[1])]);
    let files = folder(&[("1.safetensors", &twice), ("2.safetensors", &twice)]);
    assert!(refusal(files.path()).contains("tensor a is also in"));
}

#[test]
fn a_header_that_does_not_fit_its_file_is_refused() {
    let good = bytes(&[("a", Dtype::F32, &[2], &[0; 8])]);
    let by_hand = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let table = [
        (good[..good.len() - 1].to_vec(), "a cut end"),
        ([&good[..], &[0]].concat(), "a byte too many"),
        (good[..5].to_vec(), "no header"),
        (u64::MAX.to_le_bytes().to_vec(), "a header of 2^64 bytes"),
        (by_hand(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4), "a size that is not the shape's"),
        (by_hand(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8), "a gap"),
        (
            by_hand(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, 0),
            "a product that overflows",
        ),
        (by_hand(r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4), "an unknown type"),
    ];
    for (bytes, what) in table {
        let files = folder(&[("m.safetensors", &bytes)]);
        let said = refusal(files.path());
        assert!(said.contains(&format!("not a usable safetensors file of {} bytes", bytes.len())), "{what}: {said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_mutated_file_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let mut bytes = bytes(&[("a", Dtype::F32, &[2], &[0; 8]), ("b", Dtype::U8, &[3], &[0; 3])]);
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        for length in [bytes.len(), cut.index(bytes.len())] {
            let files = folder(&[("m.safetensors", &bytes[..length])]);
            if let Ok(tensors) = SafeTensors::open(files.path()) {
                let names: Vec<String> = tensors.names().map(str::to_owned).collect();
                for name in names {
                    let _ = tensors.tensor(&name).map(|tensor| tensor.bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
                    let _ = tensors.slice(&name, 0, 0..1);
                }
            }
        }
    }
}
