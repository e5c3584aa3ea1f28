//! The loop as a process of its own: frames come on one pipe and go on another. Refuses to know which descriptors these
//! are and how a process ends.

use std::io::{Read, Write};
use std::sync::mpsc::{Sender, channel};

use prediction::frame::{FromWorker, ToWorker};
use prediction::{Event, Outcome};

use crate::pipe::{Reader, Writer};
use crate::{Owned, Registry, run};

/// Runs until told to go. `leave` is called, on another thread, the moment nothing more can come: the server is gone, and
/// whatever the loop is in the middle of is for nobody. It should end the process.
pub fn serve_pipes(
    registry: Registry,
    owned: Owned,
    stdin: impl Read + Send + 'static,
    stdout: impl Write,
    leave: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let (to, inbox) = channel();
    std::thread::Builder::new().name("frames".into()).spawn(move || {
        hear(stdin, &to);
        leave();
    })?;
    let mut out = Writer::new(stdout);
    run(registry, owned, inbox, |frame| say(&mut out, frame));
    Ok(())
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
