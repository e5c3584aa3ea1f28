//! The project's own chores, one word each. Knows commands and folders; refuses to know what Pinion does.

mod bench;
mod clients;
mod cuda;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask test                          everything that must be green: format, lints, clients, weights, tests
cargo xtask golden llama WEIGHTS GOLDEN   compare a model with goldens; prints the largest relative error per tensor
cargo xtask golden whisper WEIGHTS AUDIO GOLDEN
cargo xtask golden sdxl DIR [REFINER] GOLDENS
cargo xtask cuda [--family 75|80]         the executables for GPUs; needs a CUDA toolkit, no GPU
cargo xtask bench [NAME]                  criterion benches, all or one
cargo xtask bench --peer llama [--runs N] beside llama.cpp, in turn, in one run; prints the ratios
cargo xtask bench --peer whisper [MODEL] [--long] [--runs N]
                                          beside faster-whisper, whisper.cpp and openai-whisper, the same way
cargo xtask bench --peer torch [WORD ..]  beside PyTorch and transformers, random weights of one shape
cargo xtask bench --peer sdxl [SHAPE]     beside diffusers on random weights: sdxl-small here, sdxl with --device cuda:0
cargo xtask bench --peer cog              the Cog API beside the real Cog server: echo and health";

/// Why a chore stopped, for the person who started it.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test"] => test(),
        ["golden", words @ ..] if words.len() >= 3 => run_golden(words),
        ["cuda", rest @ ..] => cuda::build(rest),
        ["bench", "--peer", "llama", rest @ ..] => bench::peer_llama(rest),
        ["bench", "--peer", "whisper", rest @ ..] => bench::peer_whisper(rest),
        ["bench", "--peer", "torch", rest @ ..] => bench::peer_torch(rest),
        ["bench", "--peer", "cog", rest @ ..] => bench::peer_cog(rest),
        ["bench", "--peer", "sdxl", rest @ ..] => bench::peer_sdxl(rest),
        ["bench", rest @ ..] => bench::criterion(rest),
        _ => Err(HELP.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The README's test command, and CI's.
fn test() -> Outcome {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--release", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    // And the program as its users build it: the tests beside it switch on the emulator.
    cargo(&["clippy", "--release", "-p", "pinion", "--bins", "--quiet", "--", "-D", "warnings"])?;
    clients::set_up()?;
    // All of it at once: the program alone would compile its dependencies a second time, with fewer features.
    cargo(&["test", "--release", "--workspace", "--no-run"])?;
    for name in ["smollm2", "whisper-tiny.en", "whisper-base"] {
        run(Command::new(target().join("release/pinion")).args(["weights", "pull", name]))?;
    }
    let recordings = target().join("recordings");
    run(Command::new("python3").arg(root().join("models/whisper/golden/recordings.py")).arg(&recordings))?;
    let vocabulary = target().join("clip-vocabulary.txt.gz");
    run(Command::new("python3").arg(root().join("models/sdxl/golden/vocabulary.py")).arg(&vocabulary))?;
    // Everything is here now: a test that misses something fails.
    let mut tests = Command::new(env!("CARGO"));
    tests.args(["test", "--release", "--workspace"]).current_dir(root());
    tests.env("PINION_RECORDINGS", recordings).env("PINION_CLIP_VOCABULARY", vocabulary);
    run(tests.env("PINION_TEST_ALL", "1"))
}

fn run_golden(words: &[&str]) -> Outcome {
    cargo(&[&["run", "--release", "--quiet", "--package", "pinion", "--", "golden"], words].concat())
}

fn cargo(words: &[&str]) -> Outcome {
    run(Command::new(env!("CARGO")).args(words).current_dir(root()))
}

/// Runs to the end with our standard streams; an exit code other than 0 is an error that quotes the command.
fn run(command: &mut Command) -> Outcome {
    eprintln!("+ {command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?} does not start: {error}")),
    }
}

/// The workspace's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
