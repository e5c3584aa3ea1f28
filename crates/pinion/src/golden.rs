//! `pinion golden`, a hidden word: a model's numbers beside the reference's, on one device. For `cargo xtask golden` and
//! `pinion doctor --check`. Knows who compares what.

use std::path::PathBuf;

use clap::Args;

use crate::failure::Failure;

#[derive(Args)]
pub struct Words {
    /// A folder of models/
    model: String,
    weights: PathBuf,
    /// What the model reads besides, where it needs that (a recording, a refiner's folder), then the golden file
    #[arg(required = true, value_name = "[INPUT] GOLDEN")]
    files: Vec<PathBuf>,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
}

pub fn main(words: Words) -> Result<(), Failure> {
    let entry = models::Entry::named(&words.model)
        .ok_or_else(|| Failure::BadInput(format!("no model is called {:?}", words.model)))?;
    let device = runner::device::pick(&words.device)?;
    let Some((golden, inputs)) = words.files.split_last() else {
        return Err(Failure::BadInput("a golden file is expected".into()));
    };
    match (entry.golden)(&words.weights, inputs, golden, &device, &mut std::io::stdout())? {
        true => Ok(()),
        false => Err(Failure::failed("the numbers differ from the reference's by more than is allowed")),
    }
}
