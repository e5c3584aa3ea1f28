//! What a model says as data URIs, where its schema says files, becomes stored files: between the worker and dispatch,
//! before anybody has read it. The event then holds the file's reference, a line where there were megabytes.
//!
//! The worker's words stay in their order: who follows behind a file waits until that is on disk, some milliseconds. A
//! file that the store does not take stays a data URI: nothing a model said is lost.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use dispatch::{Launch, Link};
use prediction::frame::{Emitted, FromWorker, ToWorker};
use prediction::{Event, Id, Map, Output};
use schema::ModelSchema;
use serde_json::Value;
use store::StoreError;
use store::files::{About, File, FileKind, Files};
use tokio::sync::mpsc;

use crate::kinds;

/// Bytes handed to the disk at once.
const PIECE_BYTES: usize = 256 << 10;

/// Starts workers whose files are kept.
pub struct Keeping {
    launch: Arc<dyn Launch>,
    keeper: Arc<Keeper>,
}

struct Keeper {
    files: Files,
    lives_seconds: u64,
    /// By target; only those that give files.
    schemas: BTreeMap<String, ModelSchema>,
}

/// Who is inside, and as whose prediction. One per worker.
type Inside = Arc<Mutex<HashMap<Id, String>>>;

impl Keeping {
    /// Output files live for `lives_seconds`.
    pub fn new(
        launch: Arc<dyn Launch>,
        files: Files,
        lives_seconds: u64,
        schemas: impl IntoIterator<Item = (String, ModelSchema)>,
    ) -> Self {
        let schemas = schemas.into_iter().filter(|(_, schema)| schema.gives_files()).collect();
        Self { launch, keeper: Arc::new(Keeper { files, lives_seconds, schemas }) }
    }
}

impl Launch for Keeping {
    /// Called inside a tokio runtime.
    fn launch(&self, device: &str) -> io::Result<Link> {
        let link = self.launch.launch(device)?;
        if self.keeper.schemas.is_empty() {
            return Ok(link);
        }
        let Link { to, from } = link;
        let (kept, out) = mpsc::unbounded_channel();
        let inside = Inside::default();
        tokio::spawn(self.keeper.clone().pass(from, kept, inside.clone()));
        let keeper = self.keeper.clone();
        let to = move |frame: ToWorker| {
            if let ToWorker::Admit { target, job, .. } = &frame
                && keeper.schemas.contains_key(target)
            {
                lock(&inside).insert(job.id.clone(), target.clone());
            }
            to(frame)
        };
        Ok(Link { to: Box::new(to), from: out })
    }
}

impl Keeper {
    /// Until the worker ends, or nobody listens any more.
    async fn pass(
        self: Arc<Self>,
        mut from: mpsc::UnboundedReceiver<FromWorker>,
        kept: mpsc::UnboundedSender<FromWorker>,
        inside: Inside,
    ) {
        loop {
            let frame = tokio::select! {
                frame = from.recv() => frame,
                () = kept.closed() => None,
            };
            let frame = match frame {
                None => return,
                Some(FromWorker::Events(events)) => FromWorker::Events(self.events(events, &inside).await),
                Some(frame) => frame,
            };
            if kept.send(frame).is_err() {
                return;
            }
        }
    }

    async fn events(&self, mut events: Vec<Emitted>, inside: &Inside) -> Vec<Emitted> {
        for Emitted { id, event, .. } in &mut events {
            match event {
                Event::Output(output) => {
                    let target = lock(inside).get(id).cloned();
                    if let Some(schema) = target.and_then(|target| self.schemas.get(&target)) {
                        self.output(schema, output).await;
                    }
                }
                Event::Ended(_) => drop(lock(inside).remove(id)),
                _ => {}
            }
        }
        events
    }

    async fn output(&self, schema: &ModelSchema, output: &mut Output) {
        for place in schema.file_places(output) {
            let (Output::Item(value) | Output::Whole(value)) = &mut *output;
            let Some(Value::String(text)) = value.pointer_mut(&place) else { continue };
            if !egress::is_data(text) {
                continue;
            }
            match self.keep(&place, text.clone()).await {
                Ok(file) => *text = file.reference(),
                Err(error) => tracing::error!(%error, "an output file could not be stored; it stays a data URI"),
            }
        }
    }

    async fn keep(&self, place: &str, uri: String) -> Result<File, StoreError> {
        let broken = |why: String| StoreError::Broken(format!("an output file: {why}"));
        let decoded = tokio::task::spawn_blocking(move || egress::data(&uri, u64::MAX)).await;
        let data = decoded.map_err(|error| broken(error.to_string()))?.map_err(|error| broken(error.to_string()))?;
        let mut content = self.files.receive().await?;
        for piece in data.bytes.chunks(PIECE_BYTES) {
            content.write(piece).await?;
        }
        let about = About {
            kind: FileKind::Output,
            name: output_name(place, data.name.as_deref(), &data.content_type),
            content_type: data.content_type,
            metadata: Map::new(),
            lives_seconds: self.lives_seconds,
        };
        self.files.keep(content, about).await
    }
}

/// What the model called it, else after its place in the output; with an end, for one client names its copy by it.
pub fn output_name(place: &str, given: Option<&str>, content_type: &str) -> String {
    if let Some(name) = given.and_then(kinds::plain) {
        return name;
    }
    let last = place.rsplit('/').next().unwrap_or_default();
    let stem = match last.parse::<usize>() {
        Ok(number) => format!("out-{number}"),
        Err(_) => kinds::plain(last).unwrap_or_else(|| "output".to_owned()),
    };
    format!("{stem}.{}", kinds::of_type(content_type).unwrap_or("bin"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
