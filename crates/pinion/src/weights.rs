//! `pinion weights`: fetch, check, pin.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Subcommand};
use runner::synth::{Synth, Written};
use runner::weights::{Lock, Options, Progress};

use crate::deployment::{CogYaml, Deployment, Offer};
use crate::failure::Failure;
use crate::fetch::{self, Bar};
use crate::out::print_line;

#[derive(Subcommand)]
pub enum Word {
    /// Fetch what is not here yet, from the first mirror that answers, checking every byte
    Pull {
        #[command(flatten)]
        which: Which,
        /// Print where the weights lie: the file, or the folder of several
        #[arg(long)]
        print_path: bool,
        /// Use only what is on this machine
        #[arg(long)]
        offline: bool,
    },
    /// Read every byte again and compare with the lock
    Verify {
        #[command(flatten)]
        which: Which,
    },
    /// Write random weights of a true shape, to measure with where the real ones are not at hand
    Synth {
        /// E.g. llama-3-8b; an unknown one is refused with those there are
        shape: String,
        /// Left out: as the real weights are published
        #[arg(long, value_parser = ["f32", "f16", "bf16"])]
        dtype: Option<String>,
        /// The same seed makes the same bytes, everywhere
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// The folder that is made, or an empty one; a cog.yaml serves it with `path: DIR`
        #[arg(short, value_name = "DIR")]
        output: PathBuf,
    },
    /// Print a weights.lock for a file or folder of your own
    Lock {
        /// The name of the entry
        name: String,
        path: PathBuf,
    },
}

#[derive(Args)]
pub struct Which {
    /// A served name, e.g. smollm2; left out: everything that is served
    model: Option<String>,
    #[command(flatten)]
    config: CogYaml,
}

pub fn main(word: Word) -> Result<(), Failure> {
    match word {
        Word::Pull { which, print_path, offline } => pull(which, print_path, offline),
        Word::Verify { which } => verify(which),
        Word::Synth { shape, dtype, seed, output } => synth(&shape, dtype.as_deref(), seed, &output),
        Word::Lock { name, path } => {
            let entry = runner::weights::lock_path(&name, &path)?;
            print_line!("{}", Lock::new(vec![entry]).to_json());
            Ok(())
        }
    }
}

fn pull(which: Which, print_path: bool, offline: bool) -> Result<(), Failure> {
    let deployment = which.config.load()?;
    let from_env = Options::from_env();
    let options = Options { offline: offline || from_env.offline, ..from_env };
    for offer in chosen(&deployment, which.model.as_deref())? {
        let (Some(folder), Some(locked)) = (fetch::ensure(offer, &options)?, &offer.locked) else { continue };
        let path = match locked.entry.files.as_slice() {
            [only] => folder.join(&only.path),
            _ => folder,
        };
        if print_path {
            print_line!("{}", path.display());
        } else {
            eprintln!("pinion: {} is here and verified: {}", offer.served.name, path.display());
        }
    }
    Ok(())
}

fn verify(which: Which) -> Result<(), Failure> {
    let deployment = which.config.load()?;
    let mut wrong = Vec::new();
    for offer in chosen(&deployment, which.model.as_deref())? {
        let Some(locked) = &offer.locked else { continue };
        let bar = Bar::new();
        let draw = &mut |progress: Progress| bar.draw(progress);
        let checked = runner::weights::verify_with(&locked.entry, &Options::from_env(), draw)?;
        drop(bar);
        for (file, outcome) in checked {
            match outcome {
                Ok(()) => eprintln!("{}: {file}: as locked", offer.served.name),
                Err(why) => wrong.push(format!("{}: {file} {why}", offer.served.name)),
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::Failed(wrong.join("\n"))) }
}

fn synth(shape: &str, dtype: Option<&str>, seed: u64, output: &Path) -> Result<(), Failure> {
    let shape = models::shape(shape)?;
    let synth = Synth::new(shape, dtype.unwrap_or(shape.dtype), seed)?;
    let bar = Bar::new();
    let began = Instant::now();
    let Written { files, bytes } = synth.write(output, &mut |done, total| {
        bar.draw(Progress::Bytes { file: shape.name, source: "random weights", done, total });
    })?;
    drop(bar);
    let seconds = began.elapsed().as_secs_f64();
    let (title, output, speed) = (synth.title(), output.display(), bytes as f64 / 1e6 / seconds);
    eprintln!("pinion: {title}: {files} files of {bytes} bytes in {output}, {seconds:.2} s ({speed:.0} MB/s)");
    Ok(())
}

fn chosen<'a>(deployment: &'a Deployment, model: Option<&str>) -> Result<Vec<&'a Offer>, Failure> {
    match model {
        Some(name) => Ok(vec![deployment.find(name)?]),
        None => Ok(deployment.offers.iter().collect()),
    }
}
