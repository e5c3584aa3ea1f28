//! Measurements: criterion's, and side by side with a peer. Knows how to start them; the figures are theirs.

use std::process::Command;

use crate::{Outcome, cargo, clients, root, run, target};

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
    let python = peers_python("peers", "benches/peers.txt")?;
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
    let python = peers_python("peers-whisper", "benches/peers_whisper.txt")?;
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

/// A plain PyTorch + transformers loop and Pinion in turn, random weights of one shape: on the CPU a small one, unless `words` say
/// otherwise. On a GPU machine the script is called by itself, see its top.
pub fn peer_torch(words: &[&str]) -> Outcome {
    let python = peers_python("peers-sdxl", "benches/peers_sdxl.txt")?;
    cargo(&["build", "--release", "--quiet", "--package", "pinion"])?;
    let small = ["--shape", "smollm2-135m", "--dtype", "f32", "--batches", "1,4", "--prompt", "64", "--decode", "32"];
    run(Command::new(python)
        .arg(root().join("benches/peer_torch.py"))
        .arg("--pinion")
        .arg(target().join("release/pinion"))
        .args(if words.is_empty() { &small[..] } else { words }))
}

/// The real Cog server and Pinion's on one echo model, in turn.
pub fn peer_cog(words: &[&str]) -> Outcome {
    clients::set_up()?;
    cargo(&["build", "--release", "--quiet", "--package", "pinion"])?;
    run(Command::new("python3")
        .arg(root().join("benches/peer_cog.py"))
        .arg("--pinion")
        .arg(target().join("release/pinion"))
        .arg("--cog")
        .arg(target().join("clients/cog-0.23.1/bin/python"))
        .arg("--out")
        .arg(root().join("benches/results/peer-cog-latest.json"))
        .args(words))
}

/// diffusers and Pinion in turn on the same random weights, as above. On a GPU in the precision that the true weights have.
pub fn peer_sdxl(words: &[&str]) -> Outcome {
    let (shape, rest) = match words {
        [shape, rest @ ..] if !shape.starts_with('-') => (*shape, rest),
        rest => ("sdxl-small", rest),
    };
    let python = peers_python("peers-sdxl", "benches/peers_sdxl.txt")?;
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

/// The one that the environment names, else of an environment made once from a list of packages.
fn peers_python(name: &str, packages: &str) -> Result<std::path::PathBuf, String> {
    if let Some(python) = std::env::var_os("PINION_PEERS_PYTHON") {
        return Ok(python.into());
    }
    let home = target().join(name);
    let python = home.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(root().join(packages)))?;
    }
    Ok(python)
}
