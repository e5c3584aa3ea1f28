//! One prediction on this machine, without a server: the same worker, the same events, the same fold.

use std::path::{Path, PathBuf};

use clap::Args;
use dispatch::{Launch, Link};
use prediction::frame::{FromWorker, Hello, ToWorker};
use prediction::{Event, Id, Job, Map, Numbered, Outcome, Output, Prediction, Request, Timestamp};
use runner::weights::Options;
use serde_json::Value;

use crate::deployment::{CogYaml, Offer};
use crate::failure::Failure;
use crate::{devices, fetch, filing, inputs, launch, out};

#[derive(Args)]
pub struct Words {
    /// A served name: smollm2, or any owner/name of cog.yaml
    model: String,
    /// One input; key=@FILE sends a file. May be repeated
    #[arg(short = 'i', long = "input", value_name = "KEY=VALUE")]
    inputs: Vec<String>,
    /// Where the output goes as well: a file
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Weights of your own in place of the pinned ones: a GGUF file or a folder of safetensors
    #[arg(long, value_name = "DIR_OR_FILE")]
    weights: Option<PathBuf>,
    /// Print the final prediction as JSON instead of the text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: CogYaml,
}

pub fn main(words: Words) -> Result<(), Failure> {
    let deployment = words.config.load()?;
    deployment.set_environment();
    let offer = deployment.find(&words.model)?;
    let input = inputs::read(&words.inputs, &offer.schema)?;
    words.output.as_deref().map_or(Ok(()), may_hold_a_file)?;
    if words.weights.is_none() {
        fetch::ensure(offer, &Options::from_env())?;
    }
    let request = request(offer, &words, input)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let prediction = runtime.block_on(async {
        let brought = filing::bring(&deployment, offer, &request.id, &request.input).await?;
        predict(offer, &words, request, &brought.input).await
    })?;
    show(&words, prediction)
}

/// Said before the work and not after it. The file itself is touched when there is something to write.
fn may_hold_a_file(path: &Path) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::BadInput(format!("-o {}: {why}", path.display())));
    match path.parent() {
        _ if path.is_dir() => refuse("is a folder; a file's name is expected"),
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => refuse("its folder does not exist"),
        _ => Ok(()),
    }
}

fn request(offer: &Offer, words: &Words, input: Map) -> Result<Request, Failure> {
    Ok(Request {
        id: Id::random(),
        model: offer.served.names[0].clone(),
        version: match words.weights {
            // Weights that nobody pinned have no version.
            Some(_) => "hidden".to_owned(),
            None => offer.version()?,
        },
        target: offer.served.name.clone(),
        input,
        seed: prediction::random_seed(),
        created_at: Timestamp::now(),
        deadline: None,
        webhook: None,
        webhook_events_filter: None,
        origin: String::new(),
        stream_key: String::new(),
        streams: false,
    })
}

/// The processor is at hand on a thread; what another device needs, its own executable has.
fn worker(device: &str) -> Result<Link, Failure> {
    if device == "cpu" {
        return launch::Thread.launch(device).map_err(Failure::failed);
    }
    let found = devices::find();
    let processes = launch::Processes::of(&found.devices).map_err(Failure::failed)?;
    processes.launch(device).map_err(|error| {
        let whys: Vec<String> = [error.to_string()].into_iter().chain(found.notes).collect();
        Failure::Failed(whys.join("; "))
    })
}

/// Loads, admits, and folds events until the last one. Text goes out as it comes.
/// `input` is what the request names, as the model gets it.
async fn predict(offer: &Offer, words: &Words, request: Request, input: &Map) -> Result<Prediction, Failure> {
    let spec = offer.spec(words.weights.clone());
    let Link { to, mut from } = worker(&spec.device)?;
    let say = |frame| to(frame).map_err(|gone| Failure::Failed(gone.to_string()));
    let target = request.target.clone();
    say(ToWorker::Hello(Hello {
        build: env!("CARGO_PKG_VERSION").into(),
        device: spec.device.clone(),
        name: String::new(),
        memory: None,
    }))?;
    say(ToWorker::Load { spec, room_bytes: None })?;
    let mut prediction = Prediction::new(request);
    loop {
        let frame = tokio::select! {
            frame = from.recv() => frame,
            _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
        };
        match frame {
            Some(FromWorker::Loading { line, .. }) => eprintln!("pinion: {line}"),
            Some(FromWorker::Loaded { .. }) => {
                let (id, seed) = (prediction.request.id.clone(), prediction.request.seed);
                let job = Job { id, input: input.clone(), seed };
                say(ToWorker::Admit { target: target.clone(), attempt: 1, job })?;
            }
            Some(FromWorker::LoadFailed { error, .. } | FromWorker::Unloaded { why: Some(error), .. }) => {
                return Err(Failure::Failed(error.to_string()));
            }
            Some(FromWorker::Broken { why }) => return Err(Failure::Failed(why)),
            Some(FromWorker::Events(events)) => {
                for emitted in events {
                    let seq = prediction.last_seq + 1;
                    let numbered = Numbered { seq, at: Timestamp::now(), event: emitted.event };
                    let _ = prediction.apply(&numbered);
                    tell(&numbered.event, words.json)?;
                }
            }
            Some(FromWorker::Bye) | None => return Err(Failure::failed("the worker stopped")),
            // It is never told to unload or to stay within some room.
            Some(
                FromWorker::Hello(_)
                | FromWorker::Heartbeat
                | FromWorker::NoRoom { .. }
                | FromWorker::Unloaded { why: None, .. },
            ) => {}
        }
        if prediction.status.is_terminal() {
            return Ok(prediction);
        }
    }
}

/// Text to stdout as it is made, logs to stderr.
fn tell(event: &Event, json: bool) -> Result<(), Failure> {
    match event {
        Event::Output(Output::Item(Value::String(text))) if !json => out::piece(text),
        Event::Output(Output::Whole(Value::String(text))) if !json => out::line(text),
        Event::Log(text) => {
            eprint!("{text}");
            Ok(())
        }
        Event::Ended(Outcome::Succeeded) if !json => out::line(""),
        _ => Ok(()),
    }
}

/// What is left to say once it has ended.
fn show(words: &Words, prediction: Prediction) -> Result<(), Failure> {
    if words.json {
        let body = serde_json::to_string_pretty(&api::render(&prediction)).map_err(Failure::failed)?;
        out::line(body)?;
    }
    if let (Some(path), Some(output)) = (&words.output, &prediction.output) {
        std::fs::write(path, joined(output))
            .map_err(|error| Failure::Failed(format!("-o {}: {error}", path.display())))?;
    }
    match prediction.error {
        None => Ok(()),
        Some(error) => Err(Failure::Failed(error)),
    }
}

/// Pieces of text as one text; any other output as JSON.
fn joined(output: &Value) -> String {
    match output {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => items.iter().filter_map(Value::as_str).collect(),
        other => other.to_string(),
    }
}
