//! What reading a file costs, measured in the same run: the floor under everything that needs its bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

/// Read at once, as `cat` does.
const READ_BYTES: usize = 128 << 10;

/// Seconds of every byte through one buffer.
pub fn through_a_buffer(path: &Path) -> f64 {
    let began = Instant::now();
    let mut file = File::open(path).expect("it is there");
    let mut buffer = vec![0; READ_BYTES];
    while file.read(&mut buffer).expect("readable") > 0 {}
    began.elapsed().as_secs_f64()
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
