//! Measurements: criterion's, and side by side with a peer. Knows how to start them; the figures are theirs.

use std::process::Command;

use crate::{Outcome, cargo, root, run, target};

/// All criterion benches, or the one that is named.
pub fn criterion(words: &[&str]) -> Outcome {
    match words {
        [] => cargo(&["bench", "--package", "pinion"]),
        [name, rest @ ..] => cargo(&[&["bench", "--package", "pinion", "--bench", name, "--"], rest].concat()),
    }
}

/// llama.cpp (from its python wheels) and Pinion in turn on the same files. The peers live in their own environment,
/// made once from `benches/peers.txt`, or in the one whose python `PINION_PEERS_PYTHON` names.
pub fn peer_llama(words: &[&str]) -> Outcome {
    let python = match std::env::var_os("PINION_PEERS_PYTHON") {
        Some(python) => python.into(),
        None => peers_environment("peers", "benches/peers.txt")?,
    };
    cargo(&["build", "--release", "--quiet", "--package", "pinion"])?;
    let pinion = target().join("release/pinion");
    let weights = Command::new(&pinion)
        .args(["weights", "pull", "smollm2", "--print-path"])
        .output()
        .map_err(|error| format!("{}: {error}", pinion.display()))?;
    let weights = String::from_utf8_lossy(&weights.stdout).trim().to_owned();
    let results = root().join("benches/results");
    run(Command::new(python)
        .arg(root().join("benches/peer_llama.py"))
        .arg("--pinion")
        .arg(pinion)
        .args(["--gguf", &weights, "--out"])
        .arg(results.join("peer-llama-latest.json"))
        .args(words))
}

/// faster-whisper, whisper.cpp, openai-whisper and Pinion in turn on the same weights and recordings, as above.
pub fn peer_whisper(words: &[&str]) -> Outcome {
    let (model, rest) = match words {
        [model, rest @ ..] if !model.starts_with('-') => (*model, rest),
        rest => ("whisper-tiny.en", rest),
    };
    let python = match std::env::var_os("PINION_PEERS_PYTHON") {
        Some(python) => python.into(),
        None => peers_environment("peers-whisper", "benches/peers_whisper.txt")?,
    };
    cargo(&["build", "--release", "--quiet", "--package", "pinion"])?;
    let pinion = target().join("release/pinion");
    let weights = Command::new(&pinion)
        .args(["weights", "pull", model, "--print-path"])
        .output()
        .map_err(|error| format!("{}: {error}", pinion.display()))?;
    let weights = String::from_utf8_lossy(&weights.stdout).trim().to_owned();
    let recordings = target().join("recordings");
    run(Command::new("python3").arg(root().join("models/whisper/golden/recordings.py")).arg(&recordings))?;
    run(Command::new(python)
        .arg(root().join("benches/peer_whisper.py"))
        .arg("--pinion")
        .arg(pinion)
        .args(["--weights", &weights, "--recordings"])
        .arg(recordings)
        .arg("--out")
        .arg(root().join("benches/results/peer-whisper-latest.json"))
        .args(rest))
}

/// diffusers and Pinion in turn on the same random weights, as above. On a GPU in the precision that the true weights have.
pub fn peer_sdxl(words: &[&str]) -> Outcome {
    let (shape, rest) = match words {
        [shape, rest @ ..] if !shape.starts_with('-') => (*shape, rest),
        rest => ("sdxl-small", rest),
    };
    let python = match std::env::var_os("PINION_PEERS_PYTHON") {
        Some(python) => python.into(),
        None => peers_environment("peers-sdxl", "benches/peers_sdxl.txt")?,
    };
    cargo(&["build", "--release", "--quiet", "--package", "pinion"])?;
    let pinion = target().join("release/pinion");
    let weights = target().join("peers-weights").join(shape);
    if !weights.exists() {
        run(Command::new(&pinion).args(["weights", "synth", shape, "-o"]).arg(&weights))?;
    }
    run(Command::new(python)
        .arg(root().join("benches/peer_sdxl.py"))
        .arg("--pinion")
        .arg(pinion)
        .arg("--weights")
        .arg(weights)
        .arg("--out")
        .arg(root().join("benches/results/peer-sdxl-latest.json"))
        .args(rest))
}

/// Made once, from a list of packages.
fn peers_environment(name: &str, packages: &str) -> Result<std::path::PathBuf, String> {
    let home = target().join(name);
    let python = home.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(root().join(packages)))?;
    }
    Ok(python)
}
