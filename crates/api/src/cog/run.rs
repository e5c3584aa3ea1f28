//! One prediction from its acceptance to its end: what it says, file by file where they are uploaded, told to everybody who
//! watches. It ends with its last watcher where that was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dispatch::{Dispatch, SubmitError};
use prediction::{Event, Id, Map, Numbered, Outcome, Output, Prediction, Request, Timestamp};
use serde_json::Value;
use tokio::sync::{Notify, oneshot, watch};

use super::refuse::Refusal;
use super::runs::Slot;
use super::upload::Shelf;
use super::webhook::Hook;
use super::{Engine, Face, webhook};

/// The state as it was told, with every event that led to it.
pub struct Told {
    pub prediction: Prediction,
    pub events: Vec<Numbered>,
}

impl Told {
    pub fn is_over(&self) -> bool {
        self.prediction.status.is_terminal()
    }
}

pub struct Run {
    /// The caller's. Ours, which no two share, is the request's.
    pub id: String,
    request: Request,
    told: watch::Sender<Told>,
    stop: Notify,
    pub viewers: AtomicUsize,
    /// Cancelled when nobody watches any more.
    ends_with_viewers: bool,
}

/// What is to be run.
pub struct Wanted {
    pub id: String,
    pub input: Map,
    pub hook: Option<Hook>,
    pub ends_with_viewers: bool,
}

impl Run {
    pub fn new(face: &Face, engine: &Engine, wanted: &Wanted) -> Arc<Self> {
        let id = Id::random();
        let request = Request {
            model: face.settings.target.clone(),
            version: engine.version.clone(),
            target: face.settings.target.clone(),
            input: wanted.input.clone(),
            seed: rand::random::<u32>().into(),
            created_at: Timestamp::now(),
            deadline: None,
            // Webhooks have rules of their own here.
            webhook: None,
            webhook_events_filter: None,
            origin: String::new(),
            stream_key: id.0.clone(),
            streams: false,
            id,
        };
        let told = Told { prediction: Prediction::new(request.clone()), events: Vec::new() };
        Arc::new(Self {
            id: wanted.id.clone(),
            request,
            told: watch::Sender::new(told),
            stop: Notify::new(),
            viewers: AtomicUsize::new(0),
            ends_with_viewers: wanted.ends_with_viewers,
        })
    }

    pub fn watch(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    pub fn cancel(&self) {
        self.stop.notify_one();
    }

    /// Counts one who watches, until that is dropped.
    pub fn view(self: &Arc<Self>) -> Viewer {
        self.viewers.fetch_add(1, Ordering::Relaxed);
        Viewer(self.clone())
    }

    fn tell(&self, event: Numbered) {
        self.told.send_modify(|told| {
            let _ = told.prediction.apply(&event);
            told.events.push(event);
        });
    }
}

pub struct Viewer(Arc<Run>);

impl Drop for Viewer {
    fn drop(&mut self) {
        let last = self.0.viewers.fetch_sub(1, Ordering::Relaxed) == 1;
        if last && self.0.ends_with_viewers {
            self.0.cancel();
        }
    }
}

/// Hands it to dispatch and follows it to its end, whatever becomes of the caller. Returns when it was accepted.
pub async fn start(face: &Arc<Face>, run: Arc<Run>, hook: Option<Hook>, slot: Slot) -> Result<(), Refusal> {
    let (say, said) = oneshot::channel();
    tokio::spawn(follow(face.clone(), run, hook, slot, say));
    said.await.unwrap_or(Err(Refusal::Broken))
}

async fn follow(
    face: Arc<Face>,
    run: Arc<Run>,
    hook: Option<Hook>,
    slot: Slot,
    accepted: oneshot::Sender<Result<(), Refusal>>,
) {
    let _running = face.runs.running();
    let Some(engine) = face.engine.get() else { return };
    let submitted = engine.dispatch.submit(run.request.clone()).await;
    let reader = match submitted {
        Ok(_) => engine.feed.follow(&run.request.id, 0).await.ok().flatten(),
        Err(error) => {
            face.runs.remove(&run);
            drop(slot);
            let _ = accepted.send(Err(refusal(&error)));
            return;
        }
    };
    if let Some(hook) = hook {
        webhook::send(&face, &run, hook);
    }
    // A caller who has gone meanwhile is nobody's loss.
    let _ = accepted.send(Ok(()));
    // Why a file could not be put: nothing more of the output is told, and it fails at its end.
    let mut not_put = None;
    let mut asked = false;
    let mut last = None;
    let mut reader = reader;
    while let (None, Some(reader)) = (&last, &mut reader) {
        tokio::select! {
            event = reader.next() => match event {
                Some(event) if matches!(event.event, Event::Ended(_)) => last = Some(event),
                Some(event) if not_put.is_some() && matches!(event.event, Event::Output(_)) => {}
                Some(mut event) => match uploaded(&face, engine, &run, &mut event.event).await {
                    Ok(()) => run.tell(event),
                    Err(why) => not_put = Some(why),
                },
                None => break,
            },
            () = run.stop.notified(), if !asked => {
                asked = true;
                tokio::spawn(cancel(engine.dispatch.clone(), run.request.id.clone()));
            }
        }
    }
    let mut last = last.unwrap_or_else(lost_track);
    if let (Some(why), Event::Ended(Outcome::Succeeded)) = (not_put, &last.event) {
        last.event = failed(format!("Failed to upload output: {why}"));
    }
    let mut ended = run.told.borrow().prediction.clone();
    // What does not fit is not told either.
    let _ = ended.apply(&last);
    // Before it is told: whoever hears of the end and asks for it finds it, and for the next finds the slot free, and the id too.
    face.note_end(&run.id, &ended);
    face.runs.remove(&run);
    engine.store.forget(&run.request.id);
    drop(slot);
    run.tell(last);
}

/// The event's files where they are put, if they are.
async fn uploaded(face: &Face, engine: &Engine, run: &Run, event: &mut Event) -> Result<(), String> {
    let (Some(base), Event::Output(output)) = (&face.settings.upload_url, event) else { return Ok(()) };
    let places = face.settings.schema.file_places(output);
    let within = match output {
        Output::Whole(_) => String::new(),
        Output::Item(_) => format!("/{}", items(run.told.borrow().prediction.output.as_ref())),
    };
    let (Output::Item(value) | Output::Whole(value)) = output;
    let shelf = Shelf { egress: &engine.egress, base, id: &run.id, naming: face.settings.file_name, within: &within };
    shelf.put(&places, value).await
}

/// How many there are of an output that grows.
fn items(output: Option<&Value>) -> usize {
    output.and_then(Value::as_array).map_or(0, Vec::len)
}

/// The store could not be read: nobody knows how it goes on.
fn lost_track() -> Numbered {
    Numbered { seq: u64::MAX, at: Timestamp::now(), event: failed("the server lost track of the prediction".into()) }
}

fn failed(error: String) -> Event {
    Event::Ended(Outcome::Failed { error })
}

async fn cancel(dispatch: Dispatch, id: Id) {
    if let Err(error) = dispatch.cancel(&id).await {
        tracing::warn!(%id, %error, "a cancel was not taken");
    }
}

fn refusal(error: &SubmitError) -> Refusal {
    match error {
        SubmitError::Full { .. } => Refusal::Busy,
        SubmitError::Draining => Refusal::NotReady,
        SubmitError::Store(error) => {
            tracing::error!(%error, "the store refused");
            Refusal::Broken
        }
    }
}
