//! Starts a worker as a process of its own and speaks with it over its stdin and stdout. Dispatch sees a `Link`, as of a
//! thread. Refuses to know what is said, and why a worker is ended.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use dispatch::{Gone, Link};
use prediction::frame::{Emitted, FromWorker, ToWorker};
use prediction::{Event, Outcome};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use worker::pipe::{Held, encode};

/// Bytes read from a worker at once: what a Linux pipe holds.
const READ_BYTES: usize = 64 << 10;
/// A longer line on a worker's stderr is logged in parts.
const LOG_LINE_BYTES: u64 = 8 << 10;

/// This program again, whatever has become of its file since: server and worker are of one build.
pub fn itself() -> io::Result<PathBuf> {
    match cfg!(target_os = "linux") {
        true => Ok(PathBuf::from("/proc/self/exe")),
        false => std::env::current_exe(),
    }
}

/// How a worker's process is started.
pub struct Process {
    pub program: PathBuf,
    pub words: Vec<OsString>,
}

impl Process {
    /// Called inside a tokio runtime.
    pub fn start(&self) -> io::Result<Link> {
        let mut child = Command::new(&self.program)
            .arg0("pinion")
            .args(&self.words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("the worker was started without its pipes"));
        };
        tracing::info!(pid, "a worker starts");
        let (said, from) = mpsc::unbounded_channel();
        let (to, frames) = mpsc::unbounded_channel();
        let (held, dropped) = oneshot::channel::<()>();
        tokio::spawn(speak(stdin, frames, said.downgrade()));
        tokio::spawn(listen(stdout, said));
        tokio::spawn(log(stderr));
        tokio::spawn(keep(child, pid, dropped));
        let to = move |frame| {
            let _alive_while_this_is = &held;
            to.send(frame).map_err(|_| Gone)
        };
        Ok(Link { to: Box::new(to), from })
    }
}

/// Reaps the process; ends it first when the link has been dropped.
async fn keep(mut child: Child, pid: u32, dropped: oneshot::Receiver<()>) {
    let ended = tokio::select! {
        status = child.wait() => status,
        _ = dropped => {
            // An error is a process that has ended by itself meanwhile; how, `wait` tells.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    match ended {
        Ok(status) => tracing::info!(pid, %status, "the worker has ended"),
        Err(error) => tracing::error!(pid, %error, "the worker's end could not be seen"),
    }
}

/// What dispatch says, as many frames in one write as are waiting.
async fn speak(
    mut stdin: ChildStdin,
    mut frames: mpsc::UnboundedReceiver<ToWorker>,
    said: mpsc::WeakUnboundedSender<FromWorker>,
) {
    let mut batch = Vec::new();
    while let Some(first) = frames.recv().await {
        let mut next = Some(first);
        while let Some(frame) = next {
            if let Err(error) = encode(&frame, &mut batch) {
                refuse(frame, &error, &said);
            }
            next = frames.try_recv().ok();
        }
        if let Err(error) = stdin.write_all(&batch).await {
            tracing::warn!(%error, "the worker does not listen any more");
            return;
        }
        batch = Vec::new();
    }
}

/// A prediction that does not fit a frame has failed. Nothing else that is said can be that large.
fn refuse(frame: ToWorker, error: &io::Error, said: &mpsc::WeakUnboundedSender<FromWorker>) {
    tracing::error!(%error, "a frame cannot be sent to the worker");
    if let (ToWorker::Admit { attempt, job, .. }, Some(said)) = (frame, said.upgrade()) {
        let event = Event::Ended(Outcome::Failed { error: format!("the input is too large: {error}") });
        let _ = said.send(FromWorker::Events(vec![Emitted { id: job.id, attempt, event }]));
    }
}

/// What the worker says, until it ends or cannot be understood. Either way dispatch hears the end of the channel.
async fn listen(mut stdout: ChildStdout, said: mpsc::UnboundedSender<FromWorker>) {
    let mut held = Held::default();
    let mut piece = vec![0; READ_BYTES];
    while let Ok(count) = stdout.read(&mut piece).await
        && count > 0
    {
        held.push(&piece[..count]);
        loop {
            match held.take() {
                Ok(Some(frame)) => {
                    if said.send(frame).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => return tracing::error!(%error, "the worker cannot be understood"),
            }
        }
    }
}

/// The worker's stderr in our log: lines that begin with a level at that level, any other (a panic, a library) as a
/// warning.
async fn log(stderr: impl AsyncRead + Unpin) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while let Ok(count) = (&mut stderr).take(LOG_LINE_BYTES).read_until(b'\n', &mut line).await
        && count > 0
    {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        match text.split_once(' ').unwrap_or((text, "")) {
            ("ERROR", rest) => tracing::error!("worker: {}", rest.trim_start()),
            ("INFO", rest) => tracing::info!("worker: {}", rest.trim_start()),
            ("DEBUG" | "TRACE", rest) => tracing::debug!("worker: {}", rest.trim_start()),
            ("WARN", rest) => tracing::warn!("worker: {}", rest.trim_start()),
            _ if text.is_empty() => {}
            _ => tracing::warn!("worker: {text}"),
        }
        line.clear();
    }
}
