//! The loop as a process of its own: frames come on one pipe and go on another. Refuses to know which descriptors these
//! are and how a process ends.

use std::io::{Read, Write};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use prediction::frame::{FromWorker, ToWorker};
use prediction::{Event, Outcome};

use crate::pipe::{Reader, Writer};
use crate::{Owned, Registry, pulse, run};

/// Runs until told to go. `leave` is called, on another thread, the moment nothing more can come: the server is gone, and
/// whatever the loop is in the middle of is for nobody. It should end the process. `progress` is a number that changes
/// while a step does work: what is told as a sign of life in the middle of a long one.
pub fn serve_pipes(
    registry: Registry,
    owned: Owned,
    stdin: impl Read + Send + 'static,
    stdout: impl Write + Send,
    progress: impl Fn() -> u64 + Send,
    leave: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let (to, inbox) = channel();
    thread::Builder::new().name("frames".into()).spawn(move || {
        hear(stdin, &to);
        leave();
    })?;
    let out = Mutex::new(Writer::new(stdout));
    let say = |frame| say(&mut out.lock().unwrap_or_else(PoisonError::into_inner), frame);
    let (running, ended) = channel();
    thread::scope(|scope| {
        let watch = move || pulse::watch(progress, &ended, || say(FromWorker::Heartbeat));
        thread::Builder::new().name("pulse".into()).spawn_scoped(scope, watch)?;
        run(registry, owned, inbox, say);
        // The watch ends with this.
        drop::<Sender<()>>(running);
        Ok(())
    })
}

fn hear(stdin: impl Read, to: &Sender<ToWorker>) {
    let mut frames = Reader::new(stdin);
    loop {
        match frames.receive() {
            Ok(Some(frame)) => {
                if to.send(frame).is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => return tracing::error!(%error, "the server cannot be understood; leaving"),
        }
    }
}

/// Whether the server heard it. One frame is one step's worth, so each is one write.
fn say(out: &mut Writer<impl Write>, frame: FromWorker) -> bool {
    if let Err(error) = out.put(&frame) {
        tracing::error!(%error, "a frame cannot be sent");
        if let FromWorker::Events(events) = frame {
            let why = error.to_string();
            let ended = events.into_iter().map(|mut emitted| {
                emitted.event = Event::Ended(Outcome::Failed { error: why.clone() });
                emitted
            });
            return out.put(&FromWorker::Events(ended.collect())).is_ok() && out.flush().is_ok();
        }
        return false;
    }
    out.flush().is_ok()
}
