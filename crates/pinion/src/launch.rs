//! A worker from both sides: how it is started for a device, and inside, which models it can load and what it owns. Under
//! `serve` it is a process; for the words that run one prediction and end it is a thread: nothing to hand over, no second
//! program to start. Dispatch sees the same `Link` of both.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::sync::{Arc, mpsc};

use clap::Args;
use dispatch::{Gone, Launch, Link};
use prediction::PredictError;
use prediction::frame::FromWorker;
use worker::Owned;

use crate::devices::Device;
use crate::failure::Failure;
use crate::fetch::Ready;
use crate::process::{self, Process};
use crate::{child, echo};

#[derive(Args)]
pub struct Words {
    /// The device it owns: cpu or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Of the host's memory, what copies of unloaded models may take
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    host_cache_bytes: u64,
}

/// A worker in this process, for the server at the other end of stdin and stdout. It returns only to refuse.
pub fn main(words: Words) -> Result<(), Failure> {
    child::main(registry(), Owned { host_cache_bytes: words.host_cache_bytes, ..owned(&words.device)? })
}

/// The worker of a device, by the executable that serves it.
pub fn process(device: &Device) -> io::Result<Process> {
    let program = device.executable.clone().map_or_else(process::itself, Ok)?;
    Ok(Process { program, words: ["worker", "--device", &device.device].map(OsString::from).into() })
}

/// The worker of a GPU, with so many bytes of the host's memory for models that left.
fn keeping(device: &Device, host_cache_bytes: u64) -> io::Result<Process> {
    let mut process = process(device)?;
    process.words.extend(["--host-cache-bytes", &host_cache_bytes.to_string()].map(OsString::from));
    Ok(process)
}

/// The workers of this machine's devices, a process each.
pub struct Processes(BTreeMap<String, Process>);

impl Processes {
    /// `host_cache` says what of the host's memory each may keep models in that left.
    pub fn of(devices: &[Device], host_cache: impl Fn(&str) -> u64) -> io::Result<Self> {
        let worker = |device: &Device| Ok((device.device.clone(), keeping(device, host_cache(&device.device))?));
        devices.iter().map(worker).collect::<io::Result<_>>().map(Self)
    }
}

impl Launch for Processes {
    /// Called inside a tokio runtime.
    fn launch(&self, device: &str) -> io::Result<Link> {
        match self.0.get(device) {
            Some(process) => process.start(),
            None => Err(io::Error::other(format!("there is no device {device} here"))),
        }
    }
}

pub struct Thread;

impl Launch for Thread {
    fn launch(&self, device: &str) -> io::Result<Link> {
        let (to, inbox) = mpsc::channel();
        let (send, from) = tokio::sync::mpsc::unbounded_channel();
        let device = device.to_owned();
        std::thread::Builder::new().name("worker".into()).spawn(move || match owned(&device) {
            Ok(owned) => worker::run(registry(), owned, inbox, |frame| send.send(frame).is_ok()),
            // Whoever has gone meanwhile needs no reason.
            Err(error) => drop(send.send(FromWorker::Broken { why: error.to_string() })),
        })?;
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

/// Every model of this build, by its folder's name.
pub fn registry() -> worker::Registry {
    let ready = |entry: &models::Entry| Arc::new(Ready((entry.model)())) as Arc<dyn prediction::Model>;
    entries().map(|entry| (entry.name.to_owned(), ready(entry))).collect()
}

/// Every model of this build, and the echo that tests and benches serve.
pub fn entries() -> impl Iterator<Item = &'static models::Entry> {
    models::ALL.iter().chain(std::iter::once(&echo::ENTRY))
}

/// The device, opened: `cpu` or `cuda:N`.
fn owned(device: &str) -> Result<Owned, PredictError> {
    let opened = runner::device::pick(device)?;
    Ok(Owned {
        device: device.to_owned(),
        name: runner::device::name(&opened),
        memory: Box::new(move || runner::device::memory_of(&opened)),
        host_cache_bytes: 0,
    })
}
