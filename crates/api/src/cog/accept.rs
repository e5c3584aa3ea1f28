//! Create, attach, cancel. The order of the checks is the real server's: may it stream, is the input right, is the model
//! ready, is there a slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{OptionalFromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use prediction::Map;
use serde_json::json;

use super::envelope::{Envelope, Mode};
use super::refuse::{self, Refusal};
use super::run::{self, Run, Wanted};
use super::webhook::Hook;
use super::{Face, body, stream};

/// What a handler answers; both are answers of this API.
pub type Answer = Result<Response, Refusal>;

/// Predictions and trainings run the same model; only one of them streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Prediction,
    Training,
}

/// A request's headers and its body, which may be none.
pub struct Sent {
    headers: HeaderMap,
    envelope: Envelope,
}

impl Sent {
    /// Without a content type there is no body, whatever follows.
    async fn read(request: Request) -> Result<Self, JsonRejection> {
        let headers = request.headers().clone();
        let body = <Json<Envelope> as OptionalFromRequest<()>>::from_request(request, &()).await?;
        Ok(Self { headers, envelope: body.map(|Json(envelope)| envelope).unwrap_or_default() })
    }
}

pub async fn create(face: Arc<Face>, kind: Kind, request: Request) -> Response {
    match Sent::read(request).await {
        Err(rejection) => rejection.into_response(),
        Ok(sent) => accept(&face, kind, None, sent).await.into_response(),
    }
}

pub async fn put(face: Arc<Face>, kind: Kind, id: String, request: Request) -> Response {
    match Sent::read(request).await {
        Err(rejection) => rejection.into_response(),
        Ok(sent) => accept(&face, kind, Some(id), sent).await.into_response(),
    }
}

pub async fn cancel(State(face): State<Arc<Face>>, Path(id): Path<String>) -> Response {
    let canceled = face.runs.find(&id).map(|run| run.cancel()).is_some();
    let code = if canceled { StatusCode::OK } else { StatusCode::NOT_FOUND };
    (code, Json(json!({}))).into_response()
}

/// `path_id`: of a PUT, which is the same prediction as long as that runs.
async fn accept(face: &Arc<Face>, kind: Kind, path_id: Option<String>, sent: Sent) -> Answer {
    let Sent { headers, mut envelope } = sent;
    let mode = Mode::of(&headers);
    if let (Some(id), Some(own)) = (&path_id, &envelope.id)
        && id != own
    {
        return Err(Refusal::OtherId);
    }
    if mode == Mode::Stream {
        may_stream(face, kind)?;
    }
    if let Some(there) = path_id.as_deref().and_then(|id| face.runs.find(id)) {
        return attach(face, &there, mode);
    }
    let input = known(face, envelope.input()?);
    refuse::check(&face.settings.schema, &input)?;
    let engine = face.ready().ok_or(Refusal::NotReady)?;
    let slot = face.runs.slot(face.setup.capacity()).ok_or(Refusal::Busy)?;
    let idempotent = path_id.is_some();
    let wanted = Wanted {
        id: path_id.or(envelope.id).unwrap_or_else(new_id),
        input,
        hook: envelope.webhook.map(|url| Hook::new(url, envelope.webhook_events_filter, &headers)),
        ends_with_viewers: mode != Mode::Async,
    };
    let run = Run::new(face, engine, &wanted);
    if idempotent {
        if let Err(there) = face.runs.put_if_new(&run) {
            return attach(face, &there, mode);
        }
    } else {
        face.runs.put(&run);
    }
    // From here its caller's going away is noticed.
    let viewer = (mode != Mode::Async).then(|| run.view());
    let mut told = run.watch();
    run::start(face, run.clone(), wanted.hook, slot).await?;
    match (mode, viewer) {
        (Mode::Stream, Some(viewer)) => Ok(stream::answer(face, &run, viewer, stream::From::Start)),
        (Mode::Sync, viewer) => {
            // The sender is there as long as `run` is: this waits for the end.
            let _ = told.wait_for(run::Told::is_over).await;
            drop(viewer);
            let ended = body::whole(&run.id, &told.borrow().prediction);
            Ok(Json(ended).into_response())
        }
        _ => Ok((StatusCode::ACCEPTED, Json(body::accepted(&run.id))).into_response()),
    }
}

/// To one that runs already: its stream from the beginning, or how it stands.
fn attach(face: &Arc<Face>, run: &Arc<Run>, mode: Mode) -> Answer {
    if mode == Mode::Stream {
        if run.viewers.load(Ordering::Relaxed) >= stream::READERS {
            return Err(Refusal::TooManyReaders);
        }
        return Ok(stream::answer(face, run, run.view(), stream::From::History));
    }
    let snapshot = body::whole(&run.id, &run.watch().borrow().prediction);
    Ok((StatusCode::ACCEPTED, Json(snapshot)).into_response())
}

fn may_stream(face: &Face, kind: Kind) -> Result<(), Refusal> {
    match kind {
        Kind::Training => Err(Refusal::NoStreamOfTraining),
        Kind::Prediction if face.settings.schema.streams() => Ok(()),
        Kind::Prediction => Err(Refusal::NotStreaming),
    }
}

/// What the model knows of an input; the rest is dropped and named.
fn known(face: &Face, mut input: Map) -> Map {
    let is_known = |name: &str| face.settings.schema.input.iter().any(|field| field.name == name);
    let unknown: Vec<String> = input.keys().filter(|name| !is_known(name)).cloned().collect();
    if !unknown.is_empty() {
        tracing::warn!(unknown = unknown.join(", "), "inputs that the model does not have are left out");
        input.retain(|name, _| is_known(name));
    }
    input
}

/// As the real server makes them: the nanoseconds since 1970 in hexadecimal.
fn new_id() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("pred_{:x}", since.as_nanos())
}
