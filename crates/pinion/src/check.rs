//! `pinion doctor --check`: every device that works here answers as the CPU does, says the reference's numbers, and gives
//! its memory back when its worker is killed. Tells what it measured; refuses to serve.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dispatch::Link;
use prediction::frame::{BUILD, FromWorker, Hello, ToWorker};
use prediction::{Event, Id, Job, Map, Outcome, Output};
use schema::config::WeightsFrom;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use crate::deployment::{Deployment, Offer};
use crate::devices::{Device, Found};
use crate::failure::Failure;
use crate::out::print_line;
use crate::{fetch, launch, process};

/// Asked on every device, without chance.
const QUESTION: &str = "What is the capital of France? Answer in one sentence.";
const ANSWER_TOKENS: u32 = 24;
/// What a load and an answer may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// A killed worker's memory is back within this.
const MEMORY_BACK: Duration = Duration::from_secs(1);
/// When it is not, how long to go on looking.
const MEMORY_WAIT: Duration = Duration::from_secs(10);
/// Less than this beside what was free before is the driver's own bookkeeping.
const MEMORY_SLACK_BYTES: u64 = 32 << 20;

pub fn main(deployment: &Deployment, found: &Found, golden: Option<&Path>) -> Result<(), Failure> {
    let offer = smallest(deployment)?;
    let weights = fetch::ensure(offer, &runner::weights::Options::from_env())?;
    let weights = weights.or_else(|| path_of(offer).map(Path::to_owned));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    let mut wrong: Vec<String> = Vec::new();
    let mut expected: Option<String> = None;
    // The CPU, the last of them, says what the others have to say.
    for device in found.devices.iter().rev() {
        let name = &device.device;
        match runtime.block_on(answer(offer, device)) {
            Ok(Answer { text, load, said, back }) => {
                let expected = expected.get_or_insert_with(|| text.clone());
                let equal = *expected == text;
                print_line!(
                    "check    {name}: {} loaded in {:.2} s{}, answered in {:.2} s: {text:?}{}",
                    offer.served.name,
                    load.as_secs_f64(),
                    speed(offer, load),
                    said.as_secs_f64(),
                    if equal { "" } else { ", which is NOT what the CPU says" }
                );
                if !equal {
                    wrong.push(format!("{name} answers otherwise than the CPU"));
                }
                if let Some(back) = back {
                    print_line!("check    {name}: {}", told(&back));
                    wrong.extend((back.took.is_none_or(|took| took > MEMORY_BACK)).then(|| {
                        format!("{name}: a killed worker's memory was not back within {} s", MEMORY_BACK.as_secs())
                    }));
                }
            }
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
        if let (Some(golden), Some(weights)) = (golden, &weights)
            && let Err(why) = numbers(offer, device, weights, golden)
        {
            wrong.push(format!("{name}: {why}"));
        }
    }
    if found.devices.len() == 1 {
        print_line!("check    NO GPU WAS CHECKED: {}", found.notes.join("; "));
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(wrong.join("; "))),
    }
}

/// The served model with the fewest bytes of weights of those that can be asked a question.
fn smallest(deployment: &Deployment) -> Result<&Offer, Failure> {
    let says_text = |offer: &&Offer| matches!((offer.model.schema)().output, schema::Output::TextIterator);
    let offers = deployment.offers.iter().filter(says_text);
    offers
        .min_by_key(|offer| bytes(offer).unwrap_or(u64::MAX))
        .ok_or_else(|| Failure::failed("cog.yaml serves no model that answers in text"))
}

/// How fast its weights were read and made ready, where their size is known.
fn speed(offer: &Offer, load: Duration) -> String {
    let per_second =
        |bytes: u64| format!(" ({} MB at {:.2} GB/s)", bytes / 1_000_000, bytes as f64 / 1e9 / load.as_secs_f64());
    bytes(offer).map(per_second).unwrap_or_default()
}

/// Of its weights, where they are pinned or one file.
fn bytes(offer: &Offer) -> Option<u64> {
    let one_file = |path| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    offer.locked.as_ref().map(|locked| locked.entry.size).or_else(|| path_of(offer).and_then(one_file))
}

/// Where cog.yaml says that the weights lie.
fn path_of(offer: &Offer) -> Option<&Path> {
    match &offer.served.weights {
        WeightsFrom::Path(path) => Some(path),
        _ => None,
    }
}

struct Answer {
    text: String,
    load: Duration,
    said: Duration,
    /// None for the CPU: its memory is the process's, and goes with it.
    back: Option<Back>,
}

/// What became of a GPU's memory when its worker was killed.
struct Back {
    /// Held by the worker at the end.
    held_bytes: u64,
    /// None: not within `MEMORY_WAIT`.
    took: Option<Duration>,
}

fn told(back: &Back) -> String {
    let mib = back.held_bytes >> 20;
    match back.took {
        Some(took) => format!("a killed worker's {mib} MiB were free again after {:.3} s", took.as_secs_f64()),
        None => format!("a killed worker's {mib} MiB were NOT free again after {} s", MEMORY_WAIT.as_secs()),
    }
}

/// One worker's life on one device: it loads, answers and is killed.
async fn answer(offer: &Offer, device: &Device) -> Result<Answer, Failure> {
    let mut watch = Watch::of(device).await?;
    let before = match &mut watch {
        Some(watch) => watch.next(PATIENCE).await.ok_or_else(|| Failure::failed("its free memory is not told"))?,
        None => 0,
    };
    let link = launch::process(device).and_then(|process| process.start()).map_err(Failure::failed)?;
    let (link, spoken) = tokio::time::timeout(PATIENCE, speak(link, offer, device))
        .await
        .map_err(|_| Failure::Failed(format!("no answer within {} s", PATIENCE.as_secs())))?;
    let (text, load, said) = spoken?;
    let back = match &mut watch {
        None => None,
        Some(watch) => {
            let held_bytes = before.saturating_sub(watch.latest().await);
            // Dropping the link is the SIGKILL.
            let killed = Instant::now();
            drop(link);
            let enough = before.saturating_sub(MEMORY_SLACK_BYTES);
            Some(Back { held_bytes, took: watch.until(enough, killed).await })
        }
    };
    Ok(Answer { text, load, said, back })
}

type Spoken = Result<(String, Duration, Duration), Failure>;

/// The link comes back alive, whatever was said on it.
async fn speak(mut link: Link, offer: &Offer, device: &Device) -> (Link, Spoken) {
    let spoken = converse(&mut link, offer, device).await;
    (link, spoken)
}

async fn converse(link: &mut Link, offer: &Offer, device: &Device) -> Spoken {
    let say = |frame| (link.to)(frame).map_err(|gone| Failure::Failed(gone.to_string()));
    let target = offer.served.name.clone();
    let name = String::new();
    say(ToWorker::Hello(Hello { build: BUILD.into(), device: device.device.clone(), name, memory: None }))?;
    let mut spec = offer.spec(None);
    spec.device.clone_from(&device.device);
    say(ToWorker::Load { spec, room_bytes: None })?;
    let (mut text, mut began, mut load) = (String::new(), Instant::now(), Duration::ZERO);
    loop {
        match link.from.recv().await {
            Some(FromWorker::Loaded { .. }) => {
                load = began.elapsed();
                began = Instant::now();
                let job = Job { id: Id::random(), input: input(), seed: 0 };
                say(ToWorker::Admit { target: target.clone(), attempt: 1, job })?;
            }
            Some(FromWorker::Events(events)) => {
                for emitted in events {
                    match emitted.event {
                        Event::Output(Output::Item(Value::String(piece)) | Output::Whole(Value::String(piece))) => {
                            text += &piece;
                        }
                        Event::Ended(Outcome::Succeeded) => return Ok((text, load, began.elapsed())),
                        Event::Ended(outcome) => return Err(Failure::Failed(format!("it ended as {outcome:?}"))),
                        _ => {}
                    }
                }
            }
            Some(FromWorker::LoadFailed { error, .. } | FromWorker::Unloaded { why: Some(error), .. }) => {
                return Err(error.into());
            }
            Some(FromWorker::NoRoom { needed_bytes, room_bytes, .. }) => {
                return Err(Failure::Failed(format!("needs {needed_bytes} bytes; {room_bytes} are free")));
            }
            Some(FromWorker::Broken { why }) => return Err(Failure::Failed(why)),
            Some(FromWorker::Hello(hello)) if hello.build != BUILD => {
                return Err(Failure::Failed(format!("its worker is of version {}; this is {BUILD}", hello.build)));
            }
            Some(FromWorker::Bye) | None => return Err(Failure::failed("the worker stopped; its log says why")),
            Some(_) => {}
        }
    }
}

fn input() -> Map {
    let input = json!({ "prompt": QUESTION, "max_tokens": ANSWER_TOKENS, "temperature": 0 });
    input.as_object().cloned().unwrap_or_default()
}

/// The reference's numbers, by the executable that serves the device.
fn numbers(offer: &Offer, device: &Device, weights: &Path, golden: &Path) -> Result<(), Failure> {
    let name = &device.device;
    let program = device.executable.clone().map_or_else(process::itself, Ok).map_err(Failure::failed)?;
    let output = Command::new(program)
        .args(["golden", offer.model.name])
        .args([weights, golden])
        .args(["--device", name])
        .stdin(Stdio::null())
        .output()
        .map_err(Failure::failed)?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        print_line!("check    {name}: {line}");
    }
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// A GPU's free bytes, told by a process that holds a context of its own.
struct Watch {
    lines: Lines<BufReader<ChildStdout>>,
    free_bytes: u64,
    /// Killed with this.
    _child: Child,
}

impl Watch {
    /// None for the CPU.
    async fn of(device: &Device) -> Result<Option<Self>, Failure> {
        let Some(number) = device.device.strip_prefix("cuda:") else { return Ok(None) };
        let mut child = tokio::process::Command::new(process::itself().map_err(Failure::failed)?)
            .args(["probe", "--watch", number])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Failure::failed)?;
        let stdout = child.stdout.take().ok_or_else(|| Failure::failed("the watch was started without its pipe"))?;
        Ok(Some(Self { lines: BufReader::new(stdout).lines(), free_bytes: 0, _child: child }))
    }

    /// The next word within `limit`: told whenever it changes.
    async fn next(&mut self, limit: Duration) -> Option<u64> {
        let line = tokio::time::timeout(limit, self.lines.next_line()).await.ok()?.ok()??;
        self.free_bytes = line.trim().parse().ok()?;
        Some(self.free_bytes)
    }

    /// What was told last.
    async fn latest(&mut self) -> u64 {
        while self.next(Duration::from_millis(50)).await.is_some() {}
        self.free_bytes
    }

    /// How long after `since` there were `enough` bytes.
    async fn until(&mut self, enough: u64, since: Instant) -> Option<Duration> {
        while self.free_bytes < enough {
            self.next(MEMORY_WAIT.saturating_sub(since.elapsed())).await?;
        }
        Some(since.elapsed())
    }
}
