//! A prediction's events as Server-Sent Events: start, output, log, metric, and completed with all of it. Whoever attaches
//! later gets what was said before, as far as the history goes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use prediction::{Event, Numbered, Output};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::run::{Run, Told, Viewer};
use super::{Face, body};

/// Of one stream at once; one more is a 429.
pub const READERS: usize = 1024;
/// Silence is broken this often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_COMMENT: &str = ":\n\n";

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// It was there from the first event on.
    Start,
    /// It comes later: the history is said again, or what is missing of it.
    History,
}

pub fn answer(face: &Face, run: &Arc<Run>, viewer: Viewer, from: From) -> Response {
    let told = run.watch();
    let mut reader = Reader {
        id: run.id.clone(),
        told,
        seen: 0,
        outputs: 0,
        first: Some(frame("start", &json!({ "id": run.id, "status": "processing" }))),
        done: false,
        _viewer: viewer,
    };
    if from == From::History {
        reader.begin_late(face.settings.stream_history);
    }
    let body = stream::unfold(reader, |mut reader| async {
        let piece = reader.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), reader))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}

struct Reader {
    id: String,
    told: watch::Receiver<Told>,
    /// Events of the prediction that were said or passed over.
    seen: usize,
    outputs: usize,
    first: Option<String>,
    done: bool,
    _viewer: Viewer,
}

impl Reader {
    /// What was said before counts against the history, the start too.
    fn begin_late(&mut self, history: usize) {
        let (said, events, is_over) = {
            let told = self.told.borrow();
            (1 + told.events.iter().filter(|event| is_said(event)).count(), told.events.len(), told.is_over())
        };
        if history == 0 {
            // The end closes the stream, also for whoever came as it was told.
            (self.first, self.seen) = (None, events - usize::from(is_over));
        } else if said > history {
            let body =
                json!({ "error": "SSE stream replay truncated; events were dropped", "skipped": said - history });
            (self.first, self.done) = (Some(frame("error", &body)), true);
        }
    }

    /// Everything that was told since the last time in one piece; none closes the stream.
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let silent_until = Instant::now() + KEEP_ALIVE;
        while !self.done {
            let piece = self.take();
            if !piece.is_empty() {
                return Some(piece);
            }
            match timeout_at(silent_until, self.told.changed()).await {
                Ok(Ok(())) => {}
                // Our viewer holds the run, and the run the sender: it cannot be gone.
                Ok(Err(_)) => self.done = true,
                Err(_) => return Some(KEEP_ALIVE_COMMENT.to_owned()),
            }
        }
        None
    }

    fn take(&mut self) -> String {
        let told = self.told.borrow_and_update();
        let mut piece = String::new();
        for event in &told.events[self.seen..] {
            match &event.event {
                Event::Output(Output::Item(chunk) | Output::Whole(chunk)) => {
                    piece += &frame("output", &json!({ "chunk": chunk, "index": self.outputs }));
                    self.outputs += 1;
                }
                Event::Log(text) => piece += &frame("log", &json!({ "data": text, "source": "stdout" })),
                Event::Metric { name, value } => {
                    piece += &frame("metric", &json!({ "name": name, "value": value, "mode": "replace" }));
                }
                Event::Ended(_) => {
                    piece += &frame("completed", &body::whole(&self.id, &told.prediction));
                    self.done = true;
                }
                Event::Started => {}
            }
        }
        self.seen = told.events.len();
        piece
    }
}

fn is_said(event: &Numbered) -> bool {
    !matches!(event.event, Event::Started)
}

/// JSON has no line ends of its own.
fn frame(event: &str, data: &Value) -> String {
    format!("event: {event}\ndata: {data}\n\n")
}
