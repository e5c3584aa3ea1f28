//! What a refusal looks like: the exact bodies that the hosted service's clients and programs match on.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use dispatch::SubmitError;
use schema::Invalid;
use serde_json::{Value, json};
use store::StoreError;

/// When to come back after a full queue or an unavailable store. One client ignores it and tries again at once, so it
/// is short: a queue that drains is soon free.
pub const RETRY_AFTER_SECONDS: u64 = 5;

/// RFC 7807 as the hosted service writes it: `detail` is always a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub status: StatusCode,
    pub body: Value,
    pub retry_after_seconds: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, body: Value) -> Self {
        Self { status, body, retry_after_seconds: None }
    }

    /// A refusal of ours, where no recorded body exists.
    pub fn titled(status: StatusCode, title: &str, detail: impl Into<String>) -> Self {
        let detail: String = detail.into();
        Self::new(status, json!({ "title": title, "detail": detail, "status": status.as_u16() }))
    }

    pub fn no_token() -> Self {
        Self::titled(StatusCode::UNAUTHORIZED, "Unauthenticated", "You did not pass an authentication token")
    }

    pub fn bad_token() -> Self {
        Self::titled(StatusCode::UNAUTHORIZED, "Unauthenticated", "You did not pass a valid authentication token")
    }

    pub fn foreign_page() -> Self {
        let detail = "A web page of another site asks, and this server is open only to programs of its own machine. \
                      Once it has a token (`pinion token create NAME`), whoever sends the token may call.";
        Self::titled(StatusCode::FORBIDDEN, "Forbidden", detail)
    }

    pub fn not_found() -> Self {
        let detail = "The requested resource could not be found.";
        Self::new(StatusCode::NOT_FOUND, json!({ "detail": detail, "status": 404 }))
    }

    /// A bad version is a 422, not a 404: programs match on this title.
    pub fn version() -> Self {
        let detail = "The specified version does not exist (or perhaps you don't have permission to use it?)";
        Self::titled(StatusCode::UNPROCESSABLE_ENTITY, "Invalid version or not permitted", detail)
    }

    pub fn invalid(errors: &[Invalid]) -> Self {
        let body = json!({
            "detail": schema::detail(errors),
            "status": 422,
            "title": "Input validation failed",
            "invalid_fields": errors,
        });
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, body)
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::titled(StatusCode::BAD_REQUEST, "Bad request", detail)
    }

    pub fn too_large(limit_bytes: u64) -> Self {
        let detail = format!("Request bodies must be at most {} ({limit_bytes} bytes)", mebibytes(limit_bytes));
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, json!({ "detail": detail, "status": 413 }))
    }

    /// The recorded body, which has no status in it.
    pub fn file_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, json!({ "detail": "File not found" }))
    }

    /// The same of a file, in the hosted words.
    pub fn file_too_large(limit_bytes: u64) -> Self {
        let limit = mebibytes(limit_bytes).replace(" MiB", "MB");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            json!({ "detail": format!("Files must be less than {limit} in size") }),
        )
    }

    /// The sentence up to the first full stop is the hosted one: programs search it for `resets in ~(\d+)s`.
    pub fn throttled(why: &str) -> Self {
        let seconds = RETRY_AFTER_SECONDS;
        let detail = format!("Request was throttled. Your rate limit resets in ~{seconds}s. {why}.");
        let body = json!({ "detail": detail, "status": 429, "retry_after": seconds });
        Self { retry_after_seconds: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, body) }
    }

    pub fn unavailable(why: &str) -> Self {
        let problem = Self::titled(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", why);
        Self { retry_after_seconds: Some(RETRY_AFTER_SECONDS), ..problem }
    }

    pub fn internal() -> Self {
        let detail = "Something went wrong in the server; its log has the details.";
        Self::titled(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error", detail)
    }

    /// For what was refused outside our handlers.
    pub fn of_status(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or("Error");
        Self::titled(status, reason, format!("The request was refused: {reason}."))
    }
}

fn mebibytes(bytes: u64) -> String {
    match bytes % (1 << 20) {
        0 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.2} MiB", bytes as f64 / (1 << 20) as f64),
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store refused");
        match error {
            StoreError::Unavailable(_) => {
                Self::unavailable("The store cannot be reached at the moment; please try again.")
            }
            _ => Self::internal(),
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Full { .. } => Self::throttled(&error.to_string()),
            SubmitError::Draining => Self::unavailable("The server is shutting down; please try again."),
            SubmitError::Store(error) => error.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = format!("{}\n", self.body);
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What every handler returns.
pub type Answer = Result<Response, Problem>;

/// A JSON body as every answer writes it: with a line end.
pub fn json_answer(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}
