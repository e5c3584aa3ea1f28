//! What no single file of this folder can promise: equality with diffusers and transformers.

mod schedulers;
mod tokens;

use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdxl/golden").join(name)
}
