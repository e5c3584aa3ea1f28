//! What the disk itself costs, measured in the same run: the floor under everything that is durable.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of one append: about a page of a write-ahead log.
const APPEND_BYTES: usize = 4096;

/// Two appends of 4 KiB, each followed by fsync: the least that a durable create and a durable end can cost.
pub struct TwoFsyncs(File);

impl TwoFsyncs {
    pub fn beside(folder: &Path) -> Self {
        Self(File::create(folder.join("fsync-floor")).expect("the folder is writable"))
    }

    pub fn time(&mut self) -> Duration {
        let began = Instant::now();
        for _ in 0..2 {
            self.0.write_all(&[7; APPEND_BYTES]).expect("written");
            self.0.sync_all().expect("on disk");
        }
        began.elapsed()
    }
}

/// The `share` quantile (0.5, 0.99) of some times, in milliseconds.
pub fn quantile_ms(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let index = ((times.len() - 1) as f64 * share).round() as usize;
    times[index].as_secs_f64() * 1e3
}

/// A line for people: the floor, the work, and the difference, at p50 and p99.
pub fn print_above_floor(what: &str, mut floor: Vec<Duration>, mut work: Vec<Duration>) {
    for share in [0.5, 0.99] {
        let (floor, work) = (quantile_ms(&mut floor, share), quantile_ms(&mut work, share));
        println!(
            "{what}, p{:.0}: {work:.3} ms; two fsyncs {floor:.3} ms; above them {:.3} ms",
            share * 100.0,
            work - floor
        );
    }
}
