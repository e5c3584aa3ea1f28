//! What is known about a file.

use prediction::{Id, Map, Timestamp, secret_text};
use serde::{Deserialize, Serialize};

use crate::Cursor;

/// As long as the hosted service's delivery ids: 220 random bits. The id is the right to read an output.
const OUTPUT_ID_CHARACTERS: usize = 44;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Sent by a caller, who needs a token to read it.
    Upload,
    /// Made by a model. Whoever knows its id may read it.
    Output,
}

impl FileKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Output => "output",
        }
    }

    pub(super) fn new_id(self) -> String {
        match self {
            Self::Upload => Id::random().0,
            Self::Output => secret_text(OUTPUT_ID_CHARACTERS),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// Unguessable; lower-case letters and digits.
    pub id: String,
    pub kind: FileKind,
    /// For people and for the end of a URL; says nothing about where the content lies.
    pub name: String,
    pub content_type: String,
    /// Bytes.
    pub size: u64,
    /// Hexadecimal, as the next.
    pub sha256: String,
    pub md5: String,
    /// What the sender attached.
    pub metadata: Map,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct FilePage {
    /// Newest first.
    pub files: Vec<File>,
    /// Towards older ones.
    pub next: Option<Cursor>,
    /// Towards newer ones.
    pub previous: Option<Cursor>,
}

/// Begins a reference.
const REFERENCE: &str = "/v1/outputs/";

impl File {
    /// How an output names a stored file: a path that whoever shows it roots where its reader is. The name is one that can
    /// stand in a URL.
    pub fn reference(&self) -> String {
        format!("{REFERENCE}{}/{}", self.id, self.name)
    }
}

/// The id in a reference, if the text is one.
pub fn referred(text: &str) -> Option<&str> {
    let (id, name) = text.strip_prefix(REFERENCE)?.split_once('/')?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    (id.len() == OUTPUT_ID_CHARACTERS && plain(id) && !name.is_empty() && plain(name)).then_some(id)
}
