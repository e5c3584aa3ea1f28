//! CTranslate2's model file, mapped: a header per variable, then its values; variables by name. A file may come in parts
//! that are read as one (packages have size limits); only a variable that lies across a border is copied.
//!
//! Every size is checked against the files when they are opened. Knows nothing of what a variable means.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::DType;
use prediction::PredictError;

use crate::Origin;
use crate::map::Mapped;

/// The layout this module reads; other versions wrote other headers.
const VERSION: u32 = 6;
/// A Whisper has about two thousand variables.
const MAX_VARIABLES: u32 = 1 << 20;
const MAX_RANK: u8 = 8;

pub struct Ct2 {
    parts: Vec<Mapped>,
    /// What the file calls its architecture, e.g. `WhisperSpec`.
    spec: String,
    variables: BTreeMap<String, Place>,
}

/// `range` counts through all parts.
struct Place {
    kind: Kind,
    shape: Vec<usize>,
    range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    F32,
    I8,
    I16,
    I32,
    F16,
    BF16,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        [Self::F32, Self::I8, Self::I16, Self::I32, Self::F16, Self::BF16].get(usize::from(number)).copied()
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::I8 => 1,
        }
    }

    /// None for the integers of quantised files.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::I8 | Self::I16 | Self::I32 => None,
        }
    }
}

/// One variable, row-major.
#[derive(Debug, Clone)]
pub struct Variable<'a> {
    pub kind: Kind,
    pub shape: &'a [usize],
    pub bytes: Cow<'a, [u8]>,
}

impl Ct2 {
    /// A folder's `model.bin`, or its `model.bin.part1`, `.part2`, …
    pub fn in_folder(folder: &Path) -> Option<Vec<PathBuf>> {
        let whole = folder.join("model.bin");
        if whole.is_file() {
            return Some(vec![whole]);
        }
        let parts = (1..).map(|n| folder.join(format!("model.bin.part{n}"))).take_while(|part| part.is_file());
        Some(parts.collect::<Vec<_>>()).filter(|parts| !parts.is_empty())
    }

    /// One file, or its parts in their order.
    pub fn open(paths: &[PathBuf]) -> Result<Self, PredictError> {
        let parts = paths.iter().map(|path| Mapped::open(path)).collect::<Result<Vec<_>, _>>()?;
        let name = paths.first().map(|path| path.display().to_string()).unwrap_or_default();
        let refuse = |why: String| PredictError::Operator(format!("{name}: {why}"));
        let mut reader = Reader { parts: &parts, at: 0, len: parts.iter().map(|part| part.len()).sum() };
        let (spec, variables) = reader.file().map_err(refuse)?;
        Ok(Self { parts, spec, variables })
    }

    pub fn origin(&self) -> Origin {
        Origin::Files(self.parts.iter().map(Mapped::identity).collect())
    }

    pub fn spec(&self) -> &str {
        &self.spec
    }

    pub fn has(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }

    /// Sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    pub fn variable(&self, name: &str) -> Result<Variable<'_>, PredictError> {
        let place = self.variables.get(name).ok_or_else(|| {
            let path = self.parts.first().map(|part| part.path().display().to_string()).unwrap_or_default();
            let others = self.variables.len();
            PredictError::Operator(format!("{path}: variable {name} is missing ({others} others are there)"))
        })?;
        Ok(Variable { kind: place.kind, shape: &place.shape, bytes: bytes(&self.parts, place.range.clone()) })
    }

    /// Every variable is wanted soon: the disk may begin.
    pub fn read_ahead(&self) {
        crate::map::read_ahead(&self.parts);
    }

    /// The variable was taken over: its pages need not stay in memory.
    pub fn advise_drop(&self, name: &str) {
        let Some(place) = self.variables.get(name) else { return };
        let mut start = 0;
        for part in &self.parts {
            let end = start + part.len();
            let (from, to) = (place.range.start.clamp(start, end), place.range.end.clamp(start, end));
            part.advise_drop(from - start..to - start);
            start = end;
        }
    }
}

/// A range through all parts; borrowed where one part holds it.
fn bytes(parts: &[Mapped], range: Range<usize>) -> Cow<'_, [u8]> {
    let mut copy = Vec::new();
    let mut start = 0;
    for part in parts {
        let end = start + part.len();
        if range.start >= start && range.end <= end {
            return Cow::Borrowed(&part[range.start - start..range.end - start]);
        }
        let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
        copy.extend_from_slice(&part[from - start..to - start]);
        start = end;
    }
    Cow::Owned(copy)
}

struct Reader<'a> {
    parts: &'a [Mapped],
    at: usize,
    len: usize,
}

impl Reader<'_> {
    fn file(&mut self) -> Result<(String, BTreeMap<String, Place>), String> {
        let version = self.u32()?;
        if version != VERSION {
            return Err(format!("begins with version {version}; CTranslate2's version {VERSION} is read"));
        }
        let spec = self.string()?;
        let _revision = self.u32()?;
        let count = self.u32()?;
        if count > MAX_VARIABLES {
            return Err(format!("claims {count} variables; at most {MAX_VARIABLES} are read"));
        }
        let mut variables = BTreeMap::new();
        for _ in 0..count {
            let name = self.string()?;
            let place = self.place().map_err(|why| format!("variable {name}: {why}"))?;
            variables.insert(name, place);
        }
        for _ in 0..self.u32()? {
            // Which variables serve under a second name: models know that by themselves.
            self.string()?;
            self.string()?;
        }
        if self.at != self.len {
            return Err(format!("has {} bytes behind its end", self.len - self.at));
        }
        Ok((spec, variables))
    }

    fn place(&mut self) -> Result<Place, String> {
        let rank = self.take(1)?[0];
        if rank > MAX_RANK {
            return Err(format!("has {rank} dimensions; at most {MAX_RANK} are read"));
        }
        let shape = (0..rank).map(|_| Ok(self.u32()? as usize)).collect::<Result<Vec<_>, String>>()?;
        let number = self.take(1)?[0];
        let kind = Kind::of(number).ok_or_else(|| format!("is of type {number}, which is not known"))?;
        let size = self.u32()? as usize;
        let wanted = shape.iter().try_fold(kind.bytes(), |size, &dim| size.checked_mul(dim));
        if wanted != Some(size) {
            return Err(format!("of shape {shape:?} and type {kind:?} has {size} bytes"));
        }
        let start = self.at;
        self.skip(size)?;
        Ok(Place { kind, shape, range: start..self.at })
    }

    fn skip(&mut self, size: usize) -> Result<(), String> {
        let end = self.at.checked_add(size).filter(|&end| end <= self.len);
        self.at =
            end.ok_or_else(|| format!("ends after {} bytes, in the middle of something: it was cut", self.len))?;
        Ok(())
    }

    fn take(&mut self, size: usize) -> Result<Cow<'_, [u8]>, String> {
        let start = self.at;
        self.skip(size)?;
        Ok(bytes(self.parts, start..self.at))
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Its length counts the NUL at its end.
    fn string(&mut self) -> Result<String, String> {
        let length = self.take(2)?;
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        let bytes = self.take(length)?;
        let text = bytes.strip_suffix(&[0]).ok_or("a name has no end")?;
        String::from_utf8(text.to_vec()).map_err(|_| "a name is not text".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u16 + 1).to_le_bytes(), text.as_bytes(), &[0]].concat()
    }

    fn file() -> Vec<u8> {
        let mut bytes = [6u32.to_le_bytes().to_vec(), string("WhisperSpec"), 3u32.to_le_bytes().to_vec()].concat();
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(string("heads"));
        bytes.extend([0, 2]);
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(8i16.to_le_bytes());
        bytes.extend(string("w"));
        bytes.push(2);
        bytes.extend([2u32.to_le_bytes(), 3u32.to_le_bytes()].concat());
        bytes.push(0);
        bytes.extend(24u32.to_le_bytes());
        bytes.extend((0..6).flat_map(|i| (i as f32).to_le_bytes()));
        bytes.extend(1u32.to_le_bytes());
        bytes.extend([string("v"), string("w")].concat());
        bytes
    }

    fn open(parts: &[&[u8]]) -> Result<Ct2, PredictError> {
        let folder = tempfile::tempdir().unwrap();
        for (n, part) in parts.iter().enumerate() {
            std::fs::write(folder.path().join(format!("model.bin.part{}", n + 1)), part).unwrap();
        }
        Ct2::open(&Ct2::in_folder(folder.path()).unwrap())
    }

    #[test]
    fn variables_are_read_wherever_the_file_was_cut() {
        let file = file();
        for cut in 1..file.len() {
            let ct2 = open(&[&file[..cut], &file[cut..]]).unwrap();
            assert_eq!((ct2.spec(), ct2.names().collect::<Vec<_>>()), ("WhisperSpec", vec!["heads", "w"]));
            let w = ct2.variable("w").unwrap();
            assert_eq!((w.kind, w.shape), (Kind::F32, &[2, 3][..]));
            let expected: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
            assert_eq!(*w.bytes, expected, "cut at {cut}");
            ct2.advise_drop("w");
        }
        let whole = open(&[&file]).unwrap();
        assert!(matches!(whole.variable("w").unwrap().bytes, Cow::Borrowed(_)));
        assert!(whole.variable("x").unwrap_err().text().contains("variable x is missing (2 others"));
    }

    #[test]
    fn what_was_cut_or_altered_is_refused() {
        let file = file();
        for cut in 1..file.len() {
            assert!(open(&[&file[..cut]]).is_err(), "cut at {cut}");
        }
        for (altered, expected) in [
            ([&file[..], &[0]].concat(), "1 bytes behind its end"),
            ([&[7], &file[1..]].concat(), "version 7; CTranslate2's version 6 is read"),
        ] {
            let error = open(&[&altered]).err().unwrap();
            assert!(error.text().contains(expected), "{error}");
        }
    }
}
