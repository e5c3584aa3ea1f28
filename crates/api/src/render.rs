//! The Prediction object: one shape for answers, lists and webhooks, in the recorded order of keys.

use prediction::{Map, Prediction, Timestamp};
use serde_json::{Value, json};

use crate::{origin::Origin, present, stream};

/// URLs are rooted where the prediction was created.
pub fn render(prediction: &Prediction) -> Value {
    render_at(prediction, &Origin(prediction.request.origin.clone()))
}

/// The body of a webhook: what GET answers, with output files as URLs over http too. GET gives the content there because
/// the official clients make files of nothing else; what receives a webhook is no such client but a program that fetches
/// URLs, as the hosted service gives them, from behind a server that takes a body of some hundred kilobytes.
pub fn body(prediction: &Prediction) -> Vec<u8> {
    format!("{}\n", render(prediction)).into_bytes()
}

/// URLs are rooted where the caller asks from.
pub fn render_at(prediction: &Prediction, origin: &Origin) -> Value {
    let request = &prediction.request;
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.into(), value);
    put("id", request.id.as_str().into());
    put("model", request.model.as_str().into());
    put("version", request.version.as_str().into());
    put("input", request.input.clone().into());
    put("logs", if prediction.data_removed { Value::Null } else { prediction.logs.as_str().into() });
    let mut output = prediction.output.clone().unwrap_or_default();
    present::root(&mut output, origin);
    put("output", output);
    put("data_removed", prediction.data_removed.into());
    put("error", prediction.error.clone().into());
    put("source", "api".into());
    put("status", prediction.status.as_str().into());
    put("created_at", request.created_at.rfc3339().into());
    let moments = [
        ("started_at", prediction.started_at),
        ("completed_at", prediction.completed_at),
        ("deadline", request.deadline),
    ];
    for (key, moment) in moments {
        moment.map(Timestamp::rfc3339).map(|moment| put(key, moment.into()));
    }
    if prediction.status.is_terminal() {
        put("metrics", prediction.metrics.clone().into());
    }
    request.webhook.as_deref().map(|url| put("webhook", url.into()));
    request.webhook_events_filter.as_ref().map(|filter| put("webhook_events_filter", json!(filter)));
    put("urls", urls(prediction, origin));
    object.into()
}

/// No value may be null here: one client refuses the whole prediction.
fn urls(prediction: &Prediction, origin: &Origin) -> Value {
    let request = &prediction.request;
    let get = origin.api(&format!("/predictions/{}", request.id));
    let mut urls = Map::new();
    urls.insert("cancel".into(), format!("{get}/cancel").into());
    urls.insert("get".into(), get.into());
    if request.streams {
        urls.insert("stream".into(), origin.api(&stream::path(&request.stream_key)).into());
    }
    urls.insert("web".into(), format!("{}/p/{}", origin.0, request.id).into());
    urls.into()
}
