//! What the container says of itself: where things are, and the OpenAPI document.

use schema::ModelSchema;
use serde_json::{Value, json};

use super::COG_VERSION;
use crate::document;

pub fn root() -> Value {
    json!({
        "cog_version": COG_VERSION,
        "docs_url": "/docs",
        "healthcheck_url": "/health-check",
        "openapi_url": "/openapi.json",
        "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
        "predictions_idempotent_url": "/predictions/{prediction_id}",
        "predictions_url": "/predictions",
        "shutdown_url": "/shutdown",
    })
}

/// The hosted API's document of a version, with the one route that only containers have, and whether predictions stream.
pub fn document(schema: &ModelSchema) -> Value {
    let mut document = document::document(schema);
    document["paths"]["/shutdown"] = json!({ "post": {
        "summary": "Start Shutdown",
        "operationId": "start_shutdown_shutdown_post",
        "responses": { "200": {
            "description": "Successful Response",
            "content": { "application/json": { "schema": { "title": "Response Start Shutdown Shutdown Post" } } },
        } },
    } });
    if schema.streams() {
        document["paths"]["/predictions"]["post"]["x-cog-streaming"] = true.into();
    }
    document
}
