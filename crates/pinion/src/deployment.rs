//! cog.yaml and the models of this build, brought together: what is served, under which version ids, from which weights.
//! Knows both sides; refuses to load anything.

use std::path::{Path, PathBuf};

use clap::Args;
use prediction::{LoadSpec, Weights};
use runner::weights::{Entry, Lock, Options, Source};
use schema::ModelSchema;
use schema::config::{Config, Served, WeightsFrom};
use serde_json::json;

use crate::failure::Failure;
use crate::launch;

/// What is served when no file is named.
const DEFAULT_COG_YAML: &str = include_str!("../../../cog.yaml");

/// Whoever wants other random values writes them to a folder.
const SYNTH_SEED: u64 = 0;

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
        match &self.config {
            None => Deployment::built_in(),
            Some(path) => Deployment::read_file("--config", path),
        }
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
    /// What is served when no file is named.
    pub fn built_in() -> Result<Self, Failure> {
        Self::read(DEFAULT_COG_YAML)
    }

    /// `word` is the one that named the file.
    pub fn read_file(word: &str, path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path);
        Self::read(&text.map_err(|error| Failure::BadInput(format!("{word} {}: {error}", path.display())))?)
    }

    /// Resolves every name in a cog.yaml's text.
    fn read(text: &str) -> Result<Self, Failure> {
        let config = Config::parse_with(text, &known).map_err(|error| Failure::BadInput(error.to_string()))?;
        let offers = config.models.iter().map(offer).collect::<Result<_, _>>()?;
        Ok(Self { config, offers })
    }

    /// One model of random weights, for measuring: its name and description say so. `dtype`: as the real weights are
    /// published, unless one is named.
    pub fn synth(shape: &str, dtype: Option<&str>) -> Result<Self, Failure> {
        let (model, shape) = models::Entry::of_shape(shape)?;
        let mut served = json!({
            "name": format!("{}-random-weights", shape.name),
            "model": model.name,
            "synth": shape.name,
            "description": format!("RANDOM WEIGHTS of a true shape, for measuring: what it says means nothing. {}", shape.about),
        });
        if let Some(dtype) = dtype {
            served["precision"] = dtype.into();
        }
        // JSON is YAML.
        Self::read(&json!({"native": {"models": [served]}}).to_string())
    }

    /// Serves this one and no other.
    pub fn keep_only(&mut self, name: &str) {
        self.offers.retain(|offer| offer.served.name == name);
        self.config.models.retain(|model| model.name == name);
    }

    /// Every model may be on any device.
    pub fn forget_devices(&mut self) {
        self.offers.iter_mut().for_each(|offer| offer.served.device = None);
        self.config.models.iter_mut().for_each(|model| model.device = None);
    }

    /// What cog.yaml sets for this process and its workers. What it was started with stays: that was said later. For the
    /// beginning of the program, while it has one thread.
    pub fn set_environment(&self) {
        for (name, value) in &self.config.container.environment {
            if std::env::var_os(name).is_none() {
                // SAFETY: nobody else reads or writes the environment: there is no other thread yet.
                unsafe { std::env::set_var(name, value) };
            }
        }
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

/// The model here whose lock names weights from the same place, and what they are called there. Of a hub, any revision.
fn known(uri: &str) -> Option<(String, String)> {
    let place = |uri: &str| uri.rsplit_once('@').map_or(uri, |(place, _)| place).to_owned();
    models::ALL.iter().find_map(|model| {
        let lock = Lock::parse(model.lock).ok()?;
        let is_from = |entry: &&Entry| entry.sources.iter().any(|source| place(&source.uri) == place(uri));
        let entry = lock.weights.iter().find(is_from)?;
        Some((model.name.to_owned(), entry.name.clone()))
    })
}

fn offer(served: &Served) -> Result<Offer, Failure> {
    let here = |why: String| Failure::BadInput(format!("cog.yaml: model {}: {why}", served.name));
    let model = launch::entries().find(|entry| entry.name == served.model).ok_or_else(|| {
        let known: Vec<&str> = models::ALL.iter().map(|entry| entry.name).collect();
        here(format!("model {:?} is not in this build; it has {}", served.model, known.join(", ")))
    })?;
    let schema = (model.schema)().with_defaults(&served.defaults).map_err(here)?;
    let locked = match &served.weights {
        WeightsFrom::Path(_) => None,
        WeightsFrom::Synth(shape) => {
            model.shape(shape).map_err(|error| here(error.to_string()))?;
            None
        }
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
            (None, WeightsFrom::Synth(shape)) => {
                Weights::Synth { shape: shape.clone(), dtype: self.synth_dtype(shape).to_owned(), seed: SYNTH_SEED }
            }
        };
        LoadSpec {
            device: match self.served.device.as_deref() {
                None => "cpu".into(),
                // Any GPU; whoever has several chooses.
                Some("cuda") => "cuda:0".into(),
                Some(device) => device.into(),
            },
            precision: self.served.precision.clone(),
            context_tokens: self.served.context_tokens,
            concurrency: self.served.concurrency,
            threads: self.served.threads,
            defaults: self.served.defaults.clone(),
            ..LoadSpec::new(&self.served.name, self.model.name, weights)
        }
    }

    /// What random weights of this shape are made in.
    fn synth_dtype(&self, shape: &str) -> &str {
        let usual = || self.model.shape(shape).map_or("bf16", |shape| shape.dtype);
        self.served.precision.as_deref().unwrap_or_else(usual)
    }

    /// As dispatch is told of it.
    pub fn resident(&self) -> dispatch::Served {
        let Served { device, pinned, preload, keep_alive_seconds, .. } = &self.served;
        dispatch::Served {
            on: device.clone().map_or(dispatch::On::Any, dispatch::On::Device),
            pinned: *pinned,
            preload: *preload,
            keep_alive_seconds: *keep_alive_seconds,
            ..dispatch::Served::new(self.spec(None))
        }
    }

    /// The digest of what decides behaviour: this model's line in cog.yaml, its weights and its schema.
    pub fn version(&self) -> Result<String, Failure> {
        let set_digest = match (&self.locked, &self.served.weights) {
            (Some(locked), _) => locked.entry.set_digest.clone(),
            (None, WeightsFrom::Path(path)) => {
                runner::weights::lock_known(&self.served.name, path, &Options::from_env())?.set_digest
            }
            (None, WeightsFrom::Synth(shape)) => runner::synth::title(shape, self.synth_dtype(shape), SYNTH_SEED),
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
