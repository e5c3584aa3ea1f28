//! A small writer of GGUF files, and what the reader says to honest and to hostile ones.

use std::io::Write;

use proptest::prelude::*;

use super::header::read;
use super::*;

struct Writer {
    bytes: Vec<u8>,
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

impl Writer {
    fn new(version: u32, tensors: u64, pairs: u64) -> Self {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(pairs.to_le_bytes());
        Self { bytes }
    }

    fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        text(&mut self.bytes, key.as_bytes());
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self
    }

    fn array(self, key: &str, kind: u32, count: u64, elements: &[u8]) -> Self {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend(count.to_le_bytes());
        value.extend(elements);
        self.pair(key, 9, &value)
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        text(&mut self.bytes, name.as_bytes());
        self.bytes.extend((dimensions.len() as u32).to_le_bytes());
        for size in dimensions {
            self.bytes.extend(size.to_le_bytes());
        }
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(offset.to_le_bytes());
        self
    }

    fn data(mut self, data: &[u8]) -> Vec<u8> {
        while !self.bytes.len().is_multiple_of(32) {
            self.bytes.push(0);
        }
        self.bytes.extend(data);
        self.bytes
    }
}

/// Two tensors, every kind of value, both kinds of array.
fn honest() -> Vec<u8> {
    let mut words = Vec::new();
    for word in ["a", "", "\u{120}Paris"] {
        text(&mut words, word.as_bytes());
    }
    let mut name = Vec::new();
    text(&mut name, b"tiny");
    let f32s: Vec<u8> = [1.0f32, -2.5].iter().flat_map(|f| f.to_le_bytes()).collect();
    let i32s: Vec<u8> = [1i32, -3, 6].iter().flat_map(|i| i.to_le_bytes()).collect();
    let data: Vec<u8> = (0..52).collect();
    Writer::new(3, 2, 10)
        .pair("general.name", 8, &name)
        .pair("block_count", 4, &30u32.to_le_bytes())
        .pair("signed", 11, &(-7i64).to_le_bytes())
        .pair("eps", 6, &1e-5f32.to_le_bytes())
        .pair("wide", 12, &0.25f64.to_le_bytes())
        .pair("yes", 7, &[1])
        .pair("small", 2, &513u16.to_le_bytes())
        .array("tokens", 8, 3, &words)
        .array("scores", 6, 2, &f32s)
        .array("kinds", 5, 3, &i32s)
        .tensor("norm", &[5], 0, 0)
        .tensor("weight", &[32, 1], 3, 32)
        .data(&data)
}

fn refusal(bytes: &[u8]) -> String {
    read(bytes).err().expect("it is refused")
}

#[test]
fn metadata_and_tensors_come_back_as_written() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&honest()).unwrap();
    let gguf = Gguf::open(file.path()).unwrap();
    assert_eq!(gguf.str("general.name").unwrap(), "tiny");
    assert_eq!(gguf.u64("block_count").unwrap(), 30);
    assert_eq!(gguf.u64("small").unwrap(), 513);
    assert_eq!(gguf.f32("eps").unwrap(), 1e-5);
    assert_eq!(gguf.f32("wide").unwrap(), 0.25);
    assert!(gguf.bool("yes").unwrap());
    assert_eq!(gguf.get("signed"), Some(&Value::Signed(-7)));
    assert_eq!(gguf.strings("tokens").unwrap().iter().collect::<Vec<_>>(), ["a", "", "\u{120}Paris"]);
    assert_eq!(gguf.strings("tokens").unwrap().get(3), None);
    assert_eq!(gguf.floats("scores").unwrap(), [1.0, -2.5]);
    assert_eq!(gguf.integers("kinds").unwrap(), [1, -3, 6]);

    let weight = gguf.tensor("weight").unwrap();
    assert_eq!((weight.kind, weight.shape), (GgmlType::Q4_1, &[1usize, 32][..]));
    assert_eq!(weight.bytes, (32..52).collect::<Vec<u8>>());
    assert_eq!(gguf.tensor("norm").unwrap().bytes.len(), 20);
    gguf.advise_drop("weight");
    gguf.advise_drop_all();
    assert_eq!(gguf.tensor("weight").unwrap().bytes[0], 32);
}

#[test]
fn what_is_missing_or_of_another_type_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&honest()).unwrap();
    let gguf = Gguf::open(file.path()).unwrap();
    let said = |result: Result<u64, PredictError>| result.unwrap_err().to_string();
    assert!(said(gguf.u64("nope")).ends_with("metadata nope is missing"));
    assert!(
        said(gguf.u64("general.name"))
            .ends_with("metadata general.name is a string of 4 bytes, expected an unsigned integer")
    );
    assert!(said(gguf.u64("signed")).ends_with("metadata signed is the integer -7, expected an unsigned integer"));
    assert!(
        gguf.tensor("output").err().unwrap().to_string().ends_with("tensor output is missing (2 others are there)")
    );
    assert!(gguf.floats("tokens").is_err() && gguf.integers("scores").is_err() && gguf.strings("kinds").is_err());
}

#[test]
fn an_empty_file_and_a_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Gguf::open(folder.path()).err().unwrap().to_string().contains("is not a file"));
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert!(Gguf::open(empty.path()).err().unwrap().to_string().contains("is empty (0 bytes)"));
}

#[test]
fn hostile_headers_are_refused_with_field_value_and_limit() {
    let big = u64::MAX;
    let one = |writer: Writer| writer.data(&[0; 64]);
    let table: Vec<(Vec<u8>, &str)> = vec![
        (b"GGML....".to_vec(), "not with \"GGUF\""),
        (one(Writer::new(1, 0, 0)), "version is 1; 2 and 3 are read"),
        (one(Writer::new(3u32.swap_bytes(), 0, 0)), "big-endian"),
        (one(Writer::new(3, big, 0)), "tensor_count is 18446744073709551615; at most"),
        (one(Writer::new(3, 0, big)), "metadata_kv_count is 18446744073709551615; at most"),
        (one(Writer::new(3, 0, 1).pair("k", 13, &[])), "metadata k: its type is 13"),
        (one(Writer::new(3, 0, 1).pair("k", 7, &[2])), "a boolean is 2"),
        (
            one(Writer::new(3, 0, 1).pair("k", 8, &big.to_le_bytes())),
            "its length is 18446744073709551615 bytes; at most",
        ),
        (
            one(Writer::new(3, 0, 1).pair("k", 8, &1000u64.to_le_bytes())),
            "metadata k: needs 1000 bytes at byte 45, but the file has",
        ),
        (one(Writer::new(3, 0, 1).array("k", 4, big, &[])), "count of metadata k is 18446744073709551615; at most"),
        (one(Writer::new(3, 0, 1).array("k", 9, 1, &[])), "an array inside an array"),
        (one(Writer::new(3, 0, 1).array("k", 8, 1, &[3, 0, 0, 0, 0, 0, 0, 0, 255, 254, 253])), "string 0: not UTF-8"),
        (one(Writer::new(3, 0, 2).pair("k", 0, &[1]).pair("k", 0, &[1])), "metadata key k appears twice"),
        (
            one(Writer::new(3, 0, 1).pair("general.alignment", 4, &33u32.to_le_bytes())),
            "general.alignment is the integer 33",
        ),
        (
            one(Writer::new(3, 0, 1).pair("general.alignment", 4, &0u32.to_le_bytes())),
            "general.alignment is the integer 0",
        ),
        (one(Writer::new(3, 1, 0).tensor("t", &[], 0, 0)), "tensor t: it has 0 dimensions; 1 to 4"),
        (one(Writer::new(3, 1, 0).tensor("t", &[1; 5], 0, 0)), "tensor t: it has 5 dimensions"),
        (one(Writer::new(3, 1, 0).tensor("t", &[0, 4], 0, 0)), "one of its dimensions is 0"),
        (one(Writer::new(3, 1, 0).tensor("t", &[big, 2], 0, 0)), "overflows; the file has"),
        (one(Writer::new(3, 1, 0).tensor("t", &[big / 4], 0, 0)), "need more bytes than there are"),
        (one(Writer::new(3, 1, 0).tensor("t", &[33], 3, 0)), "rows of 33 elements are not whole Q4_1 blocks of 32"),
        (one(Writer::new(3, 1, 0).tensor("t", &[4], 23, 0)), "tensor t: ggml type 23 (IQ4_XS)"),
        (one(Writer::new(3, 1, 0).tensor("t", &[4], 0, 7)), "offset 7 is not a multiple of the alignment 32"),
        (
            one(Writer::new(3, 1, 0).tensor("t", &[4], 0, 64)),
            "tensor t: offset 64 + 16 bytes, counted from byte 64, ends past the file's end; the file has 128 bytes",
        ),
        (one(Writer::new(3, 1, 0).tensor("t", &[4], 0, big - 31)), "ends past the file's end"),
        (one(Writer::new(3, 2, 0).tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 0)), "tensor t appears twice"),
    ];
    for (bytes, expected) in table {
        let said = refusal(&bytes);
        assert!(said.contains(expected), "{said}\n  should contain: {expected}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let whole = honest();
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
    }
}

#[test]
fn tensors_may_overlap() {
    let bytes = Writer::new(2, 2, 0).tensor("a", &[4], 0, 0).tensor("b", &[4], 0, 0).data(&[1; 16]);
    assert_eq!(read(&bytes).unwrap().tensors.len(), 2);
}

/// Whatever is accepted can be read to its end.
fn read_everything(bytes: &[u8]) {
    let Ok(header) = read(bytes) else { return };
    for value in header.metadata.values() {
        let _ = (value.to_string(), value.floats(bytes), value.integers(bytes));
        if let Some(array) = value.as_strings() {
            assert_eq!(Strings::new(bytes, array).iter().count(), array.offsets.len());
        }
    }
    for place in header.tensors.values() {
        assert_eq!(bytes[place.start..place.start + place.len].len(), place.len);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_mutated_header_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = honest();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        read_everything(&bytes);
    }

    #[test]
    fn a_large_number_anywhere_never_panics(at in any::<prop::sample::Index>(), number in prop_oneof![Just(u64::MAX), Just(1 << 63), Just(u64::from(u32::MAX)), any::<u64>()], cut in any::<prop::sample::Index>()) {
        let mut bytes = honest();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        read_everything(&bytes);
        read_everything(&bytes[..cut.index(bytes.len())]);
    }

    #[test]
    fn noise_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_everything(&bytes);
        bytes.splice(0..0, *b"GGUF\x03\0\0\0");
        read_everything(&bytes);
    }
}
