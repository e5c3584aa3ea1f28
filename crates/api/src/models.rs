//! Models and their versions: what is served, in the shapes that clients choose their way by.

use std::{cmp::Reverse, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Method, header},
    response::IntoResponse,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::{
    App, Served, body,
    document::document,
    errors::{Answer, Problem, json_answer},
    origin::Origin,
    page::{Query, page},
    routes,
};

/// Models on one page.
const PAGE_MODELS: usize = 25;
/// Bytes of a search text.
const SEARCH_LIMIT_BYTES: u64 = 16 << 10;
/// Clients compare it: below 0.3.9 they take every list for a growing one.
const COG_VERSION: &str = "0.16.0";

/// GET lists and QUERY searches, on one path. Routers know no QUERY, so the methods are told apart here.
pub async fn list_or_search(
    State(app): State<Arc<App>>,
    method: Method,
    RawQuery(query): RawQuery,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let query = Query::new(query.as_deref());
    match method.as_str() {
        "GET" | "HEAD" => Ok(json_answer(&list(&app, &query, &origin, "")?)),
        "QUERY" => {
            let sent = body::read(&headers, body, SEARCH_LIMIT_BYTES).await?;
            Ok(json_answer(&list(&app, &query, &origin, &search_text(&sent))?))
        }
        _ => Err(routes::wrong_method(&method, "/models")),
    }
}

/// Raw text, or a JSON string whatever the content type says.
fn search_text(sent: &[u8]) -> String {
    serde_json::from_slice::<String>(sent).unwrap_or_else(|_| String::from_utf8_lossy(sent).into_owned())
}

/// Every word must occur somewhere in the name or the description.
fn matches(name: &str, served: &Served, words: &str) -> bool {
    let text = format!("{name} {}", served.description).to_lowercase();
    words.to_lowercase().split_whitespace().all(|word| text.contains(word))
}

fn list(app: &App, query: &Query<'_>, origin: &Origin, words: &str) -> Result<Value, Problem> {
    let mut found: Vec<_> = app.catalog.models().filter(|(name, served)| matches(name, served, words)).collect();
    match query.get("sort_by") {
        // A model here is as old as its one version.
        None | Some("model_created_at" | "latest_version_created_at") => {}
        Some(_) => return Err(query.bad("sort_by", "\"model_created_at\" or \"latest_version_created_at\"")),
    }
    match query.get("sort_direction") {
        None | Some("desc") => found.sort_by_key(|(_, served)| Reverse(served.created_at)),
        Some("asc") => found.sort_by_key(|(_, served)| served.created_at),
        Some(_) => return Err(query.bad("sort_direction", "\"asc\" or \"desc\"")),
    }
    let start = match query.get("cursor") {
        None => 0,
        Some(text) => read_cursor(text).ok_or_else(|| query.bad("cursor", "a cursor of this list"))?,
    };
    let next = start.saturating_add(PAGE_MODELS);
    let models = found.iter().skip(start).take(PAGE_MODELS).map(|(name, served)| model(name, served, origin)).collect();
    let next = (next < found.len()).then(|| write_cursor(next));
    let previous = (start > 0).then(|| write_cursor(start.saturating_sub(PAGE_MODELS)));
    Ok(page(query, origin, "/models", next, previous, models))
}

fn write_cursor(start: usize) -> String {
    URL_SAFE_NO_PAD.encode(format!("o={start}"))
}

fn read_cursor(text: &str) -> Option<usize> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?.strip_prefix("o=")?.parse().ok()
}

pub async fn get(State(app): State<Arc<App>>, Path((owner, name)): Path<(String, String)>, origin: Origin) -> Answer {
    let found = app.catalog.by_name(&format!("{owner}/{name}")).ok_or_else(Problem::not_found)?;
    Ok(json_answer(&model(&found.model, found.served, &origin)))
}

pub async fn readme(State(app): State<Arc<App>>, Path((owner, name)): Path<(String, String)>) -> Answer {
    let found = app.catalog.by_name(&format!("{owner}/{name}")).ok_or_else(Problem::not_found)?;
    let text = readme_text(&found.model, found.served);
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

/// Markdown, from what is known anyway.
fn readme_text(name: &str, served: &Served) -> String {
    let input = |field: &schema::Field| {
        let default = field.default.as_ref().map(|value| format!(", default `{value}`")).unwrap_or_default();
        let required = if field.required() { ", required" } else { "" };
        format!("- `{}`{required}{default}: {}\n", field.name, field.description)
    };
    let inputs: String = served.schema.input.iter().map(input).collect();
    format!("# {name}\n\n{}\n\n## Input\n\n{inputs}\nVersion `{}`\n", served.description, served.version)
}

/// One version per model. It must be listed: one client chooses its way by whether there are any.
pub async fn versions(
    State(app): State<Arc<App>>,
    Path((owner, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    origin: Origin,
) -> Answer {
    let found = app.catalog.by_name(&format!("{owner}/{name}")).ok_or_else(Problem::not_found)?;
    let path = format!("/models/{}/versions", found.model);
    let results = vec![version(&found.version, found.served)];
    Ok(json_answer(&page(&Query::new(query.as_deref()), &origin, &path, None, None, results)))
}

/// By its own id or by a hosted id that is listed for this name; that one is echoed.
pub async fn get_version(
    State(app): State<Arc<App>>,
    Path((owner, name, id)): Path<(String, String, String)>,
) -> Answer {
    let found = app.catalog.version_of(&format!("{owner}/{name}"), &id).ok_or_else(Problem::not_found)?;
    Ok(json_answer(&version(&found.version, found.served)))
}

fn version(id: &str, served: &Served) -> Value {
    json!({
        "id": id,
        "created_at": served.created_at.rfc3339(),
        "cog_version": COG_VERSION,
        "openapi_schema": document(&served.schema),
    })
}

fn model(full_name: &str, served: &Served, origin: &Origin) -> Value {
    let (owner, name) = full_name.split_once('/').unwrap_or(("", full_name));
    json!({
        "url": format!("{}/{full_name}", origin.0),
        "owner": owner,
        "name": name,
        "description": served.description,
        "visibility": "public",
        "is_official": false,
        "github_url": null,
        "paper_url": null,
        "license_url": null,
        "run_count": 0,
        "cover_image_url": null,
        "default_example": null,
        "latest_version": version(&served.version, served),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_text_may_be_raw_or_a_json_string() {
        for (sent, read) in [("llama", "llama"), ("\"llama 3\"", "llama 3"), ("llama \"3", "llama \"3"), ("", "")] {
            assert_eq!(search_text(sent.as_bytes()), read, "{sent}");
        }
    }

    #[test]
    fn a_cursor_is_read_back_and_a_foreign_one_is_refused() {
        assert_eq!(read_cursor(&write_cursor(50)), Some(50));
        for foreign in ["50", "cD0x", "%"] {
            assert_eq!(read_cursor(foreign), None, "{foreign}");
        }
    }
}
