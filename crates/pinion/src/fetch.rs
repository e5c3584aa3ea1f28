//! Fetching and checking pinned weights with a progress bar. Draws; the work is the runner's.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use runner::weights::{Options, Progress};

use crate::deployment::Offer;
use crate::failure::Failure;

/// The folder that holds the offer's pinned files, fetched first if need be; none if cog.yaml names a path.
pub fn ensure(offer: &Offer, options: &Options) -> Result<Option<PathBuf>, Failure> {
    let Some(locked) = &offer.locked else { return Ok(None) };
    let bar = Bar::new();
    Ok(Some(runner::weights::ensure(&locked.entry, &locked.mirrors, options, &mut |progress| bar.draw(progress))?))
}

/// One bar that follows whatever file is being read; gone when dropped.
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        Self(ProgressBar::no_length().with_style(style.expect("the template is ours")))
    }

    pub fn draw(&self, progress: Progress) {
        match progress {
            Progress::Waiting { file } => self.say(&format!("{file}: another process is fetching it")),
            Progress::Trying { file, source } => self.say(&format!("{file}: from {source}")),
            Progress::Failed { file, source, why } => self.say(&format!("{file}: {source} did not do: {why}")),
            Progress::Bytes { file, source, done, total } => {
                self.0.set_length(total);
                self.0.set_position(done);
                self.0.set_message(format!("{file} ({source})"));
            }
        }
    }

    fn say(&self, line: &str) {
        self.0.suspend(|| eprintln!("pinion: {line}"));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
