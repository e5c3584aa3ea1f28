//! One metadata value. Scalars are read; arrays stay in the file as a place, because a vocabulary has 49,152 strings.

use std::fmt;

/// The element types of metadata, by their id in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

impl Scalar {
    /// Bytes of one element; a string has at least its length prefix.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Numbers(NumberArray),
    Strings(StringArray),
}

/// Numbers (or booleans) in the file: `count` elements from byte `start`.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberArray {
    pub(super) kind: Scalar,
    pub(super) start: usize,
    pub(super) count: usize,
}

/// Strings in the file: where each one's length prefix lies, counted from byte `start`. All are in bounds and UTF-8.
#[derive(Debug, Clone, PartialEq)]
pub struct StringArray {
    pub(super) start: usize,
    pub(super) offsets: Vec<u32>,
}

impl Value {
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Self::Float(value) => Some(*value as f32),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_strings(&self) -> Option<&StringArray> {
        match self {
            Self::Strings(array) => Some(array),
            _ => None,
        }
    }

    pub(super) fn floats(&self, file: &[u8]) -> Option<Vec<f32>> {
        let Self::Numbers(array) = self else { return None };
        let elements = array.elements(file);
        match array.kind {
            Scalar::F32 => Some(elements.map(|b| f32::from_le_bytes(fixed(b))).collect()),
            Scalar::F64 => Some(elements.map(|b| f64::from_le_bytes(fixed(b)) as f32).collect()),
            _ => None,
        }
    }

    pub(super) fn integers(&self, file: &[u8]) -> Option<Vec<i64>> {
        let Self::Numbers(array) = self else { return None };
        let elements = array.elements(file);
        match array.kind {
            Scalar::U8 => Some(elements.map(|b| i64::from(b[0])).collect()),
            Scalar::I8 => Some(elements.map(|b| i64::from(b[0] as i8)).collect()),
            Scalar::U16 => Some(elements.map(|b| i64::from(u16::from_le_bytes(fixed(b)))).collect()),
            Scalar::I16 => Some(elements.map(|b| i64::from(i16::from_le_bytes(fixed(b)))).collect()),
            Scalar::U32 => Some(elements.map(|b| i64::from(u32::from_le_bytes(fixed(b)))).collect()),
            Scalar::I32 => Some(elements.map(|b| i64::from(i32::from_le_bytes(fixed(b)))).collect()),
            Scalar::U64 => elements.map(|b| i64::try_from(u64::from_le_bytes(fixed(b))).ok()).collect(),
            Scalar::I64 => Some(elements.map(|b| i64::from_le_bytes(fixed(b))).collect()),
            Scalar::F32 | Scalar::F64 | Scalar::Bool | Scalar::String => None,
        }
    }
}

impl NumberArray {
    fn elements<'a>(&self, file: &'a [u8]) -> std::slice::ChunksExact<'a, u8> {
        let bytes = self.kind.bytes();
        file[self.start..self.start + self.count * bytes].chunks_exact(bytes)
    }
}

/// How a refusal names what it met.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => write!(f, "the integer {value}"),
            Self::Signed(value) => write!(f, "the integer {value}"),
            Self::Float(value) => write!(f, "the float {value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::String(text) => write!(f, "a string of {} bytes", text.len()),
            Self::Numbers(array) => write!(f, "an array of {} {:?}", array.count, array.kind),
            Self::Strings(array) => write!(f, "an array of {} strings", array.offsets.len()),
        }
    }
}

/// The strings of one array, borrowed from the file.
#[derive(Clone, Copy)]
pub struct Strings<'a> {
    file: &'a [u8],
    array: &'a StringArray,
}

impl<'a> Strings<'a> {
    pub(super) fn new(file: &'a [u8], array: &'a StringArray) -> Self {
        Self { file, array }
    }

    pub fn len(&self) -> usize {
        self.array.offsets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.array.offsets.is_empty()
    }

    /// None past the end.
    pub fn get(&self, index: usize) -> Option<&'a str> {
        let at = self.array.start + *self.array.offsets.get(index)? as usize;
        let length = u64::from_le_bytes(fixed(self.file.get(at..at + 8)?));
        let end = (at + 8).checked_add(usize::try_from(length).ok()?)?;
        // Checked when the file was opened; checked again because the file could have changed under the mapping.
        std::str::from_utf8(self.file.get(at + 8..end)?).ok()
    }

    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        let this = *self;
        (0..self.len()).map(move |index| this.get(index).unwrap_or_default())
    }
}

/// A slice whose length its caller made sure of.
pub(super) fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller took exactly this many bytes")
}
