//! A fresh process to its first token: weights in the page cache and verified, default context, a 32-token prompt.
//! Knows only the program's words.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};

/// About 32 tokens with the chat template's own.
const PROMPT: &str = "prompt=Say in one short sentence what a gear does in a clock";

/// From `exec` until the first byte of the answer stands on stdout.
fn until_first_token() -> Duration {
    let began = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pinion"))
        .args(["run", "smollm2", "-i", PROMPT, "-i", "temperature=0", "-i", "max_tokens=4"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut stdout = child.stdout.take().expect("piped");
    let mut first = [0];
    stdout.read_exact(&mut first).expect("an answer");
    let elapsed = began.elapsed();
    let _ = stdout.read_to_end(&mut Vec::new());
    assert!(child.wait().expect("our child").success());
    elapsed
}

fn cold_start(criterion: &mut Criterion) {
    until_first_token(); // Fetches and verifies, and warms the page cache.
    criterion.bench_function("process start to first token", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| until_first_token()).sum())
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(10));
    targets = cold_start
}
criterion_main!(benches);
