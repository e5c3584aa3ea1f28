//! From what the driver said and the executables that are here to the GPUs that work, and to one sentence for every reason
//! why not. Pure.

use std::path::Path;

use prediction::frame::BUILD;
use runner::device::probe::{Driver, Gpu, LIBRARY, Probe};
use runner::device::{Capability, CudaVersion, FAMILIES, Family};

use super::{Device, Executable, Unanswered, VISIBLE, WORKERS};

/// The GPUs that work, in the driver's order, and why others do not.
pub fn choose(
    probe: &Result<Probe, Unanswered>,
    executables: &[Executable],
    visible: Option<&str>,
) -> (Vec<Device>, Vec<String>) {
    let probe = match probe {
        Ok(probe) => probe,
        Err(why) => {
            let todo =
                "`nvidia-smi` tells whether it works at all; restarting the machine or installing it again helps";
            return (Vec::new(), vec![format!("NVIDIA's driver {why} when it was asked what there is: {todo}")]);
        }
    };
    match &probe.driver {
        Driver::Absent { why } => (Vec::new(), vec![absent(why)]),
        Driver::Failed { call, code, name, .. } => (Vec::new(), vec![failed(call, *code, name, visible)]),
        Driver::Ready { gpus, .. } if gpus.is_empty() => (Vec::new(), vec![no_gpu(visible)]),
        Driver::Ready { version, gpus } => {
            let release = probe.release.as_deref();
            sort(gpus, |gpu| serve(gpu, executables, *version, release))
        }
    }
}

/// GPUs with the same reason share a sentence.
fn sort(gpus: &[Gpu], serve: impl Fn(&Gpu) -> Result<Device, String>) -> (Vec<Device>, Vec<String>) {
    let mut devices = Vec::new();
    let mut refused: Vec<(String, Vec<String>)> = Vec::new();
    for gpu in gpus {
        match serve(gpu) {
            Ok(device) => devices.push(device),
            Err(why) => {
                let shown = format!("cuda:{} ({}, compute capability {})", gpu.number, gpu.name, gpu.capability);
                match refused.iter_mut().find(|(reason, _)| *reason == why) {
                    Some((_, shared)) => shared.push(shown),
                    None => refused.push((why, vec![shown])),
                }
            }
        }
    }
    let notes = refused.into_iter().map(|(why, gpus)| format!("{} is not used: {why}", gpus.join(", ")));
    (devices, notes.collect())
}

fn serve(gpu: &Gpu, executables: &[Executable], driver: CudaVersion, release: Option<&str>) -> Result<Device, String> {
    let family = Family::of(gpu.capability).ok_or_else(|| unserved(gpu.capability))?;
    let executable =
        executables.iter().find(|executable| executable.family == family).ok_or_else(|| missing(family))?;
    let shown = executable.path.display();
    let about = executable.about.as_ref().map_err(|why| broken(&executable.path, why))?;
    if about.build != BUILD {
        let theirs = &about.build;
        return Err(format!("{shown} is version {theirs} and this program {BUILD}: install both from one build"));
    }
    match &about.cuda {
        Some(built) if built.family == family.name => {
            if driver < built.toolkit {
                return Err(old_driver(family, built.toolkit, driver, release));
            }
        }
        _ => return Err(format!("{shown} was not built for it: build it with `{}`", build(family))),
    }
    Ok(Device {
        device: format!("cuda:{}", gpu.number),
        name: gpu.name.clone(),
        capability: Some(gpu.capability),
        total_bytes: Some(gpu.total_bytes),
        free_bytes: gpu.free_bytes,
        executable: Some(executable.path.clone()),
    })
}

fn build(family: &Family) -> String {
    format!("cargo xtask cuda --family {}", family.name)
}

fn absent(why: &str) -> String {
    if why.starts_with(LIBRARY) && why.contains("No such file") {
        return format!(
            "there is no NVIDIA driver here ({LIBRARY} is not found): for a GPU, install NVIDIA's driver; in a container, \
             start it with `--gpus all`"
        );
    }
    format!("NVIDIA's driver is here and cannot be loaded ({why}): install it again, for this system's architecture")
}

/// Names and numbers: CUDA driver API, `CUresult`.
fn failed(call: &str, code: i32, name: &str, visible: Option<&str>) -> String {
    let todo = match code {
        100 => return no_gpu(visible),
        34 => "this is the toolkit's stub, made for linking: take its folder out of LD_LIBRARY_PATH",
        802 => "the GPUs are still being set up: start nvidia-fabricmanager, or try again in a moment",
        803 => "its kernel module and its library are of different releases: restart the machine",
        804 => "this library is CUDA's compatibility package, which does not know the GPU: use the driver's own",
        _ => "`nvidia-smi` tells more; restarting the machine or installing the driver again helps",
    };
    format!("NVIDIA's driver does not work, {call} says {name} ({code}): {todo}")
}

fn no_gpu(visible: Option<&str>) -> String {
    match visible {
        Some("") => {
            format!("{VISIBLE} is empty, which hides every GPU: unset it, or name those to use, e.g. {VISIBLE}=0")
        }
        Some(named) => format!(
            "{VISIBLE} is {named:?}, and no GPU of that name is here: unset it, or name some of what `nvidia-smi -L` lists"
        ),
        None => {
            "NVIDIA's driver is here and finds no GPU: `nvidia-smi -L` should list it; in a container, start it with \
                 `--gpus all`"
                .to_owned()
        }
    }
}

fn unserved(capability: Capability) -> String {
    let served: Vec<String> = FAMILIES.iter().map(|family| format!("{family} ({})", family.executable())).collect();
    format!("no build serves {capability}; there are builds for {}: use a newer GPU, or the CPU", served.join(" and "))
}

fn missing(family: &Family) -> String {
    format!(
        "{} is not beside this program: `{}` builds it; elsewhere, name its folder in {WORKERS}",
        family.executable(),
        build(family)
    )
}

fn broken(path: &Path, why: &Unanswered) -> String {
    format!(
        "{} {why}: install what it names (the CUDA libraries it was built with), or name their folder in LD_LIBRARY_PATH",
        path.display()
    )
}

fn old_driver(family: &Family, toolkit: CudaVersion, driver: CudaVersion, release: Option<&str>) -> String {
    let needed = match toolkit.driver() {
        Some(branch) => format!("install driver {branch} or newer"),
        None => format!("install a driver for CUDA {toolkit} or newer"),
    };
    format!(
        "the driver{} is for CUDA {driver} and {} was built with CUDA {toolkit}: {needed}",
        release.map(|release| format!(" {release}")).unwrap_or_default(),
        family.executable()
    )
}
