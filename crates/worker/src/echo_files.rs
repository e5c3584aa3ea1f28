//! Files as the echo model takes and gives them: read from where they lie, given as data URIs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use prediction::{Output, PredictError};
use serde_json::json;
use sha2::{Digest, Sha256};

/// `5 bytes, sha256 2cf2…` of the file that a `file://` URI names.
pub fn described(uri: &str) -> Result<String, PredictError> {
    let refuse = |why: String| PredictError::FixInput(format!("file: {uri:?}: {why}"));
    let path = uri.strip_prefix("file://").ok_or_else(|| refuse("is not here".to_owned()))?;
    let path = PathBuf::from(OsString::from_vec(percent_decode_str(path).collect()));
    let bytes = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    Ok(format!("{} bytes, sha256 {}", bytes.len(), hex::encode(Sha256::digest(&bytes))))
}

/// The words in files: one, a list of two, two one after the other, or one inside an object.
pub fn given(how: &str, content_type: &str, words: &str) -> Vec<Output> {
    let file = || format!("data:{content_type},{}", utf8_percent_encode(words, NON_ALPHANUMERIC));
    match how {
        "one" => vec![Output::Whole(file().into())],
        "list" => vec![Output::Whole(json!([file(), file()]))],
        "each" => vec![Output::Item(file().into()), Output::Item(file().into())],
        _ => vec![Output::Whole(json!({ "text": words, "text_file": file() }))],
    }
}

/// A file that grows while it is read.
pub struct Followed {
    path: String,
    /// Bytes that were news already.
    read: usize,
}

impl Followed {
    pub fn new(path: String) -> Self {
        Self { path, read: 0 }
    }

    /// The whole lines that have come since the last time.
    pub fn news(&mut self) -> Option<String> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let whole = text.rfind('\n')? + 1;
        let news = text.get(self.read..whole).filter(|news| !news.is_empty())?.to_owned();
        self.read = whole;
        Some(news)
    }
}
