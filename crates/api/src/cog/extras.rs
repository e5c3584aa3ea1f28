//! What no Cog container has: figures for Prometheus, and, where it was asked for, what became of a prediction.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prediction::{Prediction, Status};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::setup::Stage;
use super::{Face, body};

/// Ended predictions that are kept at most.
const KEPT: usize = 1024;

impl Face {
    /// Counts it, and keeps it for a while where that was asked for.
    pub fn note_end(&self, id: &str, prediction: &Prediction) {
        self.runs.count(|counts| {
            match prediction.status {
                Status::Succeeded => counts.succeeded += 1,
                Status::Failed => counts.failed += 1,
                _ => counts.canceled += 1,
            }
            counts.predict_seconds += prediction.metrics.get("predict_time").and_then(Value::as_f64).unwrap_or(0.0);
        });
        if let Some(keep) = self.settings.keep {
            let mut ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            while ended.len() >= KEPT || ended.front().is_some_and(|(at, ..)| at.elapsed() > keep) {
                ended.pop_front();
            }
            ended.push_back((Instant::now(), id.to_owned(), prediction.clone()));
        }
    }

    /// The latest that ended under this id and is still kept.
    fn kept(&self, id: &str) -> Option<Value> {
        let keep = self.settings.keep?;
        let mut ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while ended.front().is_some_and(|(at, ..)| at.elapsed() > keep) {
            ended.pop_front();
        }
        ended.iter().rev().find(|(_, known, _)| known == id).map(|(_, id, prediction)| body::whole(id, prediction))
    }
}

pub async fn get(State(face): State<Arc<Face>>, Path(id): Path<String>) -> Response {
    let runs = face.runs.find(&id).map(|run| body::whole(&id, &run.watch().borrow().prediction));
    match runs.or_else(|| face.kept(&id)) {
        Some(body) => Json(body).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({}))).into_response(),
    }
}

/// The text format of Prometheus.
pub async fn metrics(State(face): State<Arc<Face>>) -> Response {
    let counts = face.runs.counts();
    let slots = face.runs.slots(face.setup.capacity());
    let ready = u8::from(face.setup.stage() == Stage::Ready);
    let waiting = face.engine.get().map_or(0, |engine| engine.dispatch.health().waiting);
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: &[(&str, String)]| {
        text += &format!("# HELP pinion_cog_{name} {help}\n# TYPE pinion_cog_{name} {kind}\n");
        lines.iter().for_each(|(labels, value)| text += &format!("pinion_cog_{name}{labels} {value}\n"));
    };
    let by_outcome = [
        (r#"{outcome="succeeded"}"#, counts.succeeded.to_string()),
        (r#"{outcome="failed"}"#, counts.failed.to_string()),
        (r#"{outcome="canceled"}"#, counts.canceled.to_string()),
    ];
    family("predictions_total", "counter", "Predictions that have ended.", &by_outcome);
    family("refused_busy_total", "counter", "Requests that found no slot.", &[("", counts.refused_busy.to_string())]);
    family("predict_seconds_total", "counter", "Time in the model.", &[("", counts.predict_seconds.to_string())]);
    family("slots", "gauge", "Predictions at once.", &[("", slots.to_string())]);
    family("slots_taken", "gauge", "Slots that are taken.", &[("", face.runs.taken().to_string())]);
    family("waiting", "gauge", "Accepted and not inside the model.", &[("", waiting.to_string())]);
    family("ready", "gauge", "Whether the model takes predictions.", &[("", ready.to_string())]);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
