//! `pinion weights`: fetch, check, pin, carry.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Subcommand};
use runner::synth::{Synth, Written};
use runner::weights::{self, Bundle, Declared, Imported, Lock, Options, Progress};

use crate::deployment::{CogYaml, Deployment, Kept, Locked, Offer, folder_of, lock_of, pinned_here, read_lock};
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
        /// Read every byte again, also of what was checked before
        #[arg(long)]
        verify: bool,
    },
    /// Read every byte again and compare with the lock
    Verify {
        #[command(flatten)]
        which: Which,
    },
    /// Put weights into one file, for a machine without a network
    Bundle {
        #[command(flatten)]
        which: Which,
        /// The file that is made: a plain tar of the lock and of the weights by their digests
        #[arg(short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Take the weights of a bundle into the cache, checking every byte
    Import {
        /// - reads it from stdin
        file: PathBuf,
        /// Where the cog.yaml in it goes, with its weights.lock
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
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
    /// Pin the sets that the cog.yaml of --config declares, in the weights.lock beside it; with NAME alone those that this
    /// build declares for a served model, e.g. sdxl, on this machine; or print a lock for NAME and PATH
    Lock {
        /// A served name; with PATH the name of the entry
        name: Option<String>,
        /// A file or folder of your own
        path: Option<PathBuf>,
        #[command(flatten)]
        config: CogYaml,
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
        Word::Pull { which, print_path, verify } => pull(&which, print_path, verify),
        Word::Verify { which } => verify(&which),
        Word::Bundle { which, output } => bundle(&which, &output),
        Word::Import { file, to } => import(&file, to.as_deref()),
        Word::Synth { shape, dtype, seed, output } => synth(&shape, dtype.as_deref(), seed, &output),
        Word::Lock { name: Some(name), path: Some(path), .. } => {
            let entry = weights::lock_path(&name, &path)?;
            print_line!("{}", Lock::new(vec![entry]).to_json());
            Ok(())
        }
        Word::Lock { name: Some(name), config, .. } => lock_declared(&name, &config),
        Word::Lock { config, .. } => lock(&config),
    }
}

fn pull(which: &Which, print_path: bool, again: bool) -> Result<(), Failure> {
    if again {
        // What is wrong loses its place, and is fetched below.
        let _ = verify(which);
    }
    let deployment = which.config.load()?;
    for offer in chosen(&deployment, which.model.as_deref())? {
        let Some(path) = fetch::ensure(offer, &Options::from_env())? else { continue };
        if print_path {
            print_line!("{}", path.display());
        } else {
            eprintln!("pinion: {} is here and verified: {}", offer.served.name, path.display());
        }
    }
    Ok(())
}

fn verify(which: &Which) -> Result<(), Failure> {
    let deployment = which.config.load()?;
    let (mut wrong, options) = (Vec::new(), Options::from_env());
    for offer in chosen(&deployment, which.model.as_deref())? {
        let Some(locked) = &offer.locked else { continue };
        let bar = Bar::new();
        let draw = &mut |progress: Progress| bar.draw(progress);
        let checked = match &locked.kept {
            Kept::Own(own) => own.verify(&options, draw)?,
            Kept::Mirrors(_) => weights::verify_with(&locked.entry, &options, draw)?,
        };
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

fn bundle(which: &Which, output: &Path) -> Result<(), Failure> {
    let deployment = which.config.load()?;
    let options = Options::from_env();
    let mut sets = Vec::new();
    for offer in chosen(&deployment, which.model.as_deref())? {
        let Some(Locked { entry, .. }) = &offer.locked else { continue };
        fetch::ensure(offer, &options)?;
        if !sets.iter().any(|(other, _)| other == entry) {
            sets.push((entry.clone(), weights::folder(entry, &options)));
        }
    }
    if sets.is_empty() {
        return Err(Failure::BadInput("nothing that is served has pinned weights: there is nothing to bundle".into()));
    }
    // A part of a cog.yaml's sets would not fit it.
    let manifest = if which.model.is_none() { which.config.text()? } else { None };
    let (count, bytes) = (sets.len(), sets.iter().map(|(entry, _)| entry.size).sum::<u64>());
    let bar = Bar::new();
    Bundle { sets, manifest }.write(output, &mut |progress| bar.draw(progress))?;
    drop(bar);
    eprintln!("pinion: {count} sets of {bytes} bytes in {}", output.display());
    Ok(())
}

fn import(file: &Path, to: Option<&Path>) -> Result<(), Failure> {
    let from: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(file).map_err(|e| Failure::BadInput(format!("{}: {e}", file.display())))?),
    };
    let bar = Bar::new();
    let name = file.display().to_string();
    let imported = weights::import(from, &name, &Options::from_env(), &mut |progress| bar.draw(progress))?;
    drop(bar);
    let Imported { lock, manifest } = imported;
    for entry in &lock.weights {
        eprintln!("pinion: {} is here and verified: {}", entry.name, entry.set_digest);
    }
    match (manifest, to) {
        (Some(manifest), Some(folder)) => {
            let declared = weights::declared(&manifest)?;
            let own = |name: &str| declared.iter().any(|set| set.name == name);
            let lock = Lock::new(lock.weights.into_iter().filter(|entry| own(&entry.name)).collect());
            let file = folder.join("cog.yaml");
            let written = fs::create_dir_all(folder).and_then(|()| fs::write(&file, manifest));
            written.map_err(|e| Failure::Failed(format!("{}: {e}", file.display())))?;
            write_lock(&file, &lock)?;
            eprintln!("pinion: wrote {} and its weights.lock", file.display());
            Ok(())
        }
        (Some(_), None) => {
            eprintln!("pinion: there is a cog.yaml in it; --to DIR writes it there");
            Ok(())
        }
        (None, Some(_)) => Err(Failure::BadInput(format!("--to: {name} has no cog.yaml in it"))),
        (None, None) => Ok(()),
    }
}

/// Pins every set that the file declares as its source is now.
fn lock(config: &CogYaml) -> Result<(), Failure> {
    let (Some(file), Some(text)) = (config.file(), config.text()?) else {
        return Err(Failure::BadInput("--config FILE names the cog.yaml whose sets are pinned".into()));
    };
    pin(file, &weights::declared(&text)?)
}

/// Pins what this build declares for a served model, where its deployment will look.
fn lock_declared(name: &str, config: &CogYaml) -> Result<(), Failure> {
    let deployment = config.load()?;
    let offer = deployment.find(name)?;
    let declared = weights::declared(offer.model.manifest)?;
    if declared.is_empty() {
        let why = format!("{name} declares no weights to pin: they are pinned in this build, or a path of yours");
        return Err(Failure::BadInput(why));
    }
    let file = pinned_here(offer.model);
    fs::create_dir_all(folder_of(&file)).map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
    pin(&file, &declared)?;
    eprintln!("pinion: pinned in {}; `pinion weights pull {name}` fetches them", lock_of(&file).display());
    Ok(())
}

/// Writes the weights.lock of a cog.yaml that declares these sets.
pub fn pin(file: &Path, declared: &[Declared]) -> Result<(), Failure> {
    if declared.is_empty() {
        return Err(Failure::BadInput(format!("{} declares no sets under `weights:`", file.display())));
    }
    // A lock that was edited by hand is made anew.
    let before = read_lock(file).ok().flatten();
    let (options, mut entries) = (Options::from_env(), Vec::new());
    for set in declared {
        let bar = Bar::new();
        let before = before.as_ref().and_then(|lock| lock.weights.iter().find(|entry| entry.name == set.name));
        let draw = &mut |progress: Progress| bar.draw(progress);
        let entry = weights::pin(set, folder_of(file), before, &options, draw)?;
        drop(bar);
        let (count, size, digest) = (entry.files.len(), entry.size, &entry.set_digest);
        eprintln!("pinion: {}: {count} files of {size} bytes, {digest}", set.name);
        entries.push(entry);
    }
    write_lock(file, &Lock::new(entries))
}

/// Whole or not at all.
fn write_lock(file: &Path, lock: &Lock) -> Result<(), Failure> {
    let at = lock_of(file);
    let fresh = at.with_extension(format!("lock-{}", std::process::id()));
    let written = fs::write(&fresh, lock.to_json() + "\n").and_then(|()| fs::rename(&fresh, &at));
    written.map_err(|e| Failure::Failed(format!("{}: {e}", at.display())))
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
