//! Files on their way into and out of a prediction.
//!
//! In: what an input names by URL, data URI or as a file of ours becomes a file on this machine before the model has it
//! (`Fetching`). Out: what a model says as a data URI becomes a stored file (`Keeping`). In between, the model sees paths
//! and the rows hold names. Refuses to know HTTP's server side, and which models there are beyond their schemas.

mod inputs;
mod kinds;
mod outputs;
mod own;
mod place;
mod progress;

use std::time::Duration;

use store::files::Files;
use tokio::task::JoinHandle;

pub use inputs::{Fetching, Limits};
pub use kinds::of_type as ending_of_type;
pub use outputs::{Keeping, output_name};

/// How long an expired file may still lie on the disk. Nobody can read it there.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Removes what has expired, until it is dropped.
pub struct Sweeper(JoinHandle<()>);

impl Sweeper {
    pub fn start(files: Files) -> Self {
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                if let Err(error) = files.sweep().await {
                    tracing::warn!(%error, "expired files could not be removed; trying again in a minute");
                }
            }
        }))
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}
