//! `pinion doctor`: what this machine has, what would be chosen, what is missing.

use std::path::PathBuf;

use clap::Args;
use runner::device::probe::Driver;
use schema::config::WeightsFrom;

use crate::deployment::{CogYaml, Kept, Locked};
use crate::devices::{self, Device, Executable, Found};
use crate::failure::Failure;
use crate::out::print_line;
use crate::{check, paths, places};

#[derive(Args)]
pub struct Words {
    #[command(flatten)]
    config: CogYaml,
    /// The server's data folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Try every device: it has to answer as the CPU does, and to give its memory back when its worker is killed
    #[arg(long)]
    check: bool,
    /// With --check: a reference's numbers for the smallest served model, compared on every device
    #[arg(long, value_name = "FILE", requires = "check")]
    golden: Option<PathBuf>,
}

/// Bytes in a gibibyte, for people.
const GIB: f64 = (1u64 << 30) as f64;

pub fn main(words: Words) -> Result<(), Failure> {
    let cpu = runner::device::cpu();
    print_line!("program  pinion {}{}", env!("CARGO_PKG_VERSION"), built());
    print_line!("cpu      {} ({} cores; {})", cpu.model, cpu.cores, cpu.features.join(" "));
    match runner::device::memory() {
        Some(memory) => print_line!(
            "memory   {:.1} GiB, {:.1} GiB available",
            memory.total_bytes as f64 / GIB,
            memory.available_bytes as f64 / GIB
        ),
        None => print_line!("memory   unknown on this system"),
    }
    let found = devices::find_with_free_memory();
    let deployment = words.config.load()?;
    show(&found)?;
    match places::choose(&deployment.config, &found.names()) {
        Ok(places) => {
            let places: Vec<String> = places.into_iter().map(|place| place.device).collect();
            print_line!("device   {}{}", places.join(", "), reason(&found));
        }
        Err(failure) => print_line!("device   none: {failure}"),
    }
    print_line!("cache    {}", runner::weights::cache_folder().display());
    print_line!("data     {}", paths::data(words.data).display());
    for note in &deployment.config.notes {
        print_line!("note     {note}");
    }
    for offer in &deployment.offers {
        let name = &offer.served.name;
        let state = match &offer.locked {
            None => at_path(&offer.served.weights),
            Some(Locked { kept: Kept::Own(own), entry }) => {
                let sources: Vec<&str> = entry.sources.iter().map(|source| source.uri.as_str()).collect();
                format!("weights {} ({} bytes) of {}", sources.join(", "), entry.size, own.base.display())
            }
            Some(locked) => match runner::weights::cached(&locked.entry) {
                Some(folder) => format!("weights in {}", folder.display()),
                None => format!("weights missing: `pinion weights pull {name}` fetches {} bytes", locked.entry.size),
            },
        };
        print_line!("model    {name}: {state}");
    }
    if words.check {
        check::main(&deployment, &found, words.golden.as_deref())?;
    }
    Ok(())
}

fn built() -> String {
    match runner::device::about().cuda {
        Some(built) => format!(", with CUDA {} for family {}", built.toolkit, built.family),
        None => String::new(),
    }
}

/// The driver, what serves GPUs, and every GPU.
fn show(found: &Found) -> Result<(), Failure> {
    match &found.probe {
        Ok(probe) => {
            let release = probe.release.as_deref().map(|release| format!("{release}, ")).unwrap_or_default();
            match &probe.driver {
                Driver::Absent { .. } => print_line!("driver   none"),
                Driver::Failed { call, name, .. } => print_line!("driver   {release}{call} says {name}"),
                Driver::Ready { version, gpus } => {
                    print_line!("driver   {release}for CUDA {version}");
                    for gpu in gpus {
                        let device = format!("cuda:{}", gpu.number);
                        let served = found.devices.iter().find(|served| served.device == device);
                        print_line!(
                            "gpu      {device} {} (compute capability {}), {:.1} GiB{}: {}",
                            gpu.name,
                            gpu.capability,
                            gpu.total_bytes as f64 / GIB,
                            gpu.free_bytes
                                .map(|free| format!(", {:.1} GiB free", free as f64 / GIB))
                                .unwrap_or_default(),
                            served.map_or_else(|| "not used".to_owned(), served_by)
                        );
                    }
                }
            }
        }
        Err(why) => print_line!("driver   {why}"),
    }
    for Executable { family, path, about } in &found.executables {
        let built = match about {
            Ok(about) => match &about.cuda {
                Some(built) => format!("version {}, built with CUDA {}", about.build, built.toolkit),
                None => format!("version {}, without CUDA", about.build),
            },
            Err(why) => why.to_string(),
        };
        print_line!("worker   {} for compute capability {family}: {built}", path.display());
    }
    for note in &found.notes {
        print_line!("note     {note}");
    }
    Ok(())
}

fn served_by(device: &Device) -> String {
    match &device.executable {
        Some(path) => format!("served by {}", path.display()),
        None => "served by this program".to_owned(),
    }
}

/// Why no GPU works, said beside the choice.
fn reason(found: &Found) -> String {
    match found.devices.len() {
        1 => ": no GPU can be used (the note above says why)".to_owned(),
        _ => String::new(),
    }
}

fn at_path(weights: &WeightsFrom) -> String {
    match weights {
        WeightsFrom::Path(path) if path.exists() => format!("weights in {}", path.display()),
        WeightsFrom::Path(path) => format!("weights missing: cog.yaml names {}, which is not there", path.display()),
        WeightsFrom::Locked(name) => {
            format!("weights are not pinned: `pinion weights lock {name}` does it where the hub is reached")
        }
        WeightsFrom::Synth(shape) => format!("random weights of the shape {shape}"),
    }
}
