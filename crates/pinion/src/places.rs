//! Which devices a server uses, with which memory: what cog.yaml asks for, brought together with what works on this machine.
//! Refuses to look for devices itself.

use dispatch::Device;
use runner::device::Memory;
use schema::config::Config;

use crate::failure::Failure;

/// Of the memory that is free when a server starts, this part is for models that left their GPU, where cog.yaml does not say.
const HOST_CACHE_PART: u64 = 4;

/// `found` are the names of the devices that work: `cpu` and every `cuda:N`.
pub fn choose(config: &Config, found: &[String]) -> Result<Vec<Device>, Failure> {
    let gpus = || found.iter().filter(|name| is(name, "cuda"));
    let place = |name: &String, budget_bytes| Device { device: name.clone(), budget_bytes };
    let mut places: Vec<Device> = Vec::new();
    for device in &config.devices {
        let named: Vec<&String> = found.iter().filter(|name| is(name, &device.device)).collect();
        if named.is_empty() {
            return Err(absent("native.devices", &device.device, found));
        }
        places.extend(named.into_iter().map(|name| place(name, device.memory_bytes)));
    }
    if config.devices.is_empty() {
        places.extend(gpus().map(|name| place(name, None)));
        let asked = |name: &String| config.models.iter().any(|model| model.device.as_ref() == Some(name));
        // Beside GPUs the processor works only for those that ask for it.
        let others = found.iter().filter(|name| !is(name, "cuda") && (gpus().next().is_none() || asked(name)));
        places.extend(others.map(|name| place(name, None)));
    }
    for model in &config.models {
        let Some(wanted) = &model.device else { continue };
        if !places.iter().any(|place| is(&place.device, wanted)) {
            return Err(absent(&format!("model {}", model.name), wanted, found));
        }
    }
    Ok(places)
}

/// What of the host's memory the worker of each device may keep models in that left: GPUs share it evenly, and on the processor a
/// model that left is read again from memory anyway, the page cache. `memory` is the machine's, where it tells.
pub fn host_cache(
    config: &Config,
    places: &[Device],
    memory: Option<Memory>,
) -> Result<impl Fn(&str) -> u64 + use<>, Failure> {
    let gpus = places.iter().filter(|place| is(&place.device, "cuda")).count() as u64;
    let total = match (config.host_cache_bytes, memory) {
        (Some(bytes), Some(Memory { total_bytes, .. })) if bytes > total_bytes => {
            let (asked, there) = (bytes as f64 / 1e9, total_bytes as f64 / 1e9);
            return Err(Failure::BadInput(format!(
                "cog.yaml: native.host_cache_gb: {asked}: at most {there:.1}, the memory of this machine"
            )));
        }
        (Some(bytes), _) => bytes,
        (None, memory) => memory.map_or(0, |memory| memory.available_bytes / HOST_CACHE_PART),
    };
    let each = total.checked_div(gpus).unwrap_or(0);
    Ok(move |device: &str| if is(device, "cuda") { each } else { 0 })
}

/// Whether a device is what a name of cog.yaml means: itself, or its kind.
fn is(device: &str, wanted: &str) -> bool {
    dispatch::On::Device(wanted.to_owned()).allows(device)
}

fn absent(who: &str, wanted: &str, found: &[String]) -> Failure {
    let found = found.join(", ");
    Failure::Failed(format!(
        "cog.yaml: {who}: device {wanted} does not work here; there is {found} (see `pinion doctor`)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(devices: &str, model: &str, found: &[&str]) -> Result<Vec<(String, Option<u64>)>, String> {
        let yaml =
            format!("native: {{ devices: [{devices}], models: [{{ name: m, model: llama, weights: w, {model} }}] }}");
        let found: Vec<String> = found.iter().map(|&name| name.to_owned()).collect();
        let places = choose(&Config::parse(&yaml).unwrap(), &found).map_err(|failure| failure.to_string())?;
        Ok(places.into_iter().map(|place| (place.device, place.budget_bytes)).collect())
    }

    #[test]
    fn without_a_word_in_cog_yaml_the_gpus_work_and_else_the_processor() {
        let free = |names: &[&str]| Ok(names.iter().map(|&name| (name.to_owned(), None)).collect());
        assert_eq!(chosen("", "", &["cpu"]), free(&["cpu"]));
        assert_eq!(chosen("", "", &["cpu", "cuda:0", "cuda:1"]), free(&["cuda:0", "cuda:1"]));
        assert_eq!(chosen("", "device: cpu", &["cpu", "cuda:0"]), free(&["cuda:0", "cpu"]), "somebody asks for it");
        assert_eq!(chosen("", "device: cuda", &["cpu", "cuda:0"]), free(&["cuda:0"]));
    }

    #[test]
    fn named_devices_are_used_with_their_budgets_each_gpu_with_its_own() {
        let found = ["cpu", "cuda:0", "cuda:1"];
        let with = |names: &[&str], bytes| Ok(names.iter().map(|&name| (name.to_owned(), bytes)).collect());
        let bytes = Some(5_000_000);
        assert_eq!(chosen("{device: cuda, memory_bytes: 5000000}", "", &found), with(&["cuda:0", "cuda:1"], bytes));
        assert_eq!(chosen("{device: 'cuda:1', memory_bytes: 5000000}", "", &found), with(&["cuda:1"], bytes));
        assert_eq!(chosen("{device: cpu}", "", &found), with(&["cpu"], None));
    }

    #[test]
    fn what_does_not_work_here_is_refused_with_what_does() {
        let cases = [
            ("", "device: cuda", "model m: device cuda does not work here; there is cpu (see `pinion doctor`)"),
            ("", "device: 'cuda:1'", "model m: device cuda:1 does not work here"),
            ("{device: cuda}", "", "native.devices: device cuda does not work here; there is cpu"),
        ];
        for (devices, model, expected) in cases {
            let refused = chosen(devices, model, &["cpu"]).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn gpus_share_the_host_cache_and_the_processor_has_none() {
        let memory = Some(Memory { total_bytes: 64_000_000_000, available_bytes: 40_000_000_000 });
        let shares = |yaml: &str, devices: &[&str]| {
            let yaml = format!("native: {{ {yaml} models: [{{ name: m, model: llama, weights: w }}] }}");
            let places: Vec<Device> =
                devices.iter().map(|&device| Device { device: device.into(), budget_bytes: None }).collect();
            let share = host_cache(&Config::parse(&yaml).unwrap(), &places, memory).map_err(|why| why.to_string())?;
            Ok::<Vec<u64>, String>(devices.iter().map(|device| share(device)).collect())
        };
        let table = [
            ("", vec!["cuda:0", "cuda:1", "cpu"], vec![5_000_000_000, 5_000_000_000, 0]),
            ("", vec!["cpu"], vec![0]),
            ("host_cache_gb: 0,", vec!["cuda:0"], vec![0]),
            ("host_cache_gb: 1.5,", vec!["cuda:0"], vec![1_500_000_000]),
            ("host_cache_gb: 64,", vec!["cuda:0", "cuda:1"], vec![32_000_000_000, 32_000_000_000]),
        ];
        for (yaml, devices, expected) in table {
            assert_eq!(shares(yaml, &devices), Ok(expected), "{yaml} {devices:?}");
        }
        let why = shares("host_cache_gb: 64.5,", &["cuda:0"]).unwrap_err();
        assert!(why.ends_with("native.host_cache_gb: 64.5: at most 64.0, the memory of this machine"), "{why}");
    }
}
