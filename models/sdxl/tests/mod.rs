//! What no single file of this folder can promise: equality with the references, and weights from wherever they lie.

mod files;
mod folders;
mod gpu;
mod kept;
mod nets;
mod pipelines;
mod predictions;
mod safety;
mod schedulers;
mod tokens;
mod trained;

use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdxl/golden").join(name)
}
