//! cog.yaml and the models of this build, brought together: what is served, under which version ids, from which weights.
//! Knows both sides; refuses to load anything.

use std::path::PathBuf;

use clap::Args;
use prediction::{LoadSpec, Weights};
use runner::weights::{Entry, Lock, Source};
use schema::ModelSchema;
use schema::config::{Config, Served, WeightsFrom};
use serde_json::json;

use crate::failure::Failure;

/// What is served when no file is named.
const DEFAULT_COG_YAML: &str = include_str!("../../../cog.yaml");

/// The word that names another file.
#[derive(Args)]
pub struct CogYaml {
    /// What is served, in place of the built-in cog.yaml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl CogYaml {
    /// Reads the named file, or the built-in cog.yaml, and resolves every name in it.
    pub fn load(&self) -> Result<Deployment, Failure> {
        let Some(path) = &self.config else { return Deployment::read(DEFAULT_COG_YAML) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::BadInput(format!("--config {}: {error}", path.display())))?;
        Deployment::read(&text)
    }
}

pub struct Deployment {
    pub config: Config,
    pub offers: Vec<Offer>,
}

/// One served model: its line in cog.yaml and the code that runs it.
pub struct Offer {
    pub served: Served,
    pub model: &'static models::Entry,
    /// With this deployment's defaults.
    pub schema: ModelSchema,
    /// The pinned weights; none where cog.yaml names a path.
    pub locked: Option<Locked>,
}

pub struct Locked {
    pub entry: Entry,
    pub mirrors: Vec<Source>,
}

impl Deployment {
    /// Resolves every name in a cog.yaml's text.
    fn read(text: &str) -> Result<Self, Failure> {
        let config = Config::parse(text).map_err(|error| Failure::BadInput(error.to_string()))?;
        let offers = config.models.iter().map(offer).collect::<Result<_, _>>()?;
        Ok(Self { config, offers })
    }

    /// By short name or by one of its `owner/name`s.
    pub fn find(&self, name: &str) -> Result<&Offer, Failure> {
        let matches = |offer: &&Offer| offer.served.name == name || offer.served.names.iter().any(|n| n == name);
        self.offers.iter().find(matches).ok_or_else(|| {
            let known: Vec<&str> = self.offers.iter().map(|offer| offer.served.name.as_str()).collect();
            Failure::BadInput(format!("no model is called {name:?} here; there is {}", known.join(", ")))
        })
    }
}

fn offer(served: &Served) -> Result<Offer, Failure> {
    let here = |why: String| Failure::BadInput(format!("cog.yaml: model {}: {why}", served.name));
    let model = models::Entry::named(&served.model).ok_or_else(|| {
        let known: Vec<&str> = models::ALL.iter().map(|entry| entry.name).collect();
        here(format!("model {:?} is not in this build; it has {}", served.model, known.join(", ")))
    })?;
    let schema = (model.schema)().with_defaults(&served.defaults).map_err(here)?;
    let locked = match &served.weights {
        WeightsFrom::Path(_) => None,
        WeightsFrom::Locked(name) => Some(locked(model, name).map_err(|failure| here(failure.to_string()))?),
    };
    Ok(Offer { served: served.clone(), model, schema, locked })
}

fn locked(model: &models::Entry, name: &str) -> Result<Locked, Failure> {
    let lock = Lock::parse(model.lock)?;
    let entry = lock.weights.into_iter().find(|entry| entry.name == name);
    let entry = entry.ok_or_else(|| Failure::failed(format!("weights {name:?} is not in its weights.lock")))?;
    Ok(Locked { mirrors: runner::weights::mirrors(model.manifest, name)?, entry })
}

impl Offer {
    /// How the worker is to load it; `weights` in place of the deployment's own.
    pub fn spec(&self, weights: Option<PathBuf>) -> LoadSpec {
        let weights = match (weights, &self.served.weights) {
            (Some(path), _) => Weights::Path(path),
            (None, WeightsFrom::Path(path)) => Weights::Path(path.clone()),
            (None, WeightsFrom::Locked(name)) => Weights::Locked { name: name.clone(), offline: false },
        };
        LoadSpec {
            device: self.served.device.clone().unwrap_or_else(|| "cpu".into()),
            precision: self.served.precision.clone(),
            context_tokens: self.served.context_tokens,
            concurrency: self.served.concurrency,
            threads: self.served.threads,
            defaults: self.served.defaults.clone(),
            ..LoadSpec::new(&self.served.name, self.model.name, weights)
        }
    }

    /// The digest of what decides behaviour: this model's line in cog.yaml, its weights and its schema.
    pub fn version(&self) -> Result<String, Failure> {
        let set_digest = match (&self.locked, &self.served.weights) {
            (Some(locked), _) => locked.entry.set_digest.clone(),
            (None, WeightsFrom::Path(path)) => runner::weights::lock_path(&self.served.name, path)?.set_digest,
            (None, WeightsFrom::Locked(name)) => unreachable!("{name} was resolved when the file was read"),
        };
        let manifest = json!({
            "model": self.model.name,
            "precision": self.served.precision,
            "context_tokens": self.served.context_tokens,
        });
        Ok(schema::version_id(&manifest, &set_digest, &self.schema))
    }
}
