//! The parts that deal with files, wired: where they lie, what limits them, whose inputs and outputs they are.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::files::{Fetching, Keeping, Limits, Sweeper};
use api::FileService;
use dispatch::{Asked, Inputs, Launch};
use egress::{Egress, Rules};
use prediction::{Id, Map, secret_text};
use schema::{Field, ModelSchema};
use store::files::{FileRows, Files};

use crate::deployment::{Deployment, Offer};
use crate::failure::Failure;

/// Beside the database: what callers sent and models made.
const FILES: &str = "files";
/// Beside the database: what predictions that wait or run were given.
const INPUTS: &str = "inputs";

/// Files of a server.
pub struct Filing {
    pub service: FileService,
    pub inputs: Arc<Fetching>,
    schemas: BTreeMap<String, ModelSchema>,
    output_seconds: u64,
    _sweeper: Sweeper,
}

impl Filing {
    pub async fn open(
        data: &Path,
        rows: Arc<dyn FileRows>,
        egress: Egress,
        deployment: &Deployment,
    ) -> Result<Self, Failure> {
        let config = &deployment.config;
        let files = Files::open(rows, &data.join(FILES)).await.map_err(Failure::failed)?;
        let schemas: BTreeMap<_, _> = deployment.offers.iter().map(schema).collect();
        let inputs = fetching(egress, Some(files.clone()), &data.join(INPUTS), deployment, schemas.clone())?;
        let service = FileService {
            files: files.clone(),
            file_bytes: config.limits.files.file_bytes,
            retention_seconds: config.limits.files.files_retention_seconds,
            outputs: config.output_files,
        };
        let _sweeper = Sweeper::start(files);
        Ok(Self { service, inputs: Arc::new(inputs), schemas, output_seconds: config.retention_seconds, _sweeper })
    }

    /// Workers whose files are kept.
    pub fn keeping(&self, launch: Arc<dyn Launch>) -> Arc<dyn Launch> {
        Arc::new(Keeping::new(launch, self.service.files.clone(), self.output_seconds, self.schemas.clone()))
    }
}

fn schema(offer: &Offer) -> (String, ModelSchema) {
    (offer.served.name.clone(), offer.schema.clone())
}

fn fetching(
    egress: Egress,
    files: Option<Files>,
    folder: &Path,
    deployment: &Deployment,
    schemas: BTreeMap<String, ModelSchema>,
) -> Result<Fetching, Failure> {
    let limits = &deployment.config.limits.files;
    let limits = Limits { bytes: limits.input_bytes, seconds: limits.fetch_seconds };
    let failed = |error| Failure::Failed(format!("{}: {error}", folder.display()));
    Fetching::new(egress, files, folder, limits, schemas).map_err(failed)
}

/// Input files of a server that keeps none: in a folder of the system's temporary ones, for as long as this lives.
pub struct Passing {
    pub inputs: Arc<Fetching>,
    _folder: Scratch,
}

impl Passing {
    pub fn open(egress: Egress, deployment: &Deployment) -> Result<Self, Failure> {
        let folder = Scratch::new();
        let schemas = deployment.offers.iter().map(schema).collect();
        let inputs = fetching(egress, None, &folder.0, deployment, schemas)?;
        Ok(Self { inputs: Arc::new(inputs), _folder: folder })
    }
}

/// The input of one prediction without a server, its files on this machine for as long as this lives.
pub struct Brought {
    pub input: Map,
    _keep: Option<(Box<dyn Any + Send>, Scratch)>,
}

/// A folder of the system's temporary ones. It goes with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("pinion-{}", secret_text(16))))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is the system's to clean.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Fetches and decodes what an input names; files of this machine stay where they are.
pub async fn bring(deployment: &Deployment, offer: &Offer, id: &Id, input: &Map) -> Result<Brought, Failure> {
    let (target, schema) = schema(offer);
    let is_remote = |field: &Field| {
        let uri = input.get(field.name).or(field.default.as_ref()).and_then(|uri| uri.as_str());
        uri.is_some_and(|uri| !uri.starts_with("file:") && !uri.trim().is_empty())
    };
    if !schema.file_fields().any(is_remote) {
        return Ok(Brought { input: input.clone(), _keep: None });
    }
    // Whoever types the address has the machine.
    let rules = Rules { allow_loopback: true, allow_private: true };
    let egress = Egress::new(rules).map_err(Failure::failed)?;
    let scratch = Scratch::new();
    let fetching = fetching(egress, None, &scratch.0, deployment, BTreeMap::from([(target.clone(), schema)]))?;
    let asked = Asked { id: id.clone(), target, origin: String::new(), input: input.clone() };
    let prepared = fetching.prepare(asked, Box::new(|line| eprint!("{line}"))).await.map_err(Failure::BadInput)?;
    Ok(Brought { input: prepared.input, _keep: Some((prepared.keep, scratch)) })
}
