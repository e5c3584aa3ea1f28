//! cog.yaml and the models of this build, brought together: what is served, under which version ids, from which weights.
//! Knows both sides; refuses to load anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::Args;
use prediction::{LoadSpec, Weights};
use runner::weights::{Entry, Lock, Options, Own, Progress, Source};
use schema::ModelSchema;
use schema::config::{Config, Served, WeightsFrom};
use serde_json::json;

use crate::failure::Failure;
use crate::launch;
use crate::paths;

/// What is served when no file is named.
pub const DEFAULT_COG_YAML: &str = include_str!("../../../cog.yaml");

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

    /// The named file's text.
    pub fn text(&self) -> Result<Option<String>, Failure> {
        self.config.as_ref().map(|path| text_of("--config", path)).transpose()
    }

    /// The named file.
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
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
    /// The pinned weights; none where cog.yaml names a path, or a set that nobody has pinned here.
    pub locked: Option<Locked>,
    /// Of what lies at a path: read once.
    digest: OnceLock<String>,
}

pub struct Locked {
    pub entry: Entry,
    pub kept: Kept,
}

/// Where pinned weights come from.
pub enum Kept {
    /// The model's own set: its folder's cog.yaml lists these.
    Mirrors(Vec<Source>),
    /// A set of the deployment's cog.yaml, as the weights.lock beside that pins it.
    Own(Box<Own>),
}

impl Deployment {
    /// What is served when no file is named.
    pub fn built_in() -> Result<Self, Failure> {
        Self::read(DEFAULT_COG_YAML, None)
    }

    /// `word` is the one that named the file.
    pub fn read_file(word: &str, path: &Path) -> Result<Self, Failure> {
        Self::read(&text_of(word, path)?, Some(path))
    }

    /// Resolves every name in a cog.yaml's text.
    fn read(text: &str, file: Option<&Path>) -> Result<Self, Failure> {
        let config = Config::parse_with(text, &known).map_err(|error| Failure::BadInput(error.to_string()))?;
        let own = file.map(|file| own_sets(text, file, &config)).transpose()?.unwrap_or_default();
        let offers = config.models.iter().map(|served| offer(served, &own)).collect::<Result<_, _>>()?;
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
        Self::read(&json!({"native": {"models": [served]}}).to_string(), None)
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

/// `word` is the one that named the file.
pub fn text_of(word: &str, path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path);
    text.map_err(|error| Failure::BadInput(format!("{word} {}: {error}", path.display())))
}

/// The sets that a cog.yaml declares, as the weights.lock beside it pins them. Where the two do not fit, nothing is served;
/// without a lock they count only if one of them is to be served: a container of Cog's may name what is never opened here.
fn own_sets(text: &str, file: &Path, config: &Config) -> Result<BTreeMap<String, Own>, Failure> {
    let declared = runner::weights::declared(text)?;
    let named = |name: &str| config.container.weights.iter().any(|weights| weights.name == name);
    let served = |model: &Served| matches!(&model.weights, WeightsFrom::Locked(name) if named(name));
    let lock = match read_lock(file)? {
        Some(lock) => lock,
        None if config.models.iter().any(served) => Lock::new(Vec::new()),
        None => return Ok(BTreeMap::new()),
    };
    if declared.is_empty() {
        return Ok(BTreeMap::new());
    }
    let drift = runner::weights::drift(&declared, &lock);
    if !drift.is_empty() {
        let drift: String = drift.iter().map(|drift| format!("\n  {drift}")).collect();
        let (file, lock) = (file.display(), lock_of(file).display().to_string());
        return Err(Failure::Failed(format!(
            "{file} and {lock} do not fit:{drift}\n`pinion weights lock --config {file}` pins what is declared"
        )));
    }
    let base = folder_of(file).canonicalize().map_err(|e| Failure::Failed(format!("{}: {e}", file.display())))?;
    let own = |entry: Entry| (entry.name.clone(), Own { entry, base: base.clone() });
    Ok(lock.weights.into_iter().map(own).collect())
}

/// The weights.lock of a cog.yaml, if it has one.
pub fn read_lock(file: &Path) -> Result<Option<Lock>, Failure> {
    let at = lock_of(file);
    match std::fs::read_to_string(&at) {
        Ok(text) => Ok(Some(Lock::parse(&text)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Failed(format!("{}: {error}", at.display()))),
    }
}

/// The weights.lock beside a cog.yaml.
pub fn lock_of(file: &Path) -> PathBuf {
    file.with_file_name("weights.lock")
}

/// What the paths in a cog.yaml's `weights:` are relative to.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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

fn offer(served: &Served, own: &BTreeMap<String, Own>) -> Result<Offer, Failure> {
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
        WeightsFrom::Locked(name) => {
            let locked = match own.get(name) {
                Some(own) => own_locked(own).map(Some),
                None => locked(model, name),
            };
            locked.map_err(|failure| here(failure.to_string()))?
        }
    };
    Ok(Offer { served: served.clone(), model, schema, locked, digest: OnceLock::new() })
}

/// None for a set that the model declares and nobody has pinned here: it is served, and a prediction says so.
fn locked(model: &models::Entry, name: &str) -> Result<Option<Locked>, Failure> {
    let lock = Lock::parse(model.lock)?;
    if let Some(entry) = lock.weights.into_iter().find(|entry| entry.name == name) {
        let kept = Kept::Mirrors(runner::weights::mirrors(model.manifest, name)?);
        return Ok(Some(Locked { kept, entry }));
    }
    let declared = runner::weights::declared(model.manifest)?;
    if declared.iter().all(|set| set.name != name) {
        return Err(Failure::failed(format!("weights {name:?} is not in its weights.lock")));
    }
    let file = pinned_here(model);
    let Some(lock) = read_lock(&file)? else { return Ok(None) };
    let Some(entry) = lock.weights.into_iter().find(|entry| entry.name == name) else { return Ok(None) };
    own_locked(&Own { entry, base: folder_of(&file).to_owned() }).map(Some)
}

/// Where the sets that a model of this build declares are pinned on this machine: a cog.yaml's place, with a lock beside it.
pub fn pinned_here(model: &models::Entry) -> PathBuf {
    paths::data(None).join("weights").join(model.name).join("cog.yaml")
}

/// Noted where a worker will look.
fn own_locked(own: &Own) -> Result<Locked, Failure> {
    own.note(&Options::from_env())?;
    Ok(Locked { entry: own.entry.clone(), kept: Kept::Own(Box::new(own.clone())) })
}

impl Offer {
    /// How the worker is to load it; `weights` in place of the deployment's own.
    pub fn spec(&self, weights: Option<PathBuf>) -> LoadSpec {
        // Nobody has pinned what a caller names.
        let known = weights.is_none().then(|| [("version", self.version().ok()), ("weights", self.set_digest().ok())]);
        let known = known.into_iter().flatten().filter_map(|(name, digest)| Some((name.to_owned(), digest?.into())));
        let provenance = Box::new(known.collect());
        let weights = match (weights, &self.served.weights) {
            (Some(path), _) => Weights::Path(path),
            (None, WeightsFrom::Locked(_)) if let Some(path) = self.own_path() => Weights::Path(path),
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
            batch_invariant: self.served.batch_invariant,
            defaults: self.served.defaults.clone(),
            provenance,
            ..LoadSpec::new(&self.served.name, self.model.name, weights)
        }
    }

    /// Where a set of the deployment's own lies once it is ready.
    fn own_path(&self) -> Option<PathBuf> {
        match &self.locked.as_ref()?.kept {
            Kept::Own(own) => Some(own.path(&Options::from_env())),
            Kept::Mirrors(_) => None,
        }
    }

    /// What random weights of this shape are made in.
    fn synth_dtype(&self, shape: &str) -> &str {
        let usual = || self.model.shape(shape).map_or("bf16", |shape| shape.dtype);
        // What they are rounded to afterwards is nothing that they can be made in.
        let made = |precision: &&str| ["f32", "f16", "bf16"].contains(precision);
        self.served.precision.as_deref().filter(made).unwrap_or_else(usual)
    }

    /// As dispatch is told of it.
    pub fn resident(&self) -> dispatch::Served {
        let Served { device, pinned, preload, keep_alive_seconds, .. } = &self.served;
        dispatch::Served {
            on: device.clone().map_or(dispatch::On::Any, dispatch::On::Device),
            pinned: *pinned,
            preload: *preload,
            keep_alive_seconds: *keep_alive_seconds,
            version: self.version().ok(),
            weights: self.set_digest().ok(),
            ..dispatch::Served::new(self.spec(None))
        }
    }

    /// The digest of what decides behaviour: this model's line in cog.yaml, its weights and its schema.
    pub fn version(&self) -> Result<String, Failure> {
        let manifest = json!({
            "model": self.model.name,
            "precision": self.served.precision,
            "context_tokens": self.served.context_tokens,
        });
        Ok(schema::version_id(&manifest, &self.set_digest()?, &self.schema))
    }

    /// What can be known of the weights before a load: refuses those that show to be altered, notes what may be, and takes the
    /// digest of what lies at a path. That is reading it, where it has changed since; `report` hears of it.
    pub fn know(&self, report: &mut dyn FnMut(Progress)) -> Result<Vec<String>, Failure> {
        match (&self.locked, &self.served.weights) {
            (Some(Locked { kept: Kept::Own(own), .. }), _) => Ok(own.glance(&Options::from_env())?),
            (None, WeightsFrom::Path(path)) => self.digest_of(path, report).map(|_| Vec::new()),
            _ => Ok(Vec::new()),
        }
    }

    fn digest_of(&self, path: &Path, report: &mut dyn FnMut(Progress)) -> Result<String, Failure> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest.clone());
        }
        let entry = runner::weights::lock_known(&self.served.name, path, &Options::from_env(), report)?;
        Ok(self.digest.get_or_init(|| entry.set_digest).clone())
    }

    /// What names the weights' bytes.
    pub fn set_digest(&self) -> Result<String, Failure> {
        Ok(match (&self.locked, &self.served.weights) {
            (Some(locked), _) => locked.entry.set_digest.clone(),
            (None, WeightsFrom::Path(path)) => self.digest_of(path, &mut |_| {})?,
            (None, WeightsFrom::Synth(shape)) => runner::synth::title(shape, self.synth_dtype(shape), SYNTH_SEED),
            (None, WeightsFrom::Locked(name)) => format!("{name}, not pinned"),
        })
    }
}
