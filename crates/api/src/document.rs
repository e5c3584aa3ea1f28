//! A version's OpenAPI document, as Cog publishes it: clients and pages read inputs, choices and the kind of output here.

use prediction::Map;
use schema::ModelSchema;
use serde_json::{Value, json};

pub fn document(schema: &ModelSchema) -> Value {
    json!({
        "openapi": "3.0.2",
        "info": { "title": "Cog", "version": "0.1.0" },
        "paths": paths(),
        "components": { "schemas": components(schema) },
    })
}

fn components(schema: &ModelSchema) -> Map {
    let mut all = Map::new();
    all.insert("Input".into(), schema.input_json());
    all.insert("Output".into(), schema.output_json());
    all.extend(schema.choices_json());
    let statuses = ["starting", "processing", "succeeded", "canceled", "failed"];
    all.insert("Status".into(), enumeration("Status", &statuses));
    all.insert("WebhookEvent".into(), enumeration("WebhookEvent", &["start", "output", "logs", "completed"]));
    all.insert("PredictionRequest".into(), object("PredictionRequest", request()));
    all.insert("PredictionResponse".into(), object("PredictionResponse", response()));
    let detail = json!({ "type": "array", "title": "Detail", "items": component("ValidationError") });
    all.insert("HTTPValidationError".into(), object("HTTPValidationError", json!({ "detail": detail })));
    all.insert("ValidationError".into(), validation_error());
    all
}

fn component(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn enumeration(title: &str, values: &[&str]) -> Value {
    json!({ "type": "string", "enum": values, "title": title, "description": "An enumeration." })
}

fn object(title: &str, properties: Value) -> Value {
    json!({ "type": "object", "title": title, "properties": properties })
}

fn text(title: &str) -> Value {
    json!({ "type": "string", "title": title, "nullable": true })
}

fn moment(title: &str) -> Value {
    json!({ "type": "string", "title": title, "format": "date-time", "nullable": true })
}

fn nullable(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}"), "nullable": true })
}

fn request() -> Value {
    json!({
        "id": text("Id"),
        "input": nullable("Input"),
        "created_at": moment("Created At"),
        "webhook": {
            "type": "string", "title": "Webhook", "format": "uri", "minLength": 1, "maxLength": 65536, "nullable": true,
        },
        "webhook_events_filter": {
            "type": "array",
            "items": component("WebhookEvent"),
            "default": ["start", "output", "logs", "completed"],
            "nullable": true,
        },
    })
}

fn response() -> Value {
    json!({
        "id": text("Id"),
        "input": nullable("Input"),
        "output": component("Output"),
        "logs": { "type": "string", "title": "Logs", "default": "" },
        "error": text("Error"),
        "status": nullable("Status"),
        "version": text("Version"),
        "created_at": moment("Created At"),
        "started_at": moment("Started At"),
        "completed_at": moment("Completed At"),
        "metrics": { "type": "object", "title": "Metrics", "additionalProperties": true, "nullable": true },
    })
}

fn validation_error() -> Value {
    let place = json!({ "anyOf": [{ "type": "string" }, { "type": "integer" }] });
    json!({
        "type": "object",
        "title": "ValidationError",
        "required": ["loc", "msg", "type"],
        "properties": {
            "loc": { "type": "array", "title": "Location", "items": place },
            "msg": { "type": "string", "title": "Message" },
            "type": { "type": "string", "title": "Error Type" },
        },
    })
}

/// The routes of a Cog container. Here they say what the model takes and gives; the hosted API's own routes lead to it.
fn paths() -> Value {
    let answers = |schema: Value| json!({ "200": answer("Successful Response", schema) });
    let checked = |schema: Value| {
        json!({
            "200": answer("Successful Response", schema),
            "422": answer("Validation Error", component("HTTPValidationError")),
        })
    };
    let id = json!({
        "in": "path", "name": "prediction_id", "schema": { "type": "string", "title": "Prediction ID" }, "required": true,
    });
    let prefer = json!({
        "in": "header", "name": "prefer", "schema": { "type": "string", "title": "Prefer" }, "required": false,
    });
    let body = json!({ "content": { "application/json": { "schema": component("PredictionRequest") } } });
    json!({
        "/": { "get": {
            "summary": "Root", "operationId": "root__get", "responses": answers(json!({ "title": "Response Root  Get" })),
        } },
        "/health-check": { "get": {
            "summary": "Healthcheck",
            "operationId": "healthcheck_health_check_get",
            "responses": answers(json!({ "title": "Response Healthcheck Health Check Get" })),
        } },
        "/predictions": { "post": {
            "summary": "Predict",
            "description": "Run a single prediction on the model",
            "operationId": "predict_predictions_post",
            "parameters": [prefer],
            "requestBody": body,
            "responses": checked(component("PredictionResponse")),
        } },
        "/predictions/{prediction_id}": { "put": {
            "summary": "Predict Idempotent",
            "description": "Run a single prediction on the model (idempotent creation).",
            "operationId": "predict_idempotent_predictions__prediction_id__put",
            "parameters": [id, prefer],
            "requestBody": body,
            "responses": checked(component("PredictionResponse")),
        } },
        "/predictions/{prediction_id}/cancel": { "post": {
            "summary": "Cancel",
            "description": "Cancel a running prediction",
            "operationId": "cancel_predictions__prediction_id__cancel_post",
            "parameters": [id],
            "responses": checked(json!({ "title": "Response Cancel Predictions  Prediction Id  Cancel Post" })),
        } },
    })
}

fn answer(description: &str, schema: Value) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}
