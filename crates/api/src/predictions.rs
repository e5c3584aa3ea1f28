//! Predictions: create, get, list, cancel.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use prediction::{Id, Map, Request, Timestamp};
use schema::Invalid;
use serde_json::Value;
use store::{Cursor, ListQuery};
use tokio::time::Instant;

use crate::{
    App, body,
    catalog::Found,
    envelope::{By, Envelope},
    errors::{Answer, Problem, json_answer},
    options::{self, Wait},
    origin::Origin,
    page::{Query, page},
    present::shown,
    render::render_at,
    stream, wait,
};

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Predictions on one page of the list.
const PAGE_PREDICTIONS: usize = 100;

pub async fn create(State(app): State<Arc<App>>, origin: Origin, headers: HeaderMap, body: Body) -> Answer {
    let sent = body::object(&headers, body, app.api.body_bytes).await?;
    let envelope = Envelope::read(sent, By::Version)?;
    let found = app.catalog.by_version(&envelope.version).ok_or_else(Problem::version)?;
    accept(&app, found, envelope, &headers, origin).await
}

pub async fn create_by_model(
    State(app): State<Arc<App>>,
    Path((owner, name)): Path<(String, String)>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let sent = body::object(&headers, body, app.api.body_bytes).await?;
    let found = app.catalog.by_name(&format!("{owner}/{name}")).ok_or_else(Problem::not_found)?;
    let envelope = Envelope::read(sent, By::Path)?;
    accept(&app, found, envelope, &headers, origin).await
}

async fn accept(app: &App, found: Found<'_>, envelope: Envelope, headers: &HeaderMap, origin: Origin) -> Answer {
    let (began, created_at) = (Instant::now(), Timestamp::now());
    let wait = Wait::of(headers);
    let deadline = options::deadline(headers, created_at)?;
    check(app, &found, &envelope)?;
    let request = Request {
        id: Id::random(),
        model: found.model,
        version: found.version,
        target: found.served.target.clone(),
        input: envelope.input,
        // 32 bits: a seed that is shown can be typed in again, and every language's integers hold it.
        seed: rand::random::<u32>().into(),
        created_at,
        deadline,
        webhook: envelope.webhook,
        webhook_events_filter: envelope.webhook_events_filter,
        origin: origin.0.clone(),
        stream_key: stream::key(found.served.schema.is_files()),
        streams: true,
    };
    let mut prediction = app.api.dispatch.submit(request).await?;
    if let Some(wait) = wait {
        prediction = wait::until_ended(app, prediction, wait, began).await;
    }
    let mut answer =
        (StatusCode::CREATED, json_answer(&shown(app, &prediction, &origin, wait.is_some()).await)).into_response();
    let location = origin.api(&format!("/predictions/{}", prediction.request.id));
    let said = [
        // Creates say the character set, other answers do not: so it was recorded.
        (header::CONTENT_TYPE, Some("application/json; charset=utf-8".to_owned())),
        (header::LOCATION, Some(location)),
        (PREFERENCE_APPLIED, wait.map(Wait::applied)),
    ];
    for (name, text) in said {
        // An origin and a number are plain text, so this holds for all.
        if let Some(Ok(value)) = text.map(|text| HeaderValue::from_str(&text)) {
            answer.headers_mut().insert(name, value);
        }
    }
    Ok(answer)
}

/// The input by the model's own schema, and where its webhooks would go: everything wrong at once.
fn check(app: &App, found: &Found<'_>, envelope: &Envelope) -> Result<(), Problem> {
    let mut errors = found.served.schema.validate(&envelope.input).err().unwrap_or_default();
    if let Some(Err(why)) = envelope.webhook.as_deref().map(|url| webhook::check_url(url, &app.api.webhook_rules)) {
        errors.push(Invalid::new("format", "webhook", why));
    }
    if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(&errors)) }
}

pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>, origin: Origin) -> Answer {
    let prediction = app.api.feed.snapshot(&Id(id)).await?.ok_or_else(Problem::not_found)?;
    Ok(json_answer(&shown(&app, &prediction, &origin, false).await))
}

/// An ended prediction is answered as it is.
pub async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>, origin: Origin) -> Answer {
    let prediction = app.api.dispatch.cancel(&Id(id)).await?.ok_or_else(Problem::not_found)?;
    Ok(json_answer(&shown(&app, &prediction, &origin, false).await))
}

pub async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery, origin: Origin) -> Answer {
    let query = Query::new(query.as_deref());
    let cursor = query.get("cursor");
    let foreign = || query.bad("cursor", "a cursor of this list");
    let wanted = ListQuery {
        cursor: cursor.map(|text| Cursor::decode(text).ok_or_else(foreign)).transpose()?,
        page_size: PAGE_PREDICTIONS,
        created_after: query.moment("created_after")?,
        created_before: query.moment("created_before")?,
    };
    match query.get("source") {
        None => {}
        // Nothing here was made on a web page.
        Some("web") => return Ok(json_answer(&page(&query, &origin, "/predictions", None, None, Vec::new()))),
        Some(_) => return Err(query.bad("source", "\"web\"")),
    }
    let found = app.api.store.list(&wanted).await?;
    let items = found.predictions.iter().map(|prediction| item(render_at(prediction, &origin))).collect();
    let (next, previous) = (found.next.map(|c| c.encode()), found.previous.map(|c| c.encode()));
    Ok(json_answer(&page(&query, &origin, "/predictions", next, previous, items)))
}

/// A list holds no logs: a hundred of them would be megabytes.
fn item(mut prediction: Value) -> Value {
    prediction.as_object_mut().map(|object: &mut Map| object.shift_remove("logs"));
    prediction
}
