//! `cargo xtask cuda`: the executables for GPUs, one per family of them, on any machine with a CUDA toolkit; no GPU and no
//! driver is needed. Knows the toolkit and cargo; refuses to know what runs on a GPU.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::{Outcome, root, run, target};

/// A compute capability without its dot. Each is built alone: code for it, and PTX that a driver compiles for what came
/// later. `runner::device::FAMILIES` says which serves what.
const FAMILIES: [&str; 2] = ["75", "80"];

/// What a link needs of the toolkit beside nvcc.
const LIBRARIES: [&str; 6] = ["cuda", "cudart", "nvrtc", "curand", "cublas", "cublasLt"];

const GET_IT: &str = "\
install NVIDIA's CUDA toolkit 12.x or 13.x (no GPU needed): the packages cuda-nvcc, cuda-cudart-dev, cuda-nvrtc-dev,
libcublas-dev and libcurand-dev of one version, or the image of Dockerfile.cuda, which has all of it";

pub fn build(words: &[&str]) -> Outcome {
    let families = families(words)?;
    let toolkit = Toolkit::find()?;
    eprintln!("nvcc {} of CUDA {}.{}", toolkit.nvcc.display(), toolkit.version.0, toolkit.version.1);
    let absent = toolkit.absent_libraries();
    if !absent.is_empty() {
        eprintln!("not found with it: {}; where the linker does not know better, {GET_IT}", absent.join(", "));
    }
    let mut built = Vec::new();
    for family in families {
        let began = Instant::now();
        let executable = toolkit.build(family)?;
        built.push((executable, began.elapsed()));
    }
    for (executable, took) in built {
        let bytes = fs::metadata(&executable).map_err(|error| format!("{}: {error}", executable.display()))?.len();
        println!(
            "{}  {:.1} MB, {:.0} s; {}",
            executable.display(),
            bytes as f64 / 1e6,
            took.as_secs_f64(),
            needs(&executable)?
        );
    }
    Ok(())
}

/// `--family NAME`, any number of times; all of them where none is named.
fn families<'a>(words: &[&'a str]) -> Result<Vec<&'a str>, String> {
    let mut named = Vec::new();
    for pair in words.chunks(2) {
        match pair {
            ["--family", name] if FAMILIES.contains(name) => named.push(*name),
            ["--family", name] => return Err(format!("--family {name}: there is {}", FAMILIES.join(" and "))),
            _ => return Err(format!("cargo xtask cuda [--family {}]", FAMILIES.join("|"))),
        }
    }
    if named.is_empty() { Ok(FAMILIES.to_vec()) } else { Ok(named) }
}

struct Toolkit {
    nvcc: PathBuf,
    /// Its folder: bin, include, lib.
    home: PathBuf,
    /// Major and minor.
    version: (u32, u32),
}

impl Toolkit {
    /// As `NVCC` names it, else in `CUDA_HOME`, else on the PATH, else where NVIDIA's packages put it.
    fn find() -> Result<Self, String> {
        let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = named("CUDA_HOME").or_else(|| named("CUDA_PATH"));
        let path = env::var_os("PATH").unwrap_or_default();
        let candidates = named("NVCC")
            .into_iter()
            .chain(home.iter().map(|home| home.join("bin/nvcc")))
            .chain(env::split_paths(&path).map(|folder| folder.join("nvcc")))
            .chain([PathBuf::from("/usr/local/cuda/bin/nvcc")]);
        let nvcc = candidates
            .into_iter()
            .find(|nvcc| nvcc.is_file())
            .ok_or_else(|| format!("nvcc is in none of NVCC, CUDA_HOME, PATH and /usr/local/cuda: {GET_IT}"))?;
        let output = Command::new(&nvcc).arg("--version").output();
        let output = output.map_err(|error| format!("{} does not start: {error}", nvcc.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = release(&text).ok_or_else(|| format!("{} --version says no release: {text}", nvcc.display()))?;
        let real = fs::canonicalize(&nvcc).unwrap_or_else(|_| nvcc.clone());
        let beside = real.ancestors().nth(2).map(Path::to_owned).unwrap_or_default();
        Ok(Self { home: home.unwrap_or(beside), nvcc, version })
    }

    fn absent_libraries(&self) -> Vec<String> {
        let machine = env::consts::ARCH;
        let within = ["lib64", "lib", "lib64/stubs", "lib/stubs", &format!("targets/{machine}-linux/lib")];
        let stubs = self.home.join(format!("targets/{machine}-linux/lib/stubs"));
        let system = [PathBuf::from(format!("/usr/lib/{machine}-linux-gnu")), PathBuf::from("/usr/lib64"), stubs];
        let folders: Vec<PathBuf> = within.iter().map(|folder| self.home.join(folder)).chain(system).collect();
        let absent = LIBRARIES.iter().map(|library| format!("lib{library}.so"));
        absent.filter(|file| !folders.iter().any(|folder| folder.join(file).exists())).collect()
    }

    /// What the builds of candle's crates read, and the executable itself (`pinion probe --about`). Whoever has set one of
    /// these knows better.
    fn environment(&self, family: &str) -> BTreeMap<&'static str, String> {
        let (major, minor) = self.version;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let ours = [
            ("NVCC", self.nvcc.display().to_string()),
            ("CUDA_HOME", self.home.display().to_string()),
            ("CUDARC_CUDA_VERSION", format!("{major}0{minor}0")),
            ("CUDAFORGE_THREADS", threads.to_string()),
        ];
        let mut environment: BTreeMap<&str, String> =
            ours.into_iter().filter(|(name, _)| env::var_os(name).is_none()).collect();
        // PTX beside the code, in every object: what a later GPU's driver compiles.
        let ptx = format!("-gencode=arch=compute_{family},code=compute_{family}");
        let flags = env::var("NVCC_APPEND_FLAGS").map_or_else(|_| ptx.clone(), |flags| format!("{flags} {ptx}"));
        environment.insert("NVCC_APPEND_FLAGS", flags);
        environment.insert("CUDA_COMPUTE_CAP", family.to_owned());
        environment
    }

    /// In a target folder of its own: cargo would build everything anew whenever the family changes.
    fn build(&self, family: &str) -> Result<PathBuf, String> {
        let folder = target().join(format!("cuda-{family}"));
        let words = ["build", "--release", "--package", "pinion", "--features", "cuda", "--bin", "pinion"];
        run(Command::new(env!("CARGO"))
            .args(words)
            .current_dir(root())
            .env("CARGO_TARGET_DIR", &folder)
            .envs(self.environment(family)))?;
        let beside = target().join("release");
        let executable = beside.join(format!("pinion-cuda-{family}"));
        let half = beside.join(format!("pinion-cuda-{family}.half"));
        // Renamed into its place: one that is running stays as it is.
        fs::create_dir_all(&beside)
            .and_then(|()| fs::copy(folder.join("release/pinion"), &half))
            .and_then(|_| fs::rename(&half, &executable))
            .map_err(|error| format!("{}: {error}", executable.display()))?;
        Ok(executable)
    }
}

/// "… release 13.0, V13.0.88"
fn release(text: &str) -> Option<(u32, u32)> {
    let release = text.split("release ").nth(1)?.split([',', ' ', '\n']).next()?;
    let (major, minor) = release.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Which of CUDA's libraries have to be there for it to start.
fn needs(executable: &Path) -> Result<String, String> {
    let output = Command::new("readelf").arg("-d").arg(executable).output();
    let output = output.map_err(|error| format!("readelf does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
    let names: Vec<&str> = needed.filter_map(|line| line.split(['[', ']']).nth(1)).collect();
    let cuda: Vec<&str> =
        names.into_iter().filter(|name| name.starts_with("libcu") || name.starts_with("libnv")).collect();
    Ok(match cuda.as_slice() {
        [] => "starts without CUDA's libraries".to_owned(),
        cuda => format!("needs {} to start", cuda.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_what_nvcc_prints() {
        let printed = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.8, V12.8.93\nBuild x";
        assert_eq!(release(printed), Some((12, 8)));
        assert_eq!(release("gcc 12.2"), None);
    }

    #[test]
    fn families_are_named_one_by_one_or_all_are_meant() {
        assert_eq!(families(&[]).unwrap(), FAMILIES);
        assert_eq!(families(&["--family", "80"]).unwrap(), ["80"]);
        assert!(families(&["--family", "61"]).unwrap_err().contains("there is 75 and 80"));
        assert!(families(&["80"]).unwrap_err().contains("--family"));
    }
}
