//! The official clients that the tests drive, the real Cog server that one of them compares with, and linters of what deploys
//! the program, installed from lock files. Knows pip and npm, and nothing of the tests.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Outcome, root, run, target};

/// Of Python: two versions of the client, Cog, and the linters. Each has its own lock file and its own environment.
const PYTHON: [&str; 4] = ["python-0.31.0", "python-1.0.7", "cog-0.23.1", "lint"];

/// Makes `target/clients/NAME` for each of them and `target/clients/node`, each only when its lock file changed.
pub fn set_up() -> Outcome {
    let locks = root().join("tests/clients");
    for name in PYTHON {
        let lock = locks.join(format!("{name}.txt"));
        let home = target().join("clients").join(name);
        when_changed(&lock, &home, || {
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
            let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r"];
            run(Command::new(home.join("bin/python")).args(install).arg(&lock))
        })?;
    }
    let home = target().join("clients/node");
    when_changed(&locks.join("package-lock.json"), &home, || {
        fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
        for file in ["package.json", "package-lock.json"] {
            fs::copy(locks.join(file), home.join(file)).map_err(|error| format!("{file}: {error}"))?;
        }
        run(Command::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&home))
    })
}

/// Runs `make` unless `home` was made from exactly this `lock`.
fn when_changed(lock: &Path, home: &Path, make: impl FnOnce() -> Outcome) -> Outcome {
    let wanted = fs::read(lock).map_err(|error| format!("{}: {error}", lock.display()))?;
    let stamp = home.join("made-from.lock");
    if fs::read(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    make()?;
    fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))
}
