//! The Files API: files that callers send, to name them as inputs. Their bytes pass through here in pieces, never whole.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use prediction::Timestamp;
use schema::config::OutputFiles;
use serde_json::{Value, json};
use sha2::Sha256;
use store::{
    Cursor,
    files::{About, File, FileKind},
};

use crate::{
    App, auth, content,
    errors::{Answer, Problem, json_answer},
    origin::Origin,
    page::{Query, page},
    stream, upload,
};

/// Files on one page of the list.
const PAGE_FILES: usize = 100;
/// The store's name for the secret that downloads are signed with; all of its text is the key.
pub const FILES_SECRET: &str = "files";

/// What the API does with files.
#[derive(Clone)]
pub struct FileService {
    pub files: store::files::Files,
    /// Of one upload; a larger one is a 413.
    pub file_bytes: u64,
    /// How long an upload lives.
    pub retention_seconds: u64,
    /// How answers name output files.
    pub outputs: OutputFiles,
}

pub async fn create(State(app): State<Arc<App>>, origin: Origin, headers: HeaderMap, body: Body) -> Answer {
    let service = &app.api.files;
    let sent = upload::read(&headers, body, &service.files, service.file_bytes).await?;
    let about = About {
        kind: FileKind::Upload,
        name: sent.name,
        content_type: sent.content_type,
        metadata: sent.metadata,
        lives_seconds: service.retention_seconds,
    };
    let file = service.files.keep(sent.content, about).await?;
    Ok((StatusCode::CREATED, answer(&described(&file, &origin))).into_response())
}

pub async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery, origin: Origin) -> Answer {
    let query = Query::new(query.as_deref());
    let foreign = || query.bad("cursor", "a cursor of this list");
    let cursor = query.get("cursor").map(|text| Cursor::decode(text).ok_or_else(foreign)).transpose()?;
    let found = app.api.files.files.list(cursor, PAGE_FILES).await?;
    let files = found.files.iter().map(|file| described(file, &origin)).collect();
    let (next, previous) = (found.next.map(|c| c.encode()), found.previous.map(|c| c.encode()));
    Ok(answer(&page(&query, &origin, "/files", next, previous, files)))
}

/// A file's description to who has a token; under the same path, the stream of a model that gives files to who knows its key.
pub async fn get_or_stream(
    state: State<Arc<App>>,
    Path(id): Path<String>,
    origin: Origin,
    headers: HeaderMap,
) -> Answer {
    if stream::is_of_files(&id) {
        return stream::stream(state, Path(id), origin, headers).await;
    }
    auth::allowed(&state, &headers).await?;
    Ok(answer(&described(&find(&state, &id, FileKind::Upload).await?, &origin)))
}

pub async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    find(&app, &id, FileKind::Upload).await?;
    match app.api.files.files.delete(&id).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Problem::file_not_found()),
    }
}

/// The content, to who has a token or an address that was signed.
pub async fn download(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    method: Method,
    headers: HeaderMap,
) -> Answer {
    let query = Query::new(query.as_deref());
    match query.get("signature") {
        Some(signature) => signed(&app, &id, &query, signature).await?,
        None => auth::allowed(&app, &headers).await?,
    }
    content::serve(&app.api.files.files, find(&app, &id, FileKind::Upload).await?, &method, &headers).await
}

/// Everybody who knows its address may read an output, pages of other sites too.
pub async fn output(
    State(app): State<Arc<App>>,
    Path((id, _name)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Answer {
    let file = find(&app, &id, FileKind::Output).await?;
    let mut response = content::serve(&app.api.files.files, file, &method, &headers).await?;
    content::open_to_pages(response.headers_mut());
    Ok(response)
}

/// What a page's browser asks before it asks for a part of an output.
pub async fn output_options() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    content::open_to_pages(response.headers_mut());
    response
}

async fn find(app: &App, id: &str, kind: FileKind) -> Result<File, Problem> {
    let found = app.api.files.files.get(id).await?.filter(|file| file.kind == kind);
    found.ok_or_else(Problem::file_not_found)
}

/// `owner`, `expiry` (Unix seconds) and `signature`: base64 of HMAC-SHA256 of `"{owner} {id} {expiry}"`. Whatever is wrong
/// with them, there is no such file.
async fn signed(app: &App, id: &str, query: &Query<'_>, signature: &str) -> Result<(), Problem> {
    let secret = app.api.store.secret(FILES_SECRET).await?;
    let holds = || {
        let (owner, expiry) = (query.get("owner")?, query.get("expiry")?);
        let fresh = expiry.parse::<i64>().ok()? > Timestamp::now().0 / 1_000_000;
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
        mac.update(format!("{owner} {id} {expiry}").as_bytes());
        // A plus sign that was sent as such arrives as a space.
        let given = STANDARD.decode(signature.replace(' ', "+")).ok()?;
        (fresh && owner == app.api.account.username && mac.verify_slice(&given).is_ok()).then_some(())
    };
    holds().ok_or_else(Problem::file_not_found)
}

fn described(file: &File, origin: &Origin) -> Value {
    json!({
        "id": file.id,
        "name": file.name,
        "content_type": file.content_type,
        "size": file.size,
        "etag": file.md5,
        "checksums": { "sha256": file.sha256, "md5": file.md5 },
        "metadata": file.metadata,
        "created_at": file.created_at.rfc3339(),
        "expires_at": file.expires_at.rfc3339(),
        "urls": { "get": origin.api(&format!("/files/{}", file.id)) },
    })
}

/// The routes of files name the character set, as recorded.
fn answer(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=UTF-8")], json_answer(body)).into_response()
}
