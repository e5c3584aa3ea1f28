//! One prediction on this machine, without a server: the same worker, the same events, the same fold.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use clap::Args;
use dispatch::{Launch, Link};
use prediction::frame::{FromWorker, Hello, ToWorker};
use prediction::{Event, Id, Job, LoadSpec, Map, Numbered, Outcome, Output, Prediction, Request, Timestamp};
use runner::weights::Options;
use schema::ModelSchema;
use serde_json::Value;

use crate::deployment::{CogYaml, Offer};
use crate::failure::Failure;
use crate::{devices, fetch, filing, inputs, launch, made, out};

#[derive(Args)]
pub struct Words {
    /// A served name: smollm2, or any owner/name of cog.yaml
    model: String,
    /// One input; key=@FILE sends a file. May be repeated
    #[arg(short = 'i', long = "input", value_name = "KEY=VALUE")]
    inputs: Vec<String>,
    /// Where the output goes as well: a file. Several files of a model that makes files are numbered: out-0.png, out-1.png;
    /// left out, they go into this folder under the model's own names
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Weights of your own in place of the pinned ones: a GGUF file or a folder of safetensors
    #[arg(long, value_name = "DIR_OR_FILE")]
    weights: Option<PathBuf>,
    /// Print the final prediction as JSON instead of its text, or of its files' paths
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
        predict(offer.spec(words.weights.clone()), request, &brought.input, |event| {
            tell(event, &offer.schema, words.json)
        })
        .await
    })?;
    show(&words, &offer.schema, prediction)
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
    let processes = launch::Processes::of(&found.devices, |_| 0).map_err(Failure::failed)?;
    processes.launch(device).map_err(|error| {
        let whys: Vec<String> = [error.to_string()].into_iter().chain(found.notes).collect();
        Failure::Failed(whys.join("; "))
    })
}

/// Loads, admits, and folds events until the last one; `tell` hears them as they come.
/// `input` is what the request names, as the model gets it.
pub async fn predict(
    spec: LoadSpec,
    request: Request,
    input: &Map,
    tell: impl Fn(&Event) -> Result<(), Failure>,
) -> Result<Prediction, Failure> {
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
                    tell(&numbered.event)?;
                }
            }
            Some(FromWorker::Bye) | None => return Err(Failure::failed("the worker stopped")),
            // It is never told to unload or to stay within some room.
            Some(
                FromWorker::Hello(_)
                | FromWorker::Heartbeat
                | FromWorker::NoRoom { .. }
                | FromWorker::HostCache { .. }
                | FromWorker::Unloaded { why: None, .. },
            ) => {}
        }
        if prediction.status.is_terminal() {
            return Ok(prediction);
        }
    }
}

/// Text to stdout as it is made, logs to stderr.
fn tell(event: &Event, schema: &ModelSchema, json: bool) -> Result<(), Failure> {
    match event {
        Event::Log(text) => {
            eprint!("{text}");
            Ok(())
        }
        _ if json => Ok(()),
        // They are written once all are there.
        Event::Output(_) if schema.is_files() => Ok(()),
        Event::Output(Output::Item(Value::String(text))) => out::piece(text),
        Event::Output(Output::Whole(output)) => out::line(read_as(schema, output).trim()),
        Event::Ended(Outcome::Succeeded) if schema.output == schema::Output::TextIterator => out::line(""),
        _ => Ok(()),
    }
}

/// What is left to say once it has ended.
fn show(words: &Words, schema: &ModelSchema, mut prediction: Prediction) -> Result<(), Failure> {
    if let Some(output) = prediction.output.as_mut().filter(|_| schema.is_files()) {
        let written = made::write(output, words.output.as_deref())?;
        if !words.json {
            written.iter().try_for_each(|path| out::line(path.display()))?;
        }
    }
    if words.json {
        let body = serde_json::to_string_pretty(&api::render(&prediction)).map_err(Failure::failed)?;
        out::line(body)?;
    }
    if let (Some(path), Some(output), false) = (&words.output, &prediction.output, schema.is_files()) {
        std::fs::write(path, read_as(schema, output).as_bytes())
            .map_err(|error| Failure::Failed(format!("-o {}: {error}", path.display())))?;
    }
    match prediction.error {
        None => Ok(()),
        Some(error) => Err(Failure::Failed(error)),
    }
}

/// The text that the model's schema says is the answer; any other output as JSON.
fn read_as<'a>(schema: &ModelSchema, output: &'a Value) -> Cow<'a, str> {
    schema.text(output).unwrap_or_else(|| Cow::Owned(output.to_string()))
}
