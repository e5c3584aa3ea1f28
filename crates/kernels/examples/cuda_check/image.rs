//! The kernels of image networks at SDXL's shapes for 1024 x 1024 pixels, two images, beside what the machine gives at most: bytes at
//! the rate of a copy, operations at the rate of the library's largest product, all in the same run.

use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::{Error, Result};
use kernels::cuda::attend::{self, Batch, DIM, Rows};
use kernels::cuda::call::{Call, Element, Real};
use kernels::cuda::check::Random;
use kernels::cuda::device::{Kernels, Memory};
use kernels::cuda::image::{self, Activation, Added, Groups, Walk};
use kernels::cuda::params::Ptr;
use kernels::cuda::product::{Library, Out};
use kernels::cuda::stream::{Memory as _, Stream, Work};

use super::measure::{launch, seconds};

const IMAGES: usize = 2;
const TURNS: usize = 20;
/// A side of the product that says what operations the machine gives.
const LARGEST: usize = 8192;
/// A scratch for every kernel: in and out.
const BYTES: usize = 1 << 30;

struct Machine<'a> {
    kernels: &'a Kernels,
    element: Element,
    /// Bytes per second of a copy.
    copy: f64,
    /// Operations per second of the library's product.
    product: f64,
    from: Memory,
    to: Memory,
}

impl Machine<'_> {
    fn line(&self, name: &str, bytes: usize, operations: f64, took: f64) {
        let floor = (bytes as f64 / self.copy).max(operations / self.product);
        let (rate, of) = (operations / took / 1e12, 100.0 * floor / took);
        println!("| {name} | {:.1} | {:.1} | {of:.0} % | {rate:.0} |", took * 1e6, floor * 1e6);
    }

    fn calls(&self, name: &str, bytes: usize, operations: f64, calls: &[Call]) -> Result<()> {
        let took = seconds(self.kernels, |kernels| (0..TURNS).try_for_each(|_| launch(kernels, calls)))?;
        self.line(name, bytes, operations, took / TURNS as f64);
        Ok(())
    }
}

/// The median time of a library's product, launched on its own.
fn library_seconds(kernels: &Kernels, product: &Library) -> Result<f64> {
    let context = kernels.stream().context();
    let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(Error::wrap);
    let (begin, end) = (event()?, event()?);
    let mut times = Vec::new();
    for turn in 0..TURNS {
        begin.record(kernels.stream()).map_err(Error::wrap)?;
        // SAFETY: the scratch is as large as the shapes say, and outlives the measurement.
        unsafe { kernels.run(&Work::Library(*product)) }?;
        end.record(kernels.stream()).map_err(Error::wrap)?;
        let took = begin.elapsed_ms(&end).map_err(Error::wrap)?;
        // The first ones warm up.
        if turn >= 4 {
            times.push(f64::from(took) / 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

pub fn all(kernels: &Kernels, random: &mut Random, element: Element, copy: f64) -> Result<()> {
    let values: Vec<u8> = random
        .normal(4 << 20)
        .into_iter()
        .flat_map(|v| match element {
            Element::Bf16 => half::bf16::from_f32(v * 0.1).to_le_bytes(),
            Element::F16 => half::f16::from_f32(v * 0.1).to_le_bytes(),
        })
        .collect();
    let mut from = Memory::zeros(kernels, BYTES)?;
    for at in (0..BYTES).step_by(values.len()) {
        from.write(kernels, at, &values)?;
    }
    let to = Memory::zeros(kernels, BYTES)?;
    let square = |x: Ptr, w: Ptr, y: Ptr| {
        let (rows, k, out) = (LARGEST, LARGEST, LARGEST);
        Library { element, rows, k, out, x, w, y, y_stride: out, kind: Out::Element }
    };
    let side_bytes = LARGEST * LARGEST * 2;
    let took = library_seconds(kernels, &square(from.ptr(), from.ptr().at(side_bytes), to.ptr()))?;
    let product = 2.0 * (LARGEST as f64).powi(3) / took;
    println!("\nSDXL at 1024 x 1024, two images, {}; library product {:.0} TFLOP/s\n", element.name(), product / 1e12);
    println!("| kernel | us | floor us | of the floor | TFLOP/s |\n|---|---|---|---|---|");
    let machine = Machine { kernels, element, copy, product, from, to };
    attention(&machine)?;
    norms(&machine)?;
    windows(&machine)
}

fn attention(machine: &Machine) -> Result<()> {
    let at = machine.from.ptr();
    for (name, rows, seen, heads) in [
        ("attention, 4096 of 10 heads", 4096, 4096, 10),
        ("attention, 1024 of 20 heads", 1024, 1024, 20),
        ("attention, 4096 of 10 heads over 77", 4096, 77, 10),
        ("attention, 1024 of 20 heads over 77", 1024, 77, 20),
    ] {
        let width = heads * DIM;
        let batch = Batch { parts: IMAGES, rows, seen, heads, causal: false, scale: 0.125 };
        let part = |from: usize| Rows { at: at.at(from * width * 2), stride: 3 * width };
        let call = attend::attend(machine.element, &batch, part(0), part(1), part(2), machine.to.ptr());
        let bytes = IMAGES * (2 * rows + 2 * seen) * width * 2;
        machine.calls(name, bytes, (4 * IMAGES * rows * seen * width) as f64, &[call])?;
    }
    Ok(())
}

fn norms(machine: &Machine) -> Result<()> {
    let (x, y) = (machine.from.ptr(), machine.to.ptr());
    let real = Real::Half(machine.element);
    // Gains and offsets are whatever floats these bits are.
    let learned = (x, x.at(64 << 10));
    for (side, channels) in [(128, 320), (128, 960), (64, 640), (32, 1280), (32, 2560)] {
        let over = Groups { images: IMAGES, pixels: side * side, channels, groups: 32, eps: 1e-5, silu: true };
        let bytes = IMAGES * side * side * channels * 2;
        let calls = image::group_norm(real, &over, x, learned, y.at(BYTES / 2), y);
        machine.calls(&format!("group norm + SiLU, {side} x {side} x {channels}"), 3 * bytes, 0.0, &calls)?;
    }
    for (rows, width) in [(8192, 640), (2048, 1280)] {
        let bytes = rows * width * 2;
        let norm = image::layer_norm(real, (x, width), (rows, width), learned, 1e-5, y);
        machine.calls(&format!("layer norm, {rows} x {width}"), 2 * bytes, 0.0, &[norm])?;
        let added = Added { bias: Some(learned.0), residual: Some(x.at(BYTES / 2)), shift: None };
        let add = image::finish(real, Activation::None, x, (rows, width), &added, y);
        machine.calls(&format!("bias and residual, {rows} x {width}"), 3 * bytes, 0.0, &[add])?;
        let added = Added { bias: Some(learned.0), ..Added::default() };
        let gate = image::finish(real, Activation::Geglu, x, (rows, 4 * width), &added, y);
        machine.calls(&format!("GEGLU, {rows} x {}", 4 * width), 12 * bytes, 0.0, &[gate])?;
    }
    Ok(())
}

/// Convolutions: the windows, and the library's product of them.
fn windows(machine: &Machine) -> Result<()> {
    for (side, channels, out) in [(128, 320, 320), (128, 640, 320), (64, 640, 640), (32, 1280, 1280), (32, 2560, 1280)]
    {
        let (pixels, k) = (IMAGES * side * side, 9 * channels);
        let walk = Walk {
            height: side,
            width: side,
            pixel_bytes: channels * 2,
            kernel: 3,
            stride: 1,
            top: 1,
            left: 1,
            rows: side,
            columns: side,
            doubled: false,
        };
        let name = format!("3 x 3, {side} x {side}, {channels} to {out}");
        let moved = pixels * channels * 2 + pixels * k * 2;
        let call = image::columns(&walk, machine.from.ptr(), (0, pixels), machine.to.ptr());
        machine.calls(&format!("windows of {name}"), moved, 0.0, &[call])?;
        let product = Library {
            element: machine.element,
            rows: pixels,
            k,
            out,
            x: machine.to.ptr(),
            w: machine.from.ptr().at(BYTES / 2),
            y: machine.from.ptr(),
            y_stride: out,
            kind: Out::Element,
        };
        let took = library_seconds(machine.kernels, &product)?;
        let operations = (2 * pixels * k * out) as f64;
        machine.line(&format!("product of {name}"), (pixels * (k + out) + k * out) * 2, operations, took);
    }
    Ok(())
}
