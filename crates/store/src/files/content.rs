//! Contents in a folder: written under a name that nobody knows, made durable, then given their own. Knows no rows.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use md5::Md5;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::StoreError;

/// Begins the name of content that is still coming; no id has a dot.
const COMING: &str = "coming.";

#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Inputs and outputs are their owner's business only.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|why| StoreError::Open(format!("cannot keep files in {}: {why}", path.display())))?;
        Ok(Self(path.to_owned()))
    }

    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.0.join(id)
    }

    pub(super) async fn receive(self: &Arc<Self>) -> Result<Incoming, StoreError> {
        let path = self.path(&format!("{COMING}{}", prediction::secret_text(16)));
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path).await.map_err(unavailable)?;
        let temporary = Temporary { path, stays: false };
        let (sha256, md5) = (Sha256::new(), Md5::new());
        Ok(Incoming { folder: self.clone(), file, temporary, size: 0, sha256, md5 })
    }

    /// It is gone, or was; a disk that cannot remove it says so in the log, and the next start tries again.
    pub(super) async fn remove(&self, id: &str) {
        match tokio::fs::remove_file(self.path(id)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a file's content could not be removed")
            }
            _ => {}
        }
    }

    pub(super) async fn remove_all_but(&self, known: HashSet<String>) -> Result<(), StoreError> {
        let mut entries = tokio::fs::read_dir(&self.0).await.map_err(unavailable)?;
        while let Some(entry) = entries.next_entry().await.map_err(unavailable)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !known.contains(&name) {
                self.remove(&name).await;
            }
        }
        Ok(())
    }

    /// A new name is durable when its folder is.
    async fn sync(&self) -> io::Result<()> {
        tokio::fs::File::open(&self.0).await?.sync_all().await
    }
}

/// Content on its way in.
#[derive(Debug)]
pub struct Incoming {
    folder: Arc<Folder>,
    file: tokio::fs::File,
    temporary: Temporary,
    size: u64,
    sha256: Sha256,
    md5: Md5,
}

impl Incoming {
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        self.sha256.update(piece);
        self.md5.update(piece);
        self.size += piece.len() as u64;
        self.file.write_all(piece).await.map_err(unavailable)
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Size, SHA-256 and MD5 of what came.
    pub(super) fn sums(&self) -> (u64, String, String) {
        let (sha256, md5) = (self.sha256.clone().finalize(), self.md5.clone().finalize());
        (self.size, hex::encode(sha256), hex::encode(md5))
    }

    /// Durable under its own name.
    pub(super) async fn place(mut self, id: &str) -> Result<(), StoreError> {
        let placed = async {
            self.file.flush().await?;
            self.file.sync_all().await?;
            tokio::fs::rename(&self.temporary.path, self.folder.path(id)).await?;
            self.temporary.stays = true;
            self.folder.sync().await
        };
        placed.await.map_err(unavailable)
    }
}

/// Removed with its last owner, unless it was given another name.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    stays: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.stays {
            // What stays after an error here is removed by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn unavailable(why: io::Error) -> StoreError {
    StoreError::Unavailable(format!("a file: {why}"))
}
