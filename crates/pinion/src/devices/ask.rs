//! One question to a process of its own, with a time limit, answered by a line of JSON. Refuses to know what is asked.

use std::fmt;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use runner::device::About;
use runner::device::probe::Probe;
use serde::de::DeserializeOwned;

use crate::process;

/// What a driver or an executable may take to answer. A cold driver with eight GPUs takes a few seconds.
pub const LIMIT: Duration = Duration::from_secs(10);
/// A longer answer is cut.
const ANSWER_BYTES: u64 = 1 << 20;

/// How much is asked of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Driver,
    FreeMemory,
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswered {
    NotStarted(String),
    TimedOut(Duration),
    /// By a signal.
    Crashed(i32),
    /// Its last words.
    Ended(String),
}

/// As what it did: "did not answer within 10 s".
impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(why) => write!(f, "does not start ({why})"),
            Self::TimedOut(limit) => write!(f, "did not answer within {} s", limit.as_secs()),
            Self::Crashed(signal) => write!(f, "crashed (signal {signal})"),
            Self::Ended(words) => write!(f, "ended without an answer ({words})"),
        }
    }
}

/// The driver, through this program.
pub fn itself(ask: Ask) -> Result<Probe, Unanswered> {
    let program = process::itself().map_err(|error| Unanswered::NotStarted(error.to_string()))?;
    let mut command = Command::new(program);
    command.arg0("pinion").arg("probe").args((ask == Ask::FreeMemory).then_some("--free"));
    answer(command, LIMIT)
}

pub fn about(path: &Path) -> Result<About, Unanswered> {
    let mut command = Command::new(path);
    command.args(["probe", "--about"]);
    answer(command, LIMIT)
}

pub(super) fn answer<T: DeserializeOwned>(mut command: Command, limit: Duration) -> Result<T, Unanswered> {
    let not_started = |error: std::io::Error| Unanswered::NotStarted(error.to_string());
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(not_started)?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Unanswered::NotStarted("its pipes are missing".into()));
    };
    let (send, answer) = mpsc::channel();
    let words = send.clone();
    std::thread::spawn(move || words.send((false, read(stderr))));
    std::thread::spawn(move || send.send((true, read(stdout))));
    // Both pipes end with the process, unless it left a child of its own with them.
    let (mut said, mut last_words) = (None, String::new());
    let end = std::time::Instant::now() + limit;
    loop {
        match answer.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
            Ok((true, text)) => said = Some(text),
            Ok((false, text)) => last_words = text,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                // An error is a process that has just ended by itself. A thread that still reads ends with the pipe.
                let _ = child.kill();
                let _ = child.wait();
                return Err(Unanswered::TimedOut(limit));
            }
        }
    }
    let status = child.wait().map_err(not_started)?;
    match said.and_then(|text| serde_json::from_str(text.trim()).ok()) {
        Some(answer) if status.success() => Ok(answer),
        _ => Err(unanswered(status, &last_words)),
    }
}

fn read(pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error is what was said.
    let _ = pipe.take(ANSWER_BYTES).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn unanswered(status: ExitStatus, last_words: &str) -> Unanswered {
    let last = last_words.lines().map(str::trim).rfind(|line| !line.is_empty());
    match (status.signal(), last) {
        (Some(signal), _) => Unanswered::Crashed(signal),
        (None, Some(line)) => Unanswered::Ended(line.to_owned()),
        (None, None) => Unanswered::Ended(status.to_string()),
    }
}
