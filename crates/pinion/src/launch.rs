//! Starts a worker on a thread of this process, for the words that run one prediction and end: nothing to hand over, no
//! second program to start. Dispatch sees the same `Link` as of a process.

use std::collections::BTreeMap;
use std::sync::mpsc;

use dispatch::{Gone, Launch, Link};

pub struct Thread;

impl Launch for Thread {
    fn launch(&self) -> std::io::Result<Link> {
        let (to, inbox) = mpsc::channel();
        let (send, from) = tokio::sync::mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("worker".into())
            .spawn(move || worker::run(registry(), inbox, |frame| send.send(frame).is_ok()))?;
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

/// Every model of this build, by its folder's name.
pub fn registry() -> worker::Registry {
    models::ALL.iter().map(|entry| (entry.name.to_owned(), (entry.model)())).collect::<BTreeMap<_, _>>()
}
