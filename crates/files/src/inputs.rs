//! Inputs that are files to their model: fetched, decoded or linked into a folder of the prediction's own, and handed to
//! the model as `file://` URIs.
//!
//! Disk: at most the limit for each file of each prediction that waits or runs. Memory: one piece of each download, of
//! which a few go on at once; a data URI is decoded whole, and was in memory before.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use dispatch::{Asked, Inputs, Prepared, Say};
use egress::{Egress, FetchLimits};
use prediction::Map;
use schema::ModelSchema;
use serde_json::Value;
use store::files::Files;
use tokio::sync::Semaphore;
use url::Url;

use crate::place::{Place, private_folder};
use crate::progress::Progress;
use crate::{kinds, own};

/// Downloads at once; the next waits for one to end.
const FETCHES_AT_ONCE: usize = 8;
/// Without one byte from the other side.
const IDLE: Duration = Duration::from_secs(30);

/// What one input file may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub bytes: u64,
    pub seconds: u64,
}

/// Brings input files here.
pub struct Fetching {
    egress: Egress,
    /// Where our own URLs lead; none where there is no server.
    files: Option<Files>,
    folder: PathBuf,
    limits: Limits,
    /// By target.
    schemas: BTreeMap<String, ModelSchema>,
    turns: Semaphore,
}

impl Fetching {
    /// Empties `folder`: what is in it belongs to an earlier life.
    pub fn new(
        egress: Egress,
        files: Option<Files>,
        folder: &Path,
        limits: Limits,
        schemas: BTreeMap<String, ModelSchema>,
    ) -> io::Result<Self> {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => private_folder(folder)?,
        }
        // Models are told absolute paths, wherever their process stands.
        let folder = folder.canonicalize()?;
        Ok(Self { egress, files, folder, limits, schemas, turns: Semaphore::new(FETCHES_AT_ONCE) })
    }

    /// The fields of an input that name files which are not here yet, defaults among them.
    fn named(&self, target: &str, input: &Map) -> Vec<(&'static str, String)> {
        let fields = self.schemas.get(target).into_iter().flat_map(ModelSchema::file_fields);
        let named = fields.filter_map(|field| {
            let uri = input.get(field.name).or(field.default.as_ref())?.as_str()?;
            (!uri.starts_with("file:") && !uri.trim().is_empty()).then(|| (field.name, uri.to_owned()))
        });
        named.collect()
    }

    async fn bring(&self, field: &str, uri: String, origin: &str, place: &Place, say: &Say) -> Result<PathBuf, String> {
        if egress::is_data(&uri) {
            return self.decode(field, uri, place).await;
        }
        let shown = without_query(&uri);
        if let Some((files, id)) = self.files.as_ref().zip(own::id(&uri)) {
            match files.get(&id).await.map_err(|error| error.to_string())? {
                Some(file) => {
                    let path = place.path(&local_name(field, &file.name, &file.content_type));
                    link(&files.path(&file), &path).await.map_err(|error| format!("{shown}: {error}"))?;
                    return Ok(path);
                }
                None if own::is_ours(&uri, origin) => {
                    return Err(format!("{shown}: there is no such file; it was deleted or has expired"));
                }
                None => {}
            }
        }
        self.fetch(field, &uri, place, say).await.map_err(|why| format!("{shown}: {why}"))
    }

    async fn decode(&self, field: &str, uri: String, place: &Place) -> Result<PathBuf, String> {
        let limit = self.limits.bytes;
        // Megabytes of base64 are work for a thread that may block.
        let decoded = tokio::task::spawn_blocking(move || egress::data(&uri, limit)).await;
        let data = decoded.map_err(|error| error.to_string())?.map_err(|error| format!("the data URI {error}"))?;
        let path = place.path(&local_name(field, data.name.as_deref().unwrap_or_default(), &data.content_type));
        tokio::fs::write(&path, data.bytes).await.map_err(|error| error.to_string())?;
        Ok(path)
    }

    async fn fetch(&self, field: &str, url: &str, place: &Place, say: &Say) -> Result<PathBuf, String> {
        let limits =
            FetchLimits { bytes: self.limits.bytes, idle: IDLE, whole: Duration::from_secs(self.limits.seconds) };
        let _turn = match self.turns.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                say("waiting for other downloads\n".to_owned());
                self.turns.acquire().await.map_err(|error| error.to_string())?
            }
        };
        let coming = place.path("coming");
        let mut file = tokio::fs::File::create_new(&coming).await.map_err(|error| error.to_string())?;
        let mut progress = Progress::new(field, &**say);
        let fetched = self.egress.fetch(url, &limits, &mut file, |got, all| progress.came(got, all)).await;
        let fetched = fetched.map_err(|error| error.to_string())?;
        let (name, content_type) = (fetched.name.unwrap_or_default(), fetched.content_type.unwrap_or_default());
        let path = place.path(&local_name(field, &name, &content_type));
        tokio::fs::rename(&coming, &path).await.map_err(|error| error.to_string())?;
        Ok(path)
    }
}

#[async_trait]
impl Inputs for Fetching {
    fn concerns(&self, target: &str, input: &Map) -> bool {
        !self.named(target, input).is_empty()
    }

    async fn prepare(&self, asked: Asked, say: Say) -> Result<Prepared, String> {
        let Asked { target, origin, mut input, .. } = asked;
        let place = Place::inside(&self.folder).map_err(|error| format!("no room for input files: {error}"))?;
        for (field, uri) in self.named(&target, &input) {
            let here = self.bring(field, uri, &origin, &place, &say).await;
            let here = here.map_err(|why| format!("input {field}: {why}"))?;
            let uri = Url::from_file_path(&here).map_err(|()| format!("input {field}: its path is not absolute"))?;
            input.insert(field.to_owned(), Value::String(uri.into()));
        }
        Ok(Prepared { input, keep: Box::new(place) })
    }
}

/// The file itself under another name, so that it stays when it is deleted or expires meanwhile.
async fn link(from: &Path, to: &Path) -> io::Result<()> {
    match tokio::fs::hard_link(from, to).await {
        Ok(()) => Ok(()),
        // Another file system, or one without links.
        Err(_) => tokio::fs::copy(from, to).await.map(drop),
    }
}

/// A model may choose its reader by the end of a name; nothing else of the caller's name gets here.
fn local_name(field: &str, name: &str, content_type: &str) -> String {
    kinds::ending(name, content_type).map_or_else(|| field.to_owned(), |ending| format!("{field}.{ending}"))
}

/// What is behind the `?` of a URL is often a key.
fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
