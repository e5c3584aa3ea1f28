//! The stream of one prediction: everything from the first event, then what comes, then `done`.
//!
//! The path is the right to read it, so there is no token here: clients open it without one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use prediction::{Id, Outcome, Prediction, Status, Timestamp, secret_text};
use store::feed::Reader;
use tokio::time::{Instant, timeout_at};

use crate::{
    App,
    errors::{Answer, Problem},
    origin::Origin,
    present::shown_event,
    sse::{self, Frame, Framer},
};

/// Silence is broken this often: one client gives up after 30 s without a byte.
const PING_SECONDS: u64 = 10;

/// As long as the hosted service's stream paths: 260 random bits.
const KEY_CHARACTERS: usize = 52;
const TAG_CHARACTERS: usize = 4;

/// A new key. That of a model whose output is files has a tag before it: one client makes files of all it reads under
/// `/v1/files/`, and of nothing else.
pub fn key(of_files: bool) -> String {
    let key = secret_text(KEY_CHARACTERS);
    if of_files { format!("{}-{key}", secret_text(TAG_CHARACTERS)) } else { key }
}

/// Whether it is the key of a stream of files. No file's id has a hyphen.
pub fn is_of_files(key: &str) -> bool {
    key.contains('-')
}

/// The API path of a stream.
pub fn path(key: &str) -> String {
    let folder = if is_of_files(key) { "files" } else { "streams" };
    format!("/{folder}/{key}")
}

pub async fn stream(
    State(app): State<Arc<App>>,
    Path(key): Path<String>,
    origin: Origin,
    headers: HeaderMap,
) -> Answer {
    let id = app.api.store.by_stream_key(&key).await?.ok_or_else(Problem::not_found)?;
    let seen = sse::last_seen(headers.get("last-event-id").and_then(|value| value.to_str().ok()));
    let reader = app.api.feed.follow(&id, sse::resume_after(seen)).await?.ok_or_else(Problem::not_found)?;
    let framer = Framer::default();
    let follower =
        Follower { app, id, origin, reader, framer, seen, ready: VecDeque::from([sse::HELLO.to_owned()]), done: false };
    let body = stream::unfold(follower, |mut follower| async {
        let chunk = follower.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(chunk)), follower))
    });
    Ok(answer(Body::from_stream(body)))
}

fn answer(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // Proxies of one kind hold an answer back otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

struct Follower {
    app: Arc<App>,
    id: Id,
    origin: Origin,
    reader: Reader,
    framer: Framer,
    /// The last frame that the caller has.
    seen: u64,
    ready: VecDeque<String>,
    done: bool,
}

impl Follower {
    /// The next piece of the body; none closes it.
    async fn next(&mut self) -> Option<String> {
        // Counted in bytes, not in events: what waits or loads says much in its logs, and none of it goes out here.
        let ping_at = Instant::now() + Duration::from_secs(PING_SECONDS);
        loop {
            if let Some(text) = self.ready.pop_front() {
                return Some(text);
            }
            if self.done {
                return None;
            }
            match timeout_at(ping_at, self.reader.next()).await {
                Err(_) => return Some(sse::PING.to_owned()),
                Ok(Some(event)) => {
                    self.done = matches!(event.event, prediction::Event::Ended(_));
                    let event = shown_event(&self.app, event, &self.origin).await;
                    let frames = self.framer.frames(&event);
                    self.say(frames);
                }
                // The events were removed, or the caller had them all: the end is said from what is kept.
                Ok(None) => {
                    self.done = true;
                    let kept = self.app.api.feed.snapshot(&self.id).await;
                    self.say(kept.ok().flatten().as_ref().map_or_else(Vec::new, how_it_ended));
                }
            }
        }
    }

    /// What the caller has seen is left out; the end is always said, whatever id was sent.
    fn say(&mut self, frames: Vec<Frame>) {
        let fresh = frames.into_iter().filter(|frame| frame.number > self.seen || frame.last);
        self.ready.extend(fresh.map(|frame| frame.text));
    }
}

fn how_it_ended(prediction: &Prediction) -> Vec<Frame> {
    let outcome = match prediction.status {
        Status::Starting | Status::Processing => return Vec::new(),
        Status::Succeeded => Outcome::Succeeded,
        Status::Failed => Outcome::Failed { error: prediction.error.clone().unwrap_or_default() },
        Status::Canceled => Outcome::Canceled,
        Status::Aborted => Outcome::Aborted,
    };
    let at = prediction.completed_at.unwrap_or_else(Timestamp::now);
    sse::end(&outcome, prediction.last_seq, at)
}
