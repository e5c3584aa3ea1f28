//! A multipart form with a file in it, in every shape that clients send: parts in any order, `metadata` as text, as a part
//! of type JSON, or as one field for each key. Memory: one piece, whatever the file's size.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use multer::{Field, Multipart};
use prediction::Map;
use schema::Invalid;
use serde_json::Value;
use store::files::{Files, Incoming};

use crate::{body, errors::Problem};

/// What a form may hold beside its file, boundaries and all.
const FORM_BYTES: u64 = 1 << 20;
/// Of one part that is not the file.
const TEXT_BYTES: usize = 64 << 10;
/// A file's name, by the contract.
const NAME_BYTES: usize = 255;
/// After a file that is too large, how long the rest of it is read and thrown away, so that its sender gets to read why.
const DRAIN_SECONDS: u64 = 10;

const UNTYPED: &str = "application/octet-stream";

pub struct Sent {
    pub content: Incoming,
    pub name: String,
    pub content_type: String,
    pub metadata: Map,
}

/// What came beside the content.
#[derive(Default)]
struct Texts {
    filename: Option<String>,
    content_type: Option<String>,
    metadata: Map,
}

pub async fn read(headers: &HeaderMap, body: Body, files: &Files, limit_bytes: u64) -> Result<Sent, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|_| not_a_form(kind))?;
    if body::announced(headers).is_some_and(|bytes| bytes > limit_bytes.saturating_add(FORM_BYTES)) {
        body::refuse(headers, body).await;
        return Err(Problem::file_too_large(limit_bytes));
    }
    let mut form = Multipart::new(body.into_data_stream(), boundary);
    let (mut texts, mut file) = (Texts::default(), None);
    while let Some(mut part) = form.next_field().await.map_err(broken)? {
        let name = part.name().unwrap_or_default().to_owned();
        if name == "content" {
            let (named, typed) = (part.file_name().map(str::to_owned), part.content_type().map(ToString::to_string));
            file = Some((content(&mut part, files, limit_bytes).await?, named, typed));
        } else {
            texts.read(&name, part).await?;
        }
    }
    let Some((content, named, typed)) = file else {
        return Err(Problem::invalid(&[Invalid::required("", "content")]));
    };
    let name = texts.filename.or(named).filter(|name| !name.is_empty()).unwrap_or_else(|| "file".to_owned());
    if name.len() > NAME_BYTES {
        return Err(Problem::invalid(&[Invalid::too_long("filename", NAME_BYTES)]));
    }
    let content_type =
        texts.content_type.or(typed).filter(|kind| is_header(kind)).unwrap_or_else(|| UNTYPED.to_owned());
    Ok(Sent { content, name, content_type, metadata: texts.metadata })
}

async fn content(part: &mut Field<'_>, files: &Files, limit_bytes: u64) -> Result<Incoming, Problem> {
    let mut content = files.receive().await?;
    while let Some(piece) = part.chunk().await.map_err(broken)? {
        if content.size() + piece.len() as u64 > limit_bytes {
            drop(content);
            let rest = async { while let Ok(Some(_)) = part.chunk().await {} };
            let _ = tokio::time::timeout(Duration::from_secs(DRAIN_SECONDS), rest).await;
            return Err(Problem::file_too_large(limit_bytes));
        }
        content.write(&piece).await?;
    }
    Ok(content)
}

impl Texts {
    async fn read(&mut self, name: &str, mut part: Field<'_>) -> Result<(), Problem> {
        let mut bytes = Vec::new();
        while let Some(piece) = part.chunk().await.map_err(broken)? {
            if bytes.len() + piece.len() > TEXT_BYTES {
                return Err(Problem::invalid(&[Invalid::too_long(name, TEXT_BYTES)]));
            }
            bytes.extend_from_slice(&piece);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match name {
            "filename" => self.filename = Some(text),
            "type" => self.content_type = Some(text),
            "metadata" => self.metadata = metadata(&text)?,
            name => {
                // One client sends a field for each key; what else there may be is nobody's business.
                if let Some(key) = name.strip_prefix("metadata[").and_then(|rest| rest.strip_suffix(']')) {
                    self.metadata.insert(key.to_owned(), text.into());
                }
            }
        }
        Ok(())
    }
}

fn metadata(text: &str) -> Result<Map, Problem> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Problem::invalid(&[Invalid::invalid_type("metadata", "object", &other)])),
        Err(error) => {
            Err(Problem::invalid(&[Invalid::new("format", "metadata", format!("is not valid JSON: {error}"))]))
        }
    }
}

/// It is said back as a header.
fn is_header(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES && axum::http::HeaderValue::from_str(text).is_ok()
}

fn not_a_form(kind: &str) -> Problem {
    let detail = format!("A file is sent as multipart/form-data with a part named content, not as {kind:?}.");
    Problem::titled(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", detail)
}

fn broken(error: multer::Error) -> Problem {
    Problem::bad_request(format!("The form is not valid multipart/form-data: {error}"))
}
