//! `pinion doctor`: what this machine has, what would be chosen, what is missing.

use std::path::PathBuf;

use clap::Args;
use schema::config::WeightsFrom;

use crate::deployment::CogYaml;
use crate::failure::Failure;
use crate::out::print_line;
use crate::paths;

#[derive(Args)]
pub struct Words {
    #[command(flatten)]
    config: CogYaml,
    /// The server's data folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Bytes in a gibibyte, for people.
const GIB: f64 = (1u64 << 30) as f64;

pub fn main(words: Words) -> Result<(), Failure> {
    let cpu = runner::device::cpu();
    print_line!("program  pinion {}", env!("CARGO_PKG_VERSION"));
    print_line!("cpu      {} ({} cores; {})", cpu.model, cpu.cores, cpu.features.join(" "));
    match runner::device::memory() {
        Some(memory) => print_line!(
            "memory   {:.1} GiB, {:.1} GiB available",
            memory.total_bytes as f64 / GIB,
            memory.available_bytes as f64 / GIB
        ),
        None => print_line!("memory   unknown on this system"),
    }
    print_line!("device   cpu: this build has no CUDA worker");
    print_line!("cache    {}", runner::weights::cache_folder().display());
    print_line!("data     {}", paths::data(words.data).display());
    let deployment = words.config.load()?;
    for note in &deployment.config.notes {
        print_line!("note     {note}");
    }
    for offer in &deployment.offers {
        let name = &offer.served.name;
        let state = match &offer.locked {
            None => at_path(&offer.served.weights),
            Some(locked) => match runner::weights::cached(&locked.entry) {
                Some(folder) => format!("weights in {}", folder.display()),
                None => format!("weights missing: `pinion weights pull {name}` fetches {} bytes", locked.entry.size),
            },
        };
        print_line!("model    {name}: {state}");
    }
    Ok(())
}

fn at_path(weights: &WeightsFrom) -> String {
    match weights {
        WeightsFrom::Path(path) if path.exists() => format!("weights in {}", path.display()),
        WeightsFrom::Path(path) => format!("weights missing: cog.yaml names {}, which is not there", path.display()),
        WeightsFrom::Locked(name) => format!("weights {name}"),
    }
}
