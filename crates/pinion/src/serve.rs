//! `pinion serve`: wires store, dispatch, worker, webhooks and API together, listens, and stops without losing anything.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use clap::Args;
use dispatch::{Dispatch, Settings, Silence};
use egress::{Egress, Rules};
use prediction::Timestamp;
use store::feed::Feed;
use store::{SqliteStore, Store};
use tracing::{info, warn};
use webhook::Webhooks;

use crate::deployment::{CogYaml, Deployment, Offer};
use crate::failure::Failure;
use crate::filing::Filing;
use crate::launch::Processes;
use crate::tls::{self, Tls};
use crate::{devices, paths, places};

#[derive(Args)]
pub struct Words {
    /// Address and port; any but a loopback address needs a token
    #[arg(long, default_value = "127.0.0.1:5000", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Where predictions are kept
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    tls: tls::Files,
    #[command(flatten)]
    config: CogYaml,
    /// Random weights of this shape, e.g. llama-3-8b, in place of a cog.yaml: for measuring
    #[arg(long, value_name = "SHAPE", conflicts_with = "config")]
    synth: Option<String>,
    /// With --synth: the precision they are made in; left out: as the real weights are published
    #[arg(long, requires = "synth", value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
}

pub fn main(words: Words) -> Result<(), Failure> {
    let deployment = match &words.synth {
        Some(shape) => Deployment::synth(shape, words.dtype.as_deref())?,
        None => words.config.load()?,
    };
    deployment.set_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(serve(words, deployment))
}

async fn serve(words: Words, deployment: Deployment) -> Result<(), Failure> {
    for note in &deployment.config.notes {
        warn!("{note}");
    }
    let folder = paths::data(words.data);
    std::fs::create_dir_all(&folder).map_err(|error| Failure::Failed(format!("{}: {error}", folder.display())))?;
    let _alone = alone(&folder)?;
    let rows = Arc::new(SqliteStore::open(&folder.join(paths::DATABASE)).await.map_err(Failure::failed)?);
    let store: Arc<dyn Store> = rows.clone();
    let auth = auth(&*store, words.listen).await?;
    // All that can refuse to start does so here: what an earlier life left is taken up by a server that will serve.
    for offer in &deployment.offers {
        offer.know(&mut |_| {})?.iter().for_each(|note| warn!("{note}"));
    }
    let served = deployment.offers.iter().map(served).collect::<Result<Vec<_>, _>>()?;
    let found = tokio::task::spawn_blocking(devices::find).await.map_err(Failure::failed)?;
    let places = places::choose(&deployment.config, &found.names())?;
    let host_cache = places::host_cache(&deployment.config, &places, runner::device::memory())?;
    let workers = Processes::of(&found.devices, host_cache).map_err(Failure::failed)?;
    let tls = words.tls.read()?;
    let listener = tokio::net::TcpListener::bind(words.listen)
        .await
        .map_err(|error| Failure::Failed(format!("--listen {}: {error}", words.listen)))?;

    let rules = Rules {
        allow_loopback: words.listen.ip().is_loopback(),
        allow_private: deployment.config.egress.allow_private,
    };
    let egress = Egress::new(rules).map_err(Failure::failed)?;
    let filing = Filing::open(&folder, rows, egress.clone(), &deployment).await?;
    let feed = Feed::new(store.clone());
    // Before dispatch: what it recovers is watched too.
    let render = |prediction: &prediction::Prediction| api::body(prediction);
    let webhooks = Webhooks::start(store.clone(), feed.clone(), egress, Arc::new(render));
    let (launch, inputs) = (filing.keeping(Arc::new(workers)), filing.inputs.clone());
    let settings = settings(&deployment, places);
    let dispatch =
        Dispatch::start_with(store.clone(), feed.clone(), launch, inputs, settings).await.map_err(Failure::failed)?;
    let config = &deployment.config;
    let router = api::router(api::Api {
        store: store.clone(),
        feed,
        dispatch: dispatch.clone(),
        served,
        account: config.account.clone(),
        auth,
        webhook_rules: rules,
        body_bytes: config.limits.body_bytes,
        files: filing.service.clone(),
    });

    let address = listener.local_addr().map_err(Failure::failed)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    info!("listening on {scheme}://{address} (data in {})", folder.display());
    found.notes.iter().for_each(|note| info!("{note}"));
    let (drained, goodbye) = tokio::sync::oneshot::channel();
    let stop = async move {
        stop_signal().await;
        info!("stopping: what runs may finish; a second signal stops at once");
        let in_order = async {
            dispatch.drain().await;
            let _ = tokio::time::timeout(GOODBYE, tell_receivers(&*store)).await;
        };
        let goodbye = tokio::select! {
            () = in_order => GOODBYE,
            () = stop_signal() => Duration::ZERO,
        };
        let _ = drained.send(goodbye);
    };
    let served = async {
        match tls {
            None => axum::serve(listener, router).with_graceful_shutdown(stop).await,
            Some(config) => {
                let listener = Tls::listen(listener, config)?;
                axum::serve(listener, router.layer(Extension(api::OverTls))).with_graceful_shutdown(stop).await
            }
        }
    };
    // A stream of a prediction that still waits stays open for as long as its reader likes: it gets a moment to say so.
    let enough = async { tokio::time::sleep(goodbye.await.unwrap_or_default()).await };
    tokio::select! {
        outcome = served => outcome.map_err(Failure::failed)?,
        () = enough => {}
    }
    drop(webhooks);
    Ok(())
}

/// What ended while we stopped is told now where its receiver takes it at once; the next start tells the others.
async fn tell_receivers(store: &dyn Store) {
    while store.outbox_due(Timestamp::now(), 1).await.is_ok_and(|due| !due.is_empty()) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// One server per data folder: a second one would take the first one's predictions for those of a crash. The lock goes
/// with the process, however it ends.
fn alone(folder: &Path) -> Result<File, Failure> {
    let path = folder.join("serve.lock");
    let lock = File::create(&path).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::Failed(format!("another `pinion serve` works on --data {}", folder.display())))
        }
        Err(TryLockError::Error(error)) => Err(Failure::Failed(format!("{}: {error}", path.display()))),
    }
}

/// Loopback without a token is open; every other address refuses to start without one.
async fn auth(store: &dyn Store, listen: SocketAddr) -> Result<api::Auth, Failure> {
    let tokens = store.token_list().await.map_err(Failure::failed)?;
    match tokens.iter().any(|token| !token.revoked) {
        true => Ok(api::Auth::Required),
        false if listen.ip().is_loopback() => Ok(api::Auth::OpenUntilToken),
        false => Err(Failure::BadInput(format!(
            "--listen {listen} is not a loopback address: anybody who reaches it could use this machine; \
             make a token first with `pinion token create NAME`"
        ))),
    }
}

/// How long open connections may take to end once everything that ran has ended.
const GOODBYE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a load may take between two lines of progress before its worker counts as hung: the largest weights from a slow
/// disk.
pub const LOAD_SILENCE_SECONDS: u64 = 600;

/// The data folder's name for its leases: a restart on the same folder knows its own.
const OWNER: &str = "serve";

fn settings(deployment: &Deployment, devices: Vec<dispatch::Device>) -> Settings {
    let config = &deployment.config;
    Settings {
        waiting_limit: config.limits.waiting_predictions,
        run_seconds: config.limits.run_seconds,
        retention_seconds: config.retention_seconds,
        silence: Some(Silence {
            worker_seconds: config.limits.worker_silence_seconds,
            load_seconds: LOAD_SILENCE_SECONDS,
        }),
        devices,
        ..Settings::new(OWNER, deployment.offers.iter().map(Offer::resident).collect())
    }
}

fn served(offer: &Offer) -> Result<api::Served, Failure> {
    let imported = offer.locked.as_ref().and_then(|locked| locked.entry.imported_at.as_deref());
    Ok(api::Served {
        target: offer.served.name.clone(),
        names: offer.served.names.clone(),
        description: offer.served.description.clone(),
        version: offer.version()?,
        aliases: offer.served.versions.clone(),
        schema: offer.schema.clone(),
        created_at: imported.and_then(Timestamp::parse).unwrap_or_else(Timestamp::now),
    })
}

/// Ctrl-C, or the SIGTERM of whoever supervises us.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("the signal handler can be installed");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
