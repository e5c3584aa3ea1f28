//! What no single file of this folder can promise: equality with the references, and weights from wherever they lie.

mod files;
mod gpu;
mod nets;
mod pipelines;
mod predictions;
mod schedulers;
mod tokens;

use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdxl/golden").join(name)
}
