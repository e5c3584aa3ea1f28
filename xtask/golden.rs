//! `cargo xtask golden MODEL WEIGHTS [INPUT…] GOLDEN`: a model's numbers beside the reference's. Knows who compares what.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, weights, inputs @ .., golden] = words.as_slice() else {
        eprintln!("a model, its weights, what it is to read if it needs that, and a golden file are expected");
        return ExitCode::from(2);
    };
    let Some(entry) = models::Entry::named(model) else {
        eprintln!("no model is called {model:?}");
        return ExitCode::from(2);
    };
    let inputs: Vec<PathBuf> = inputs.iter().map(PathBuf::from).collect();
    match (entry.golden)(Path::new(weights), &inputs, Path::new(golden), &mut std::io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
