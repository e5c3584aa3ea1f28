//! `/health-check`: always a 200, always at once. And what is asked beside it: the root, the schema, the shutdown.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use prediction::{Map, Timestamp};
use serde_json::{Value, json};

use super::setup::{Report, Stage};
use super::{COG_VERSION, Face, describe};

pub async fn health(State(face): State<Arc<Face>>) -> Json<Value> {
    let report = face.setup.report();
    let status = status(&face, report.stage);
    if status == "READY"
        && let Some(path) = face.settings.ready_file.clone()
    {
        // Not waited for: health answers at once, whatever the disk does.
        tokio::task::spawn_blocking(move || leave(&path));
    }
    let mut version = Map::new();
    version.insert("coglet".into(), COG_VERSION.into());
    version.insert("pinion".into(), env!("CARGO_PKG_VERSION").into());
    if let Some(engine) = face.engine.get() {
        version.insert("model".into(), engine.version.as_str().into());
    }
    Json(json!({ "status": status, "setup": setup(&report), "version": version }))
}

/// BUSY only when every slot is taken.
fn status(face: &Face, stage: Stage) -> &'static str {
    match stage {
        Stage::Starting => "STARTING",
        // Loaded, and what hands it predictions is a moment behind.
        Stage::Ready if face.ready().is_none() => "STARTING",
        Stage::Ready if face.runs.taken() >= face.runs.slots(face.setup.capacity()) => "BUSY",
        Stage::Ready => "READY",
        Stage::Failed => "SETUP_FAILED",
        Stage::Defunct => "DEFUNCT",
    }
}

fn setup(report: &Report) -> Value {
    let status = match report.stage {
        Stage::Starting => "starting",
        Stage::Ready => "succeeded",
        Stage::Failed | Stage::Defunct => "failed",
    };
    let mut setup = Map::new();
    setup.insert("started_at".into(), report.began.rfc3339().into());
    report.completed.map(Timestamp::rfc3339).map(|moment| setup.insert("completed_at".into(), moment.into()));
    setup.insert("status".into(), status.into());
    if !report.logs.is_empty() {
        setup.insert("logs".into(), report.logs.as_str().into());
    }
    setup.into()
}

fn leave(path: &std::path::Path) {
    if path.exists() {
        return;
    }
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, ""));
    if let Err(error) = made {
        tracing::debug!(path = %path.display(), %error, "the file that says ready could not be made");
    }
}

pub async fn root() -> Json<Value> {
    Json(describe::root())
}

/// Known before the model is loaded, and said so.
pub async fn schema(State(face): State<Arc<Face>>) -> Json<Value> {
    Json(describe::document(&face.settings.schema))
}

pub async fn shutdown(State(face): State<Arc<Face>>) -> Json<Value> {
    face.shutdown.notify_one();
    Json(json!({}))
}

/// Of no Cog: whether it takes predictions, as a status code.
pub async fn readyz(State(face): State<Arc<Face>>) -> Response {
    let status = status(&face, face.setup.stage());
    let ready = matches!(status, "READY" | "BUSY");
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "status": status }))).into_response()
}
