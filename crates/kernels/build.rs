//! With the feature `cuda`: compiles the kernels of `cuda/` with nvcc, one file of machine code for several GPUs each, for
//! `src/cuda/device.rs` to embed. Without it: nothing.
//!
//! `NVCC` or nvcc on PATH; `CUDA_COMPUTE_CAP`, the least GPU that shall be served, 80 unless set. What is compiled for 80
//! runs on every 8.x; 9.0 gets code of its own, for the chained launches, and its PTX serves what comes after.

use std::path::PathBuf;
use std::process::{Command, exit};

/// The kernels are `NAME.cu`.
const FILES: [&str; 6] = ["plain", "packed", "scaled", "attention", "rows", "image"];
const LEAST: u32 = 75;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    if let Err(why) = compile() {
        eprintln!("{why}");
        exit(1);
    }
}

fn compile() -> Result<(), String> {
    let nvcc = std::env::var("NVCC").unwrap_or_else(|_| "nvcc".into());
    let asked = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    let capability: u32 = asked
        .parse()
        .ok()
        .filter(|c| *c >= LEAST)
        .ok_or_else(|| format!("CUDA_COMPUTE_CAP is {asked}; a number from {LEAST} on, such as 80"))?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let mut flags: Vec<String> = ["--fatbin", "-std=c++17", "-O3"].map(String::from).to_vec();
    // No bf16 before sm_80.
    if capability >= 80 {
        flags.push("-DPINION_BF16".into());
    }
    flags.extend(targets(capability));
    let mut running = Vec::new();
    for file in FILES {
        let (from, to) = (format!("cuda/{file}.cu"), out.join(format!("{file}.fatbin")));
        let child = Command::new(&nvcc).args(&flags).arg(&from).arg("-o").arg(to).spawn();
        let child = child.map_err(|e| format!("the feature cuda needs nvcc; {nvcc}: {e}. NVCC says where it is"))?;
        running.push((from, child));
    }
    for (from, mut child) in running {
        let status = child.wait().map_err(|e| format!("{nvcc}: {e}"))?;
        if !status.success() {
            return Err(format!("{nvcc} does not compile {from}: {status}"));
        }
    }
    Ok(())
}

/// Machine code for the least, for 9.0 if that is another, and PTX of the last for whatever comes later.
fn targets(least: u32) -> Vec<String> {
    let code = |capability: u32, kinds: &str| format!("-gencode=arch=compute_{capability},code={kinds}");
    if least == LEAST {
        // A build for the T4 alone: f16 kernels.
        return vec![code(75, "[sm_75,compute_75]")];
    }
    let mut targets = Vec::new();
    if least < 90 {
        targets.push(code(least, &format!("sm_{least}")));
    }
    let last = least.max(90);
    targets.push(code(last, &format!("[sm_{last},compute_{last}]")));
    targets
}
