//! A folder for the files of one prediction. It goes with its last owner.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use prediction::secret_text;

#[derive(Debug)]
pub struct Place(PathBuf);

impl Place {
    pub fn inside(folder: &Path) -> io::Result<Self> {
        let path = folder.join(secret_text(16));
        private_folder(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

pub fn private_folder(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl Drop for Place {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        let remove = move || {
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!(%error, "the files of a prediction could not be removed; the next start does");
            }
        };
        // Large files take their time to go, and whoever drops this may have others to serve.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}
