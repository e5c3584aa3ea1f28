//! Who runs next and where: one in-process owner of every live prediction. It gives each to a worker in arrival order, has
//! models loaded and unloaded for that, numbers what comes back, tells the live readers at once and the store in batches.
//!
//! Refuses to know HTTP, models and how a worker is run: a thread or a process looks the same through a `Link`.

mod bring;
mod core;
mod health;
mod hear;
mod inputs;
mod lease;
mod link;
mod live;
mod lose;
mod place;
mod recover;
mod residency;
mod route;
mod settings;
mod silence;
mod stop;
mod target;
mod timers;
mod wait;
mod write;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prediction::{Id, Prediction, Request};
use store::feed::Feed;
use store::{CancelOutcome, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::core::{Core, Said};
pub use health::{DeviceHealth, Health, ModelHealth, ModelState, TargetHealth};
pub use inputs::{AsSent, Asked, Inputs, Prepared, Say};
pub use link::{Gone, Launch, Link};
pub use settings::{Device, Lost, On, Served, Settings};
pub use silence::Silence;

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("{waiting} predictions are already waiting; at most {limit} may")]
    Full { waiting: u64, limit: u64 },
    #[error("the server is shutting down")]
    Draining,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How long a cancel waits for the end that it asked for, so that the answer normally shows it.
const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// The handle everybody holds. Cheap to clone; the core ends with the last of them.
#[derive(Clone)]
pub struct Dispatch {
    core: mpsc::UnboundedSender<Said>,
    store: Arc<dyn Store>,
    feed: Feed,
    health: Arc<Mutex<(Health, Instant)>>,
}

impl Dispatch {
    /// Recovers what an earlier life of this data directory left, launches the workers and begins. When this returns,
    /// every unfinished prediction is live in the feed.
    pub async fn start(
        store: Arc<dyn Store>,
        feed: Feed,
        launch: Arc<dyn Launch>,
        settings: Settings,
    ) -> Result<Self, StoreError> {
        Self::start_with(store, feed, launch, Arc::new(AsSent), settings).await
    }

    /// The same with somebody who brings here what inputs name.
    pub async fn start_with(
        store: Arc<dyn Store>,
        feed: Feed,
        launch: Arc<dyn Launch>,
        inputs: Arc<dyn Inputs>,
        settings: Settings,
    ) -> Result<Self, StoreError> {
        let (said, hear) = mpsc::unbounded_channel();
        let health = Arc::new(Mutex::new((Health::default(), Instant::now())));
        let mut core = Core::new(store.clone(), feed.clone(), launch, settings, said.downgrade(), health.clone());
        core.inputs = inputs;
        core.recover().await?;
        // Nobody sees a server without devices, however soon they ask.
        core.show_health();
        tokio::spawn(core.run(hear));
        Ok(Self { core: said, store, feed, health })
    }

    /// Accepts a prediction. It is durable, and live in the feed, when this returns; dropping the future withdraws
    /// nothing.
    pub async fn submit(&self, request: Request) -> Result<Prediction, SubmitError> {
        let (answer, answered) = oneshot::channel();
        self.core.send(Said::Submit(Box::new(request), answer)).map_err(|_| SubmitError::Draining)?;
        answered.await.map_err(|_| SubmitError::Draining)?
    }

    /// The state after; an ended prediction is unchanged, an unknown one is `None`.
    pub async fn cancel(&self, id: &Id) -> Result<Option<Prediction>, StoreError> {
        let (here, is_here) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        if self.core.send(Said::Cancel(id.clone(), here, ended)).is_ok() && is_here.await == Ok(true) {
            // Not ended in time: the answer shows the state as it is, and the end follows.
            let _ = tokio::time::timeout(CANCEL_WAIT, end).await;
        } else if self.store.request_cancel(id).await? == CancelOutcome::NotFound {
            return Ok(None);
        }
        self.feed.snapshot(id).await
    }

    /// How things stand.
    pub fn health(&self) -> Health {
        let (mut health, at) = self.health.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let since = at.elapsed().as_secs();
        let models = health.devices.iter_mut().flat_map(|device| &mut device.models);
        models.filter_map(|model| model.idle_seconds.as_mut()).for_each(|seconds| *seconds += since);
        health
    }

    /// For shutdown: nothing new is accepted or started, what runs may finish, everything said is stored.
    pub async fn drain(&self) {
        let (asked, drained) = oneshot::channel();
        if self.core.send(Said::Drain(asked)).is_ok() {
            // An error is a core that is gone: nothing is left to wait for.
            let _ = drained.await;
        }
    }
}
