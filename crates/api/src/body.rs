//! A request body within a limit. Refuses before it reads where the length is announced, and never keeps what is over.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use http_body_util::BodyExt;
use prediction::Map;
use schema::Invalid;
use serde_json::Value;

use crate::errors::Problem;

/// Read and thrown away of a body that is too large, so that the caller gets to read the answer: a connection that is
/// closed in the middle of sending looks like a broken network.
const DRAIN_BYTES: u64 = 512 << 20;
const DRAIN_SECONDS: u64 = 10;

pub async fn read(headers: &HeaderMap, mut body: Body, limit_bytes: u64) -> Result<Vec<u8>, Problem> {
    if announced(headers).is_some_and(|bytes| bytes > limit_bytes) {
        refuse(headers, body).await;
        return Err(Problem::too_large(limit_bytes));
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad_request(format!("The request body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > limit_bytes {
            drop(bytes);
            drain(body).await;
            return Err(Problem::too_large(limit_bytes));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// The length that the caller says the body has.
pub fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Before a refusal of a body that nobody will read. Whoever asks first has not sent anything yet.
pub async fn refuse(headers: &HeaderMap, body: Body) {
    if !headers.contains_key(header::EXPECT) {
        drain(body).await;
    }
}

async fn drain(mut body: Body) {
    let reading = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(DRAIN_SECONDS), reading).await;
}

/// The JSON object that every create sends, whatever the content type says; no body at all is an empty one.
pub async fn object(headers: &HeaderMap, body: Body, limit_bytes: u64) -> Result<Map, Problem> {
    let bytes = read(headers, body, limit_bytes).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    // The error names line and column, and never quotes the body.
    let malformed = |error| Problem::bad_request(format!("The request body is not valid JSON: {error}"));
    match serde_json::from_slice(&bytes).map_err(malformed)? {
        Value::Object(map) => Ok(map),
        other => Err(Problem::invalid(&[Invalid::invalid_type("", "object", &other)])),
    }
}
