//! `pinion cog`: one model behind the HTTP API of a Cog container. It listens before it looks for devices or weights, so that
//! whoever supervises it hears STARTING at once; and it stops when what runs has ended.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::cog::{Cog, Engine, STARTS, Settings, Stage};
use clap::Args;
use dispatch::{Dispatch, Lost, Silence};
use egress::{Egress, Rules};
use store::feed::Feed;
use store::{MemoryStore, Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::deployment::{DEFAULT_COG_YAML, Deployment, Offer, text_of};
use crate::failure::Failure;
use crate::filing::Passing;
use crate::launch::Processes;
use crate::serve::LOAD_SILENCE_SECONDS;
use crate::{devices, labels, out, places};

#[derive(Args)]
pub struct Words {
    /// Which model of the file; left out: its first one
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// What is served; left out: the cog.yaml of this folder or of one above, else the built-in one
    #[arg(short, long, alias = "config", value_name = "COG.YAML")]
    file: Option<PathBuf>,
    #[arg(long, default_value = "0.0.0.0", value_name = "ADDRESS")]
    host: IpAddr,
    #[arg(long, env = "PORT", default_value_t = 5000)]
    port: u16,
    /// Put output files there in place of data URIs in the output
    #[arg(long, value_name = "URL")]
    upload_url: Option<String>,
    /// Pay no heed to SIGTERM: stop when POST /shutdown or Ctrl-C says so
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "ANYTHING")]
    await_explicit_shutdown: Option<String>,
    /// Let a request wait for a slot in place of the 409
    #[arg(long)]
    queue: bool,
    /// Answer GET /predictions/{id} too, until so many seconds after the end
    #[arg(long, value_name = "SECONDS")]
    keep: Option<u64>,
    /// Fetch nothing from this machine's own networks, and send no webhooks there
    #[arg(long)]
    public_only: bool,
    /// Where cog.yaml says `build: gpu: true` and there is none, use the processor
    #[arg(long)]
    allow_cpu: bool,
    /// Print what the image of this model says of it, as a LABEL instruction for a Dockerfile, and do nothing else
    #[arg(long)]
    labels: bool,
    /// Only `predict` is there
    #[arg(long, value_name = "MODE", default_value = "predict", value_parser = ["predict", "train"], hide = true)]
    x_mode: String,
    /// Accepted as Cog's server accepts it, and ignored
    #[arg(long, hide = true)]
    threads: Option<String>,
}

/// What Cog takes of a request's body.
const BODY_BYTES: usize = 100 << 20;
/// Events of one stream that are said again, where `COG_STREAM_HISTORY_CAPACITY` says nothing.
const STREAM_HISTORY: usize = 1024;
/// Between webhooks with logs only, where `COG_THROTTLE_RESPONSE_INTERVAL` says nothing.
const THROTTLE_SECONDS: f64 = 0.5;
/// How long webhooks may still be sent when everything has ended.
const GOODBYE: Duration = Duration::from_secs(10);
/// Nobody here ends a prediction for the time it takes.
const RUN_SECONDS: u64 = u32::MAX as u64;
/// What a prediction fails with whose worker was lost. As Cog says it.
const CRASHED: &str = "Worker crashed";
/// Folders looked into for a cog.yaml, from here upwards.
const LEVELS: usize = 100;
/// Cog makes it for the probes of Kubernetes.
const READY_FILE: &str = "/var/run/cog/ready";

/// `COG_LOG_LEVEL` in the words of the log.
pub fn log_level() -> &'static str {
    match std::env::var("COG_LOG_LEVEL").unwrap_or_default().to_ascii_lowercase().as_str() {
        "debug" => "debug",
        "warn" | "warning" => "warn",
        "error" => "error",
        _ => "info",
    }
}

pub fn main(words: Words) -> Result<(), Failure> {
    if words.x_mode != "predict" {
        return Err(Failure::BadInput(format!("--x-mode {}: Pinion trains nothing", words.x_mode)));
    }
    let deployment = deployment(&words)?;
    if words.labels {
        return labels(&words, &deployment);
    }
    deployment.set_environment();
    let deployment = with_slots(deployment);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(serve(words, deployment))
}

/// The file that is named, the nearest one, or the built-in one; of it, one model.
fn deployment(words: &Words) -> Result<Deployment, Failure> {
    let mut deployment = match file(words) {
        Some(path) => Deployment::read_file("--file", &path)?,
        None => Deployment::built_in()?,
    };
    let name = match &words.model {
        Some(name) => deployment.find(name)?.served.name.clone(),
        None => deployment.offers.first().map(|offer| offer.served.name.clone()).unwrap_or_default(),
    };
    if words.model.is_none() && deployment.offers.len() > 1 {
        info!(
            "serving {name}, the first of {} models in the file; --model NAME serves another",
            deployment.offers.len()
        );
    }
    deployment.keep_only(&name);
    Ok(deployment)
}

fn file(words: &Words) -> Option<PathBuf> {
    words.file.clone().or_else(nearest)
}

fn nearest() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors().take(LEVELS).map(|folder| folder.join("cog.yaml")).find(|path| path.is_file())
}

fn labels(words: &Words, deployment: &Deployment) -> Result<(), Failure> {
    let yaml = file(words).map_or_else(|| Ok(DEFAULT_COG_YAML.to_owned()), |path| text_of("--file", &path))?;
    let instruction = labels::instruction(&yaml, &only(deployment)?.schema);
    out::line(instruction.map_err(|error| Failure::BadInput(error.to_string()))?)
}

/// The one model of a deployment that was cut down to it.
fn only(deployment: &Deployment) -> Result<&Offer, Failure> {
    deployment.offers.first().ok_or_else(|| Failure::BadInput("cog.yaml: there is nothing to serve".into()))
}

/// `COG_MAX_CONCURRENCY`, else what the file says, else one at a time.
fn with_slots(mut deployment: Deployment) -> Deployment {
    let asked = number("COG_MAX_CONCURRENCY");
    for offer in &mut deployment.offers {
        let slots = asked.map(|asked: u32| asked.max(1)).or(offer.served.concurrency).unwrap_or(1);
        offer.served.concurrency = Some(slots);
        // It is there as long as the server is.
        (offer.served.pinned, offer.served.preload, offer.served.keep_alive_seconds) = (true, true, None);
    }
    deployment
}

/// What the environment says; what is no number is as good as nothing, as in Cog.
fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    let number = text.trim().parse().ok();
    if number.is_none() {
        warn!("{name} is {text:?}, and a number is expected: it is ignored");
    }
    number
}

/// Cog takes a limit of no time for none.
fn setup_timeout() -> Option<Duration> {
    number("COG_SETUP_TIMEOUT").filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

async fn serve(words: Words, deployment: Deployment) -> Result<(), Failure> {
    let cog = Cog::new(settings(&words, &deployment)?);
    // Before anybody can know that we are here: a signal that comes first is not lost.
    let (mut first, mut second) = (Signals::new()?, Signals::new()?);
    let address = SocketAddr::new(words.host, words.port);
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|error| Failure::Failed(format!("--host {} --port {}: {error}", words.host, words.port)))?;
    let address = listener.local_addr().map_err(Failure::failed)?;
    info!("listening on http://{address}");
    for note in &deployment.config.notes {
        warn!("{note}");
        cog.setup().say(note);
    }
    let (is_patient, stopping) =
        (words.await_explicit_shutdown.as_ref().is_some_and(|text| !text.is_empty()), cog.clone());
    let stop = async move {
        tokio::select! {
            () = stopping.shutdown_asked() => {}
            () = first.next(is_patient) => {}
        }
        info!("stopping: what runs may finish; a second signal stops at once");
    };
    let setup = tokio::spawn(set_up(cog.clone(), words, deployment, setup_timeout()));
    let served = axum::serve(listener, cog.router()).with_graceful_shutdown(stop).into_future();
    let in_order = async {
        served.await.map_err(Failure::failed)?;
        cog.idle().await;
        let _ = tokio::time::timeout(GOODBYE, cog.told()).await;
        // One that is not through yet has run nothing.
        setup.abort();
        if let Some(dispatch) = setup.await.ok().flatten() {
            dispatch.drain().await;
        }
        Ok(())
    };
    tokio::select! {
        outcome = in_order => outcome,
        // The first is the one that `stop` heard too.
        () = async { second.next(is_patient).await; second.next(is_patient).await } => Ok(()),
    }
}

/// The ways to be told to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let new = |kind| signal(kind).map_err(Failure::failed);
        Ok(Self { terminate: new(SignalKind::terminate())?, interrupt: new(SignalKind::interrupt())? })
    }

    /// SIGTERM, unless that is to be ignored, or Ctrl-C.
    async fn next(&mut self, is_patient: bool) {
        tokio::select! {
            _ = self.terminate.recv(), if !is_patient => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn settings(words: &Words, deployment: &Deployment) -> Result<Settings, Failure> {
    let offer = only(deployment)?;
    let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let throttle: f64 = number("COG_THROTTLE_RESPONSE_INTERVAL").unwrap_or(THROTTLE_SECONDS);
    Ok(Settings {
        target: offer.served.name.clone(),
        schema: offer.schema.clone(),
        slots: offer.served.concurrency.unwrap_or(1) as usize,
        queue: words.queue,
        keep: words.keep.map(Duration::from_secs),
        upload_url: words.upload_url.clone(),
        file_name: files::output_name,
        stream_history: number("COG_STREAM_HISTORY_CAPACITY").unwrap_or(STREAM_HISTORY),
        throttle: Duration::try_from_secs_f64(throttle).unwrap_or_default(),
        webhook_token: text("WEBHOOK_AUTH_TOKEN"),
        user_agent: text("COG_USER_AGENT"),
        body_bytes: BODY_BYTES,
        ready_file: ready_file(text),
    })
}

/// Only where Kubernetes says that it is Kubernetes.
fn ready_file(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    variable("KUBERNETES_SERVICE_HOST").map(|_| READY_FILE.into())
}

/// Brings up what is behind the face. A failure is the setup's, and the server stays.
async fn set_up(cog: Cog, words: Words, deployment: Deployment, timeout: Option<Duration>) -> Option<Dispatch> {
    // The search for devices and the first reading of weights count too.
    let until = timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let dispatch = match start(&cog, &words, deployment).await {
        Ok(dispatch) => dispatch,
        Err(failure) => {
            tracing::error!("setup failed: {failure}");
            cog.setup().give_up(&failure.to_string());
            return None;
        }
    };
    let limit = async {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        stage = cog.setup().settled() => match stage {
            Stage::Ready => info!("ready"),
            _ => tracing::error!("setup failed: {}", cog.setup().report().logs.trim_end()),
        },
        () = limit => {
            let seconds = timeout.unwrap_or_default().as_secs();
            cog.setup().give_up(&format!("setup took longer than {seconds} s (COG_SETUP_TIMEOUT)"));
            dispatch.drain().await;
        }
    }
    Some(dispatch)
}

async fn start(cog: &Cog, words: &Words, deployment: Deployment) -> Result<Dispatch, Failure> {
    let saying = cog.clone();
    // Beside each other, and neither where health is answered.
    let known = tokio::task::spawn_blocking(move || know(deployment, &|line| saying.setup().say(line)));
    let found = tokio::task::spawn_blocking(devices::find).await.map_err(Failure::failed)?;
    let mut deployment = known.await.map_err(Failure::failed)??;
    for note in &found.notes {
        info!("{note}");
    }
    let needs_gpu = deployment.config.container.gpu == Some(true);
    if words.allow_cpu && needs_gpu && found.devices.len() == 1 {
        cog.setup().say("there is no GPU that works: the processor is used, as --allow-cpu says");
        deployment.forget_devices();
    }
    let mut places = places::choose(&deployment.config, &found.names())?;
    // One model, loaded once.
    places.truncate(1);
    let rules = Rules { allow_loopback: !words.public_only, allow_private: !words.public_only };
    let egress = Egress::new(rules).map_err(Failure::failed)?;
    let passing = Passing::open(egress.clone(), &deployment)?;
    let launch = cog.overhear(Arc::new(Processes::of(&found.devices, |_| 0).map_err(Failure::failed)?));
    let memory = Arc::new(MemoryStore::new());
    let store: Arc<dyn Store> = memory.clone();
    let feed = Feed::new(store.clone());
    let limits = &deployment.config.limits;
    let settings = dispatch::Settings {
        // Without a queue the slots are the limit.
        waiting_limit: if words.queue { limits.waiting_predictions } else { u64::MAX },
        run_seconds: RUN_SECONDS,
        silence: Some(Silence { worker_seconds: limits.worker_silence_seconds, load_seconds: LOAD_SILENCE_SECONDS }),
        devices: places,
        lost: Lost { runs: 1, loads: STARTS, error: CRASHED.to_owned() },
        ..dispatch::Settings::new("cog", deployment.offers.iter().map(|offer| offer.resident()).collect())
    };
    let dispatch = Dispatch::start_with(store, feed.clone(), launch, passing.inputs.clone(), settings);
    let dispatch = dispatch.await.map_err(Failure::failed)?;
    let version = deployment.offers.first().map(|offer| offer.version()).transpose()?.unwrap_or_default();
    cog.started(Engine { store: memory, feed, dispatch: dispatch.clone(), egress, version, keep: Box::new(passing) });
    Ok(dispatch)
}

/// The digest of somebody's own weights takes a reading of them, the first time.
fn know(deployment: Deployment, say: &dyn Fn(&str)) -> Result<Deployment, Failure> {
    let began = Instant::now();
    let mut read = false;
    let mut lines = |line: &str| say(line);
    let mut lines = runner::weights::lines(&mut lines);
    for offer in &deployment.offers {
        let notes = offer.know(&mut |progress| {
            if !std::mem::replace(&mut read, true) {
                say("the weights are read once for their digest, which names the version");
            }
            lines(progress);
        });
        notes?.iter().for_each(|note| {
            warn!("{note}");
            say(note);
        });
    }
    if read {
        say(&format!("their digest is known after {:.1} s", began.elapsed().as_secs_f64()));
    }
    Ok(deployment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_says_ready_is_left_inside_kubernetes_alone() {
        let inside = |asked: &str| (asked == "KUBERNETES_SERVICE_HOST").then(|| "10.0.0.1".to_owned());
        assert_eq!(ready_file(inside).as_deref(), Some("/var/run/cog/ready".as_ref()));
        assert_eq!(ready_file(|_| None), None);
    }
}
