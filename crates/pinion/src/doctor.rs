//! `pinion doctor`: what this machine has, what would be chosen, what is missing.

use std::path::PathBuf;

use clap::Args;

use crate::deployment::Deployment;
use crate::failure::Failure;
use crate::paths;

#[derive(Args)]
pub struct Words {
    /// What is served, in place of the built-in cog.yaml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's data folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Bytes in a gibibyte, for people.
const GIB: f64 = (1u64 << 30) as f64;

pub fn main(words: Words) -> Result<(), Failure> {
    let cpu = runner::device::cpu();
    println!("program  pinion {}", env!("CARGO_PKG_VERSION"));
    println!("cpu      {} ({} cores; {})", cpu.model, cpu.cores, cpu.features.join(" "));
    match runner::device::memory() {
        Some(memory) => println!(
            "memory   {:.1} GiB, {:.1} GiB available",
            memory.total_bytes as f64 / GIB,
            memory.available_bytes as f64 / GIB
        ),
        None => println!("memory   unknown on this system"),
    }
    println!("device   cpu: this build has no CUDA worker");
    println!("cache    {}", runner::weights::cache_folder().display());
    println!("data     {}", paths::data(words.data).display());
    let deployment = Deployment::load(words.config.as_deref())?;
    for note in &deployment.config.notes {
        println!("note     {note}");
    }
    for offer in &deployment.offers {
        let name = &offer.served.name;
        let state = match &offer.locked {
            None => "weights from a path that cog.yaml names".to_owned(),
            Some(locked) => match runner::weights::cached(&locked.entry) {
                Some(folder) => format!("weights in {}", folder.display()),
                None => format!("weights missing: `pinion weights pull {name}` fetches {} bytes", locked.entry.size),
            },
        };
        println!("model    {name}: {state}");
    }
    Ok(())
}
