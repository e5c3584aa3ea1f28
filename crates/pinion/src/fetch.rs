//! Fetching and checking pinned weights: with a progress bar where somebody looks, and before a worker's model is loaded.
//! Draws; the work is the runner's.

use std::path::PathBuf;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use prediction::{LoadSpec, Loaded, Model, PredictError, Weights};
use runner::weights::{Options, Progress};

use crate::deployment::{Kept, Offer};
use crate::failure::Failure;

/// The offer's pinned weights, the file or the folder of several, fetched first if need be; none if cog.yaml names a path.
pub fn ensure(offer: &Offer, options: &Options) -> Result<Option<PathBuf>, Failure> {
    let Some(locked) = &offer.locked else { return Ok(None) };
    let bar = Bar::new();
    let draw = &mut |progress: Progress| bar.draw(progress);
    Ok(Some(match &locked.kept {
        Kept::Own(own) => own.ensure(options, draw)?,
        Kept::Mirrors(mirrors) => {
            let folder = runner::weights::ensure(&locked.entry, mirrors, options, draw)?;
            match locked.entry.files.as_slice() {
                [only] => folder.join(&only.path),
                _ => folder,
            }
        }
    }))
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

/// A model whose weights may be a set of somebody's own cog.yaml: they are made ready before it looks at them.
pub struct Ready(pub Arc<dyn Model>);

impl Model for Ready {
    fn needs(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        bring(spec, report)?;
        self.0.needs(spec, report)
    }

    fn load(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        bring(spec, report)?;
        self.0.load(spec, report)
    }

    fn load_kept(
        &self,
        spec: &LoadSpec,
        kept: Box<dyn prediction::Kept>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Loaded>, PredictError> {
        bring(spec, report)?;
        self.0.load_kept(spec, kept, report)
    }
}

fn bring(spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<(), PredictError> {
    match &spec.weights {
        Weights::Path(path) => runner::weights::bring(path, &Options::from_env(), &mut runner::weights::lines(report)),
        _ => Ok(()),
    }
}
