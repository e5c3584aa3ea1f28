//! The processor and its memory, as the system tells them. Refuses to know GPUs.

/// The processor, as `pinion doctor` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    pub model: String,
    /// Cores this process may use: affinity and container quota counted.
    pub cores: usize,
    /// The instruction sets that matter to the kernels, present ones only.
    pub features: Vec<&'static str>,
}

/// Bytes of main memory: what the machine has, or the container's limit where that is less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

pub fn cpu() -> Cpu {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Cpu {
        model: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        features: features(),
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    known.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
    ];
    known.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

/// None where the system does not say (not Linux).
pub fn memory() -> Option<Memory> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = meminfo(&info)?;
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max");
    Some(within(machine, limit, number("/sys/fs/cgroup/memory.current").unwrap_or(0)))
}

fn meminfo(info: &str) -> Option<Memory> {
    let kib = |field: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(Memory { total_bytes: kib("MemTotal")? * 1024, available_bytes: kib("MemAvailable")? * 1024 })
}

fn within(machine: Memory, limit_bytes: Option<u64>, used_bytes: u64) -> Memory {
    let Some(limit) = limit_bytes.filter(|&limit| limit < machine.total_bytes) else { return machine };
    let available_bytes = machine.available_bytes.min(limit.saturating_sub(used_bytes));
    Memory { total_bytes: limit, available_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_limit_counts_where_it_is_less() {
        let machine = meminfo("MemTotal:       100 kB\nMemFree: 1 kB\nMemAvailable:    60 kB\n").unwrap();
        assert_eq!(machine, Memory { total_bytes: 102_400, available_bytes: 61_440 });
        assert_eq!(within(machine, None, 0), machine);
        assert_eq!(within(machine, Some(1 << 40), 5), machine);
        let limited = within(machine, Some(50_000), 20_000);
        assert_eq!(limited, Memory { total_bytes: 50_000, available_bytes: 30_000 });
        assert_eq!(meminfo("nothing"), None);
    }

    #[test]
    fn this_machine_has_a_core_and_memory() {
        assert!(cpu().cores >= 1);
        assert!(memory().is_none_or(|memory| memory.available_bytes <= memory.total_bytes));
    }
}
