//! `native.devices`: which devices are used, and what the models on each may hold together. Refuses to know which devices
//! this machine has.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::{ConfigError, Served};
use crate::read::Mapping;

/// One entry of `native.devices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `cpu`, `cuda` (every GPU that works) or `cuda:N`.
    pub device: String,
    /// What the models on it may hold together, each GPU for itself; none: what is free, less a reserve.
    pub memory_bytes: Option<u64>,
}

/// From the smallest model of any use to more than a machine has.
const MEMORY_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 44;

pub const EXPECTED: &str = "cpu, cuda or cuda:N is expected";

pub fn is_device(text: &str) -> bool {
    let ordinal = |rest: &str| rest.parse::<u16>().is_ok_and(|number| number.to_string() == rest);
    text == "cpu" || text == "cuda" || text.strip_prefix("cuda:").is_some_and(ordinal)
}

/// Whether two names can mean the same device.
fn overlap(one: &str, other: &str) -> bool {
    let is_part = |kind: &str, device: &str| device.strip_prefix(kind).is_some_and(|rest| rest.starts_with(':'));
    one == other || is_part(one, other) || is_part(other, one)
}

pub fn read(list: Vec<Value>) -> Result<Vec<Device>, ConfigError> {
    let mut devices: Vec<Device> = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        let mut keys = Mapping::new(format!("native.devices[{index}]"), Some(value))?;
        let device = keys.required_text("device")?;
        if !is_device(&device) {
            return Err(keys.bad("device", &device.into(), EXPECTED));
        }
        if let Some(earlier) = devices.iter().find(|earlier| overlap(&earlier.device, &device)) {
            let why = format!("stands there already, as {}", earlier.device);
            return Err(keys.bad("device", &device.into(), why));
        }
        let memory_bytes = keys.number("memory_bytes", MEMORY_BYTES)?;
        keys.end()?;
        devices.push(Device { device, memory_bytes });
    }
    Ok(devices)
}

/// A model must not be bound to a device that the file does not use.
pub fn check(models: &[Served], devices: &[Device]) -> Result<(), ConfigError> {
    for (index, model) in models.iter().enumerate() {
        let Some(wanted) = model.device.as_deref().filter(|_| !devices.is_empty()) else { continue };
        if !devices.iter().any(|device| overlap(&device.device, wanted)) {
            let used: Vec<&str> = devices.iter().map(|device| device.device.as_str()).collect();
            return Err(ConfigError(format!(
                "native.models[{index}].device: \"{wanted}\": native.devices uses only {}",
                used.join(", ")
            )));
        }
    }
    Ok(())
}
