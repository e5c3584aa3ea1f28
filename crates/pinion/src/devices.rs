//! Which devices work on this machine, and which executable serves which: what the driver says, asked in a process of its
//! own, brought together with the executables beside this one. Every reason against a GPU is a sentence that says what to
//! do. Refuses to know what is served.

mod ask;
mod choose;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use runner::device::probe::Probe;
use runner::device::{About, Capability, FAMILIES, Family, cpu, memory};

pub use ask::{Ask, Unanswered};

/// A folder with GPU workers, looked into before any other.
pub const WORKERS: &str = "PINION_CUDA_WORKERS";
/// Which GPUs the driver shows to a process. Ours is every worker's too.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// A device that works here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// As its maker calls it.
    pub name: String,
    /// None: the CPU.
    pub capability: Option<Capability>,
    pub total_bytes: Option<u64>,
    /// None where nobody asked.
    pub free_bytes: Option<u64>,
    /// What serves it as `worker --device ...`; none: this program itself.
    pub executable: Option<PathBuf>,
}

/// An executable for GPUs, and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    pub family: &'static Family,
    pub path: PathBuf,
    pub about: Result<About, Unanswered>,
}

#[derive(Debug)]
pub struct Found {
    /// GPUs first; the CPU, which always works, is the last.
    pub devices: Vec<Device>,
    /// Why a GPU that is there, or might be expected, is not among them, and what to do. For people.
    pub notes: Vec<String>,
    pub probe: Result<Probe, Unanswered>,
    pub executables: Vec<Executable>,
}

impl Found {
    /// As cog.yaml calls them.
    pub fn names(&self) -> Vec<String> {
        self.devices.iter().map(|device| device.device.clone()).collect()
    }
}

/// Asks the driver and the executables. Takes as long as the driver does, at most `ask::LIMIT` each.
pub fn find() -> Found {
    look(Ask::Driver)
}

/// The same, with the memory that is free on each GPU now.
pub fn find_with_free_memory() -> Found {
    look(Ask::FreeMemory)
}

fn look(ask: Ask) -> Found {
    let probe = ask::itself(ask);
    let executables = executables();
    let visible = std::env::var(VISIBLE).ok();
    let (mut devices, notes) = choose::choose(&probe, &executables, visible.as_deref());
    devices.push(the_cpu());
    Found { devices, notes, probe, executables }
}

fn the_cpu() -> Device {
    let memory = memory();
    Device {
        device: "cpu".into(),
        name: cpu().model,
        capability: None,
        total_bytes: memory.map(|memory| memory.total_bytes),
        free_bytes: memory.map(|memory| memory.available_bytes),
        executable: None,
    }
}

/// The first of each family: in `$PINION_CUDA_WORKERS`, beside this program, in ../lib/pinion from there. A program that has
/// CUDA itself is one of them.
fn executables() -> Vec<Executable> {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().map(PathBuf::from).unwrap_or_default();
    let named = std::env::var_os(WORKERS).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folders: Vec<PathBuf> = named.into_iter().chain([beside.clone(), beside.join("../lib/pinion")]).collect();
    let about = runner::device::about();
    let family = about.cuda.as_ref().and_then(|built| Family::named(&built.family));
    let mut found: Vec<Executable> = Vec::new();
    found.extend(family.map(|family| Executable { family, path: own, about: Ok(about) }));
    for family in FAMILIES {
        if found.iter().any(|executable| executable.family == family) {
            continue;
        }
        let path = folders.iter().map(|folder| folder.join(family.executable())).find(|path| path.is_file());
        found.extend(path.map(|path| Executable { family, about: ask::about(&path), path }));
    }
    found
}
