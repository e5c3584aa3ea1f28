//! Every CUDA kernel on the GPU at hand: first against the f64 references, on fresh random inputs; then what it moves per second,
//! beside a copy in the same run, whole decode steps of the Llama-3-8B shape, and the image kernels at the shapes of SDXL; what was
//! copied to the host comes back as it was. Prints tables; fails if a check fails.
//!
//! `cargo run --release -p kernels --features cuda --example cuda_check`; `-- --check` leaves the measurements out.

mod image;
mod kept;
mod measure;

use std::process::ExitCode;
use std::rc::Rc;

use candle_core::{Device, Result};
use kernels::cuda::call::{Call, Element, Gpu};
use kernels::cuda::check::{ALL, Bench, Held, Machine, Random};
use kernels::cuda::device::{Kernels, Memory};
use kernels::cuda::params::Ptr;
use kernels::cuda::stream::Memory as _;

struct OnDevice(Rc<Kernels>);

struct HeldThere(Rc<Kernels>, Memory);

impl Machine for OnDevice {
    fn gpu(&self) -> Gpu {
        *self.0.gpu()
    }

    fn elements(&self) -> &'static [Element] {
        if self.0.element() == Element::Bf16 { &[Element::Bf16, Element::F16] } else { &[Element::F16] }
    }

    fn hold(&self, content: Vec<u128>) -> Box<dyn Held> {
        let bytes: Vec<u8> = content.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let memory = Memory::of(&self.0, &bytes).expect("memory");
        Box::new(HeldThere(self.0.clone(), memory))
    }

    fn run(&self, call: &Call, _: u64) {
        // SAFETY: a check names memory that it holds.
        unsafe { self.0.launch(call) }.expect(&call.kernel);
        self.0.synchronize().expect(&call.kernel);
    }
}

impl Held for HeldThere {
    fn address(&self) -> Ptr {
        self.1.ptr()
    }

    fn content(&self) -> Vec<u128> {
        let bytes = self.1.read(&self.0, self.1.bytes()).expect("memory");
        bytes.as_chunks().0.iter().map(|word| u128::from_ne_bytes(*word)).collect()
    }
}

fn main() -> ExitCode {
    match all() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{failed} checks FAILED");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn all() -> Result<usize> {
    let device = Device::new_cuda_with_stream(0)?;
    let kernels = Rc::new(Kernels::load(device.as_cuda_device()?)?);
    let (major, minor) = kernels.capability();
    println!(
        "{}, compute capability {major}.{minor}, {} multiprocessors",
        kernels.name(),
        kernels.gpu().multiprocessors
    );
    let machine = OnDevice(kernels.clone());
    let mut failed = 0;
    for (name, check) in ALL {
        let random = Random::fresh();
        let mut bench = Bench { machine: &machine, random };
        // What went wrong, and the seed, are printed by the panic.
        let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut bench))).is_ok();
        failed += usize::from(!passed);
        println!("{} {name}", if passed { "ok    " } else { "FAILED" });
    }
    let passed = kept::check(&kernels)?;
    failed += usize::from(!passed);
    println!("{} copies of a device's memory", if passed { "ok    " } else { "FAILED" });
    if !std::env::args().any(|arg| arg == "--check") {
        measure::all(&kernels)?;
        kept::measure(&kernels)?;
    }
    Ok(failed)
}
