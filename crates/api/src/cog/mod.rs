//! The HTTP API of a Cog container, version 0.23, for one model: the same ten routes, states, streams, webhooks and words, on
//! the same path of a prediction as the hosted API. What differs from the real server is listed in docs/cog-differences.md.
//!
//! Nothing is kept: an id is known while its prediction runs. Refuses to know how a model runs, and where its weights are.

mod accept;
mod body;
mod describe;
mod envelope;
mod extras;
mod health;
mod refuse;
mod routes;
mod run;
mod runs;
mod setup;
mod stream;
mod upload;
mod webhook;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dispatch::{Dispatch, Launch};
use egress::Egress;
use prediction::Prediction;
use schema::ModelSchema;
use store::MemoryStore;
use store::feed::Feed;

pub use describe::document;
pub use setup::{Report, STARTS, Setup, Stage};
pub use upload::Naming;

use runs::Runs;
use setup::Overheard;

/// The version of Cog whose HTTP API this is.
pub const COG_VERSION: &str = "0.23.1";

/// What the container is told once.
#[derive(Clone)]
pub struct Settings {
    /// The served name, e.g. `smollm2`.
    pub target: String,
    pub schema: ModelSchema,
    /// Predictions at once; one more is a 409. Fewer where the model takes fewer.
    pub slots: usize,
    /// In place of the 409, those that find no slot wait.
    pub queue: bool,
    /// Answer `GET /predictions/{id}`, also for so long after its end; none: as Cog, which has no such route.
    pub keep: Option<Duration>,
    /// Where output files are put; none: they are data URIs in the output.
    pub upload_url: Option<String>,
    pub file_name: Naming,
    /// Events of one stream that can be replayed; 0: none are.
    pub stream_history: usize,
    /// Between two webhooks that only bring logs.
    pub throttle: Duration,
    /// With every webhook as `Authorization: Bearer`.
    pub webhook_token: Option<String>,
    /// Of webhooks; none: Pinion's own.
    pub user_agent: Option<String>,
    pub body_bytes: usize,
    /// Inside Kubernetes, where the first READY that is asked for leaves this file.
    pub ready_file: Option<std::path::PathBuf>,
}

/// What runs predictions, once it is there.
pub struct Engine {
    pub store: Arc<MemoryStore>,
    pub feed: Feed,
    pub dispatch: Dispatch,
    pub egress: Egress,
    /// The version id of what is served: digests of weights, schema and manifest.
    pub version: String,
    /// Whatever must live as long.
    pub keep: Box<dyn std::any::Any + Send + Sync>,
}

/// The face of one model. It answers before there is an engine behind it.
#[derive(Clone)]
pub struct Cog(Arc<Face>);

/// What handlers share.
struct Face {
    settings: Settings,
    setup: Arc<Setup>,
    runs: Arc<Runs>,
    engine: OnceLock<Engine>,
    /// Notified by `POST /shutdown`.
    shutdown: tokio::sync::Notify,
    /// What ended lately, the oldest first: only with `keep`.
    ended: Mutex<VecDeque<(tokio::time::Instant, String, Prediction)>>,
}

impl Cog {
    pub fn new(settings: Settings) -> Self {
        let runs = Arc::new(Runs::new(settings.slots, settings.queue));
        Self(Arc::new(Face {
            settings,
            setup: Arc::default(),
            runs,
            engine: OnceLock::new(),
            shutdown: tokio::sync::Notify::new(),
            ended: Mutex::default(),
        }))
    }

    pub fn router(&self) -> axum::Router {
        routes::router(self.0.clone())
    }

    pub fn setup(&self) -> &Setup {
        &self.0.setup
    }

    /// Workers whose words the setup hears.
    pub fn overhear(&self, launch: Arc<dyn Launch>) -> Arc<dyn Launch> {
        Arc::new(Overheard { launch, setup: self.0.setup.clone() })
    }

    /// There is something to run predictions; called once.
    pub fn started(&self, engine: Engine) {
        // A second one would have nobody to serve.
        let _ = self.0.engine.set(engine);
    }

    /// When somebody posted to `/shutdown`.
    pub async fn shutdown_asked(&self) {
        self.0.shutdown.notified().await;
    }

    /// When nothing runs.
    pub async fn idle(&self) {
        self.0.runs.idle().await;
    }

    /// When no webhook is on its way.
    pub async fn told(&self) {
        self.0.runs.told().await;
    }
}

impl Face {
    /// What runs predictions, if the model is ready for them.
    fn ready(&self) -> Option<&Engine> {
        self.engine.get().filter(|_| self.setup.stage() == Stage::Ready)
    }
}
