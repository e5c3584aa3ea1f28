//! The ten routes, and those of ours that cannot be taken for one of them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::routing::{get, post, put};

use super::accept::{self, Kind};
use super::{Face, extras, health};

pub fn router(face: Arc<Face>) -> Router {
    let one = put(put_prediction);
    let one = if face.settings.keep.is_some() { one.get(extras::get) } else { one };
    Router::new()
        .route("/", get(health::root))
        .route("/health-check", get(health::health))
        .route("/openapi.json", get(health::schema))
        .route("/shutdown", post(health::shutdown))
        .route("/predictions", post(create_prediction))
        .route("/predictions/{id}", one)
        .route("/predictions/{id}/cancel", post(accept::cancel))
        .route("/trainings", post(create_training))
        .route("/trainings/{id}", put(put_training))
        .route("/trainings/{id}/cancel", post(accept::cancel))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(extras::metrics))
        .layer(DefaultBodyLimit::max(face.settings.body_bytes))
        .with_state(face)
}

async fn create_prediction(State(face): State<Arc<Face>>, request: Request) -> axum::response::Response {
    accept::create(face, Kind::Prediction, request).await
}

async fn create_training(State(face): State<Arc<Face>>, request: Request) -> axum::response::Response {
    accept::create(face, Kind::Training, request).await
}

async fn put_prediction(
    State(face): State<Arc<Face>>,
    Path(id): Path<String>,
    request: Request,
) -> axum::response::Response {
    accept::put(face, Kind::Prediction, id, request).await
}

async fn put_training(
    State(face): State<Arc<Face>>,
    Path(id): Path<String>,
    request: Request,
) -> axum::response::Response {
    accept::put(face, Kind::Training, id, request).await
}
