//! What a refusal looks like here: the bodies of the real server, and its validator's words for what our own checks found.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use prediction::Map;
use schema::{Field, Invalid, ModelSchema};
use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// The body's `id` is not the path's.
    OtherId,
    Input(Vec<Wrong>),
    NotStreaming,
    NoStreamOfTraining,
    NotReady,
    Busy,
    TooManyReaders,
    Broken,
}

/// One thing that is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wrong {
    pub field: String,
    pub message: String,
    pub missing: bool,
}

impl Refusal {
    fn body(&self) -> (StatusCode, Value) {
        let failed = |code, error: &str| (code, json!({ "error": error, "status": "failed" }));
        let only = |code, error: &str| (code, json!({ "error": error }));
        match self {
            Self::OtherId => {
                let message = "prediction ID must match the ID supplied in the URL";
                let detail = json!({ "loc": ["body", "id"], "msg": message, "type": "value_error" });
                (StatusCode::UNPROCESSABLE_ENTITY, json!({ "detail": [detail] }))
            }
            Self::Input(wrong) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                json!({ "detail": wrong.iter().map(Wrong::detail).collect::<Vec<_>>() }),
            ),
            Self::NotStreaming => only(
                StatusCode::NOT_ACCEPTABLE,
                "This model does not support streaming responses. Add @cog.streaming to predict() to enable SSE.",
            ),
            Self::NoStreamOfTraining => {
                only(StatusCode::NOT_ACCEPTABLE, "Training endpoints do not support streaming responses.")
            }
            Self::NotReady => failed(
                StatusCode::SERVICE_UNAVAILABLE,
                "Setup has not finished yet. Wait until it has finished, or GET /health-check for status.",
            ),
            Self::Busy => failed(StatusCode::CONFLICT, "At capacity - all prediction slots busy"),
            Self::TooManyReaders => only(StatusCode::TOO_MANY_REQUESTS, "Too many stream subscribers"),
            Self::Broken => failed(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Something went wrong in the server; its log has the details.",
            ),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, body) = self.body();
        (code, Json(body)).into_response()
    }
}

impl Wrong {
    fn detail(&self) -> Value {
        let kind = if self.missing { "value_error.missing" } else { "value_error" };
        json!({ "loc": ["body", "input", self.field], "msg": self.message, "type": kind })
    }
}

/// The input by the model's schema: everything wrong at once, in the order of the names.
pub fn check(schema: &ModelSchema, input: &Map) -> Result<(), Refusal> {
    let Err(errors) = schema.validate(input) else { return Ok(()) };
    let mut wrong: Vec<Wrong> = errors.iter().map(|error| in_its_words(schema, input, error)).collect();
    wrong.sort();
    Err(Refusal::Input(wrong))
}

/// What our check found, said as the real server's validator says it.
fn in_its_words(schema: &ModelSchema, input: &Map, error: &Invalid) -> Wrong {
    if error.kind == "required" {
        let name = error.description.strip_suffix(" is required").unwrap_or(&error.description);
        return Wrong { field: name.to_owned(), message: "Field required".into(), missing: true };
    }
    let name = error.field.strip_prefix("input.").unwrap_or(&error.field);
    let value = input.get(name).cloned().unwrap_or_default();
    let field = schema.input.iter().find(|field| field.name == name);
    let message = field.and_then(|field| words(field, &value, error.kind)).unwrap_or_else(|| error.description.clone());
    Wrong { field: name.to_owned(), message, missing: false }
}

fn words(field: &Field, value: &Value, kind: &str) -> Option<String> {
    let characters = |count: usize| if count == 1 { "character" } else { "characters" };
    Some(match kind {
        "invalid_type" => format!("{value} is not of type \"{}\"", field.kind.json_type()),
        "number_gte" => format!("{value} is less than the minimum of {}", field.min.as_ref()?),
        "number_lte" => format!("{value} is greater than the maximum of {}", field.max.as_ref()?),
        "enum" => format!("{value} is not one of {}", json!(field.choices)),
        "string_gte" => format!("{value} is shorter than {0} {1}", field.min_len?, characters(field.min_len?)),
        "string_lte" => format!("{value} is longer than {0} {1}", field.max_len?, characters(field.max_len?)),
        "format" => format!("{value} is not a \"uri\""),
        _ => return None,
    })
}
