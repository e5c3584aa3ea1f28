//! Processes as /proc shows them, and signals. Knows nothing of what they do.

use std::fs;
use std::time::{Duration, Instant};

use crate::{PATIENCE, Server};

/// Between two looks at something that gives no signal: /proc, a prediction's state.
const POLL: Duration = Duration::from_millis(5);

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(POLL);
    }
}

/// State letter and parent, as /proc tells them; none when there is no such process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// Gone, or a zombie that its new parent has not looked at yet.
pub fn is_gone(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

pub fn child_of(server: u32) -> Option<u32> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| !is_gone(*pid)).find(|pid| stat(*pid).is_some_and(|(_, parent)| parent == server))
}

pub fn worker_of(server: &Server) -> u32 {
    worker_of_pid(server.pid())
}

/// By its name: the process that asks the driver for devices is a child too.
pub fn worker_of_pid(server: u32) -> u32 {
    let is_worker =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "pinion-worker");
    until("a worker", || child_of(server).filter(is_worker))
}

/// Bytes of the process in memory.
pub fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process is there");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("the system tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// The most of it that was in memory at once.
pub fn peak_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the system tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: a number goes in and a number comes out.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0, "{pid} is there");
}
