//! Reads the header of a GGUF file and believes none of it: every count, length, offset and product is checked against
//! the file's size before it is used. Layout (little-endian): magic, u32 version, u64 tensors, u64 metadata pairs, the
//! pairs, the tensor table, padding to the alignment, then the data that the table's offsets count from.

use std::collections::BTreeMap;

use super::kind::GgmlType;
use super::value::{NumberArray, Scalar, StringArray, Value, fixed};

const MAX_TENSORS: u64 = 100_000;
const MAX_METADATA_PAIRS: u64 = 100_000;
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_TENSOR_NAME_BYTES: u64 = 1_024;
const MAX_STRING_BYTES: u64 = 64 << 20;
/// Offsets of an array's strings are kept in 32 bits.
const MAX_STRING_ARRAY_BYTES: usize = u32::MAX as usize;
const MAX_DIMENSIONS: u32 = 4;
const MAX_ALIGNMENT_BYTES: u64 = 1 << 20;
const DEFAULT_ALIGNMENT_BYTES: u64 = 32;
/// The least a pair takes: an empty key's length, a type, one byte.
const MIN_PAIR_BYTES: u64 = 13;
/// The least a table row takes: an empty name's length, dimensions, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 32;

pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies: `start..start + len` is inside the file.
#[derive(Debug)]
pub(super) struct Place {
    pub kind: GgmlType,
    /// Outermost first.
    pub shape: Vec<usize>,
    pub start: usize,
    pub len: usize,
}

pub(super) fn read(file: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { file, at: 0 };
    let magic = cursor.take(4, &"the magic")?;
    if magic != b"GGUF" {
        return Err(format!("it begins with {magic:02x?}, not with \"GGUF\""));
    }
    match cursor.u32(&"version")? {
        2 | 3 => {}
        swapped @ (0x0200_0000 | 0x0300_0000) => {
            return Err(format!("it is big-endian (version reads {swapped:#010x}); only little-endian files are read"));
        }
        other => return Err(format!("version is {other}; 2 and 3 are read")),
    }
    let tensors = cursor.count("tensor_count", MAX_TENSORS, MIN_TENSOR_BYTES)?;
    let pairs = cursor.count("metadata_kv_count", MAX_METADATA_PAIRS, MIN_PAIR_BYTES)?;

    let mut metadata = BTreeMap::new();
    for index in 0..pairs {
        let key = cursor.string(&format_args!("key of metadata pair {index}"), MAX_KEY_BYTES)?.to_owned();
        let value = cursor.value(&key)?;
        if metadata.contains_key(&key) {
            return Err(format!("metadata key {key} appears twice"));
        }
        metadata.insert(key, value);
    }

    let alignment = alignment(&metadata)?;
    let mut rows = Vec::with_capacity(tensors);
    for index in 0..tensors {
        rows.push(cursor.row(index)?);
    }
    let data_start = (cursor.at as u64).next_multiple_of(alignment);

    let mut places = BTreeMap::new();
    for row in rows {
        let place = row.place(data_start, alignment, file.len() as u64)?;
        if places.contains_key(&row.name) {
            return Err(format!("tensor {} appears twice", row.name));
        }
        places.insert(row.name, place);
    }
    Ok(Header { metadata, tensors: places })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, String> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT_BYTES) };
    match value.as_u64() {
        Some(bytes) if bytes.is_power_of_two() && bytes <= MAX_ALIGNMENT_BYTES => Ok(bytes),
        _ => Err(format!("general.alignment is {value}, expected a power of two of at most {MAX_ALIGNMENT_BYTES}")),
    }
}

/// A row of the tensor table as written, innermost dimension first.
struct Row {
    name: String,
    dimensions: Vec<u64>,
    kind: GgmlType,
    offset: u64,
}

impl Row {
    fn place(&self, data_start: u64, alignment: u64, file_bytes: u64) -> Result<Place, String> {
        let Self { name, dimensions, kind, offset } = self;
        let limit = format!("the file has {file_bytes} bytes");
        let elements = dimensions
            .iter()
            .try_fold(1u64, |product, &size| product.checked_mul(size))
            .ok_or_else(|| format!("tensor {name}: the product of its dimensions {dimensions:?} overflows; {limit}"))?;
        let block = kind.block_elements() as u64;
        if dimensions[0] % block != 0 {
            return Err(format!(
                "tensor {name}: rows of {} elements are not whole {kind} blocks of {block}",
                dimensions[0]
            ));
        }
        let len =
            (elements / block).checked_mul(kind.block_bytes() as u64).filter(|&len| len <= file_bytes).ok_or_else(
                || format!("tensor {name}: {dimensions:?} elements of {kind} need more bytes than there are; {limit}"),
            )?;
        if offset % alignment != 0 {
            return Err(format!("tensor {name}: offset {offset} is not a multiple of the alignment {alignment}"));
        }
        let start = data_start.checked_add(*offset);
        let end = start.and_then(|start| start.checked_add(len)).filter(|&end| end <= file_bytes);
        let (Some(start), Some(_)) = (start, end) else {
            return Err(format!(
                "tensor {name}: offset {offset} + {len} bytes, counted from byte {data_start}, ends past the file's end; {limit} (truncated?)"
            ));
        };
        let shape = dimensions.iter().rev().map(|&size| size as usize).collect();
        Ok(Place { kind: *kind, shape, start: start as usize, len: len as usize })
    }
}

/// What is being read, for the refusal; only formatted then.
type What<'a> = &'a dyn std::fmt::Display;

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    fn take(&mut self, bytes: usize, what: What) -> Result<&'a [u8], String> {
        if bytes > self.left() {
            return Err(format!(
                "{what}: needs {bytes} bytes at byte {}, but the file has {} bytes (truncated?)",
                self.at,
                self.file.len()
            ));
        }
        let taken = &self.file[self.at..self.at + bytes];
        self.at += bytes;
        Ok(taken)
    }

    fn u32(&mut self, what: What) -> Result<u32, String> {
        Ok(u32::from_le_bytes(fixed(self.take(4, what)?)))
    }

    fn u64(&mut self, what: What) -> Result<u64, String> {
        Ok(u64::from_le_bytes(fixed(self.take(8, what)?)))
    }

    /// A count of things that take at least `least` bytes each: more than fit into the rest of the file is a lie.
    fn count(&mut self, what: &str, limit: u64, least: u64) -> Result<usize, String> {
        let count = self.u64(&what)?;
        let fit = self.left() as u64 / least;
        if count > limit || count > fit {
            let limit = limit.min(fit);
            return Err(format!("{what} is {count}; at most {limit} fit into a file of {} bytes", self.file.len()));
        }
        Ok(count as usize)
    }

    fn string(&mut self, what: What, limit: u64) -> Result<&'a str, String> {
        let length = self.u64(&format_args!("length of {what}"))?;
        if length > limit {
            return Err(format!("{what}: its length is {length} bytes; at most {limit}"));
        }
        let bytes = self.take(length as usize, what)?;
        std::str::from_utf8(bytes).map_err(|e| format!("{what}: not UTF-8 at its byte {}", e.valid_up_to()))
    }

    fn value(&mut self, key: &str) -> Result<Value, String> {
        let what: What = &format_args!("metadata {key}");
        match self.u32(&format_args!("type of metadata {key}"))? {
            9 => self.array(key),
            id => Ok(match scalar(id, key)? {
                Scalar::U8 => Value::Unsigned(self.take(1, what)?[0].into()),
                Scalar::I8 => Value::Signed((self.take(1, what)?[0] as i8).into()),
                Scalar::U16 => Value::Unsigned(u16::from_le_bytes(fixed(self.take(2, what)?)).into()),
                Scalar::I16 => Value::Signed(i16::from_le_bytes(fixed(self.take(2, what)?)).into()),
                Scalar::U32 => Value::Unsigned(self.u32(what)?.into()),
                Scalar::I32 => Value::Signed((self.u32(what)? as i32).into()),
                Scalar::F32 => Value::Float(f32::from_bits(self.u32(what)?).into()),
                Scalar::U64 => Value::Unsigned(self.u64(what)?),
                Scalar::I64 => Value::Signed(self.u64(what)? as i64),
                Scalar::F64 => Value::Float(f64::from_bits(self.u64(what)?)),
                Scalar::String => Value::String(self.string(what, MAX_STRING_BYTES)?.to_owned()),
                Scalar::Bool => match self.take(1, what)?[0] {
                    0 => Value::Bool(false),
                    1 => Value::Bool(true),
                    other => return Err(format!("{what}: a boolean is {other}; 0 and 1 are")),
                },
            }),
        }
    }

    fn array(&mut self, key: &str) -> Result<Value, String> {
        let kind = scalar(self.u32(&format_args!("element type of metadata {key}"))?, key)?;
        let count = self.count(&format!("count of metadata {key}"), u64::MAX, kind.bytes() as u64)?;
        let start = self.at;
        if kind != Scalar::String {
            self.take(count * kind.bytes(), &format_args!("metadata {key}"))?;
            return Ok(Value::Numbers(NumberArray { kind, start, count }));
        }
        let mut offsets = Vec::with_capacity(count);
        for index in 0..count {
            let offset = u32::try_from(self.at - start)
                .map_err(|_| format!("metadata {key}: its strings take more than {MAX_STRING_ARRAY_BYTES} bytes"))?;
            offsets.push(offset);
            self.string(&format_args!("metadata {key}, string {index}"), MAX_STRING_BYTES)?;
        }
        Ok(Value::Strings(StringArray { start, offsets }))
    }

    fn row(&mut self, index: usize) -> Result<Row, String> {
        let name = self.string(&format_args!("name of tensor {index}"), MAX_TENSOR_NAME_BYTES)?.to_owned();
        let what: What = &format_args!("tensor {name}");
        let count = self.u32(what)?;
        if count == 0 || count > MAX_DIMENSIONS {
            return Err(format!("tensor {name}: it has {count} dimensions; 1 to {MAX_DIMENSIONS}"));
        }
        let mut dimensions = Vec::with_capacity(count as usize);
        for _ in 0..count {
            match self.u64(what)? {
                0 => return Err(format!("tensor {name}: one of its dimensions is 0; at least 1")),
                size => dimensions.push(size),
            }
        }
        let kind = GgmlType::from_id(self.u32(what)?).map_err(|why| format!("tensor {name}: {why}"))?;
        Ok(Row { dimensions, kind, offset: self.u64(what)?, name })
    }
}

fn scalar(id: u32, key: &str) -> Result<Scalar, String> {
    const KINDS: [Scalar; 9] = [
        Scalar::U8,
        Scalar::I8,
        Scalar::U16,
        Scalar::I16,
        Scalar::U32,
        Scalar::I32,
        Scalar::F32,
        Scalar::Bool,
        Scalar::String,
    ];
    match id {
        0..=8 => Ok(KINDS[id as usize]),
        9 => Err(format!("metadata {key}: an array inside an array; only arrays of scalars and strings are read")),
        10 => Ok(Scalar::U64),
        11 => Ok(Scalar::I64),
        12 => Ok(Scalar::F64),
        other => Err(format!("metadata {key}: its type is {other}; 0 to 12 exist")),
    }
}
