//! Between a prediction and its columns.

use prediction::{Map, Prediction, Request, Status, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::StoreError;

/// A prediction without its request: what events change, in one column.
#[derive(Serialize, Deserialize)]
struct State {
    status: Status,
    output: Option<Value>,
    logs: String,
    error: Option<String>,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    metrics: Map,
    last_seq: u64,
    data_removed: bool,
}

/// The columns of a request: the request without its input, and the input.
pub(super) fn write_request(request: &Request) -> Result<(String, String), StoreError> {
    let input = write(&request.input)?;
    let bare = Request { input: Map::new(), ..request.clone() };
    Ok((write(&bare)?, input))
}

pub(super) fn write_state(prediction: Prediction) -> Result<String, StoreError> {
    let Prediction { request: _, status, output, logs, error, started_at, completed_at, .. } = prediction;
    let Prediction { metrics, last_seq, data_removed, .. } = prediction;
    write(&State { status, output, logs, error, started_at, completed_at, metrics, last_seq, data_removed })
}

/// `input` is none where it was removed or is not needed.
pub(super) fn read(request: &str, state: &str, input: Option<&str>) -> Result<Prediction, StoreError> {
    let mut request: Request = parse(request)?;
    if let Some(input) = input {
        request.input = parse(input)?;
    }
    let State { status, output, logs, error, started_at, completed_at, metrics, last_seq, data_removed } =
        parse(state)?;
    Ok(Prediction { request, status, output, logs, error, started_at, completed_at, metrics, last_seq, data_removed })
}

pub(super) fn write(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|why| StoreError::Broken(why.to_string()))
}

pub(super) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|why| StoreError::Broken(why.to_string()))
}

pub(super) fn unavailable(why: &sqlx::Error) -> StoreError {
    StoreError::Unavailable(why.to_string())
}
