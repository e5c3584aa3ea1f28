//! What is not about predictions or models: who this is, what it runs on, the key that webhooks are signed with.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::header,
    response::IntoResponse,
};
use serde_json::json;

use crate::{
    App,
    errors::{Answer, Problem, json_answer},
    origin::Origin,
};

/// The store's name for the secret that webhooks are signed with.
const WEBHOOK_SECRET: &str = "webhook";

pub async fn account(State(app): State<Arc<App>>) -> Answer {
    let account = &app.api.account;
    Ok(json_answer(&json!({ "type": "user", "username": account.username, "name": account.name })))
}

/// The one list without pages.
pub async fn hardware() -> Answer {
    Ok(json_answer(&json!([{ "sku": "cpu", "name": "CPU" }])))
}

pub async fn webhook_secret(State(app): State<Arc<App>>) -> Answer {
    Ok(json_answer(&json!({ "key": app.api.store.secret(WEBHOOK_SECRET).await? })))
}

pub async fn home(origin: Origin) -> Answer {
    Ok(json_answer(&json!({ "name": "Pinion", "api": origin.api(""), "models": origin.api("/models") })))
}

/// What `urls.web` leads to. It needs no token, so it says nothing about the prediction.
pub async fn web(Path(id): Path<String>, origin: Origin) -> Answer {
    if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(Problem::not_found());
    }
    let get = origin.api(&format!("/predictions/{id}"));
    let text =
        format!("Prediction {id}\n\nWith an API token: curl -H \"Authorization: Bearer $REPLICATE_API_TOKEN\" {get}\n");
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}
