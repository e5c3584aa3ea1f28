//! Words that textual inversion has learned ("An Image is Worth One Word", Gal et al. 2022): vectors for the token tables of
//! both encoders, from the safetensors that cog-sdxl's trainer (`embeddings.pti`) and diffusers write.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prediction::PredictError;
use runner::SafeTensors;

/// What files call the vectors of the first and of the second encoder.
const NAMES: [[&str; 2]; 2] = [["text_encoders_0", "clip_l"], ["text_encoders_1", "clip_g"]];

/// `[words, hidden]` f32 for the first and the second encoder; as many of each.
pub fn read(path: &Path) -> Result<[Tensor; 2], PredictError> {
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let wrong = |why: &dyn std::fmt::Display| PredictError::FixInput(format!("the embeddings {file}: {why}"));
    let tensors = SafeTensors::open(path).map_err(|error| wrong(&error))?;
    let table = |names: &[&str]| {
        let name = names.iter().find(|name| tensors.has(name));
        let name = name.ok_or_else(|| wrong(&format_args!("there is no tensor {}", names.join(" or "))))?;
        let tensor = tensors.tensor(name).map_err(|error| wrong(&error))?;
        let values = Tensor::from_raw_buffer(tensor.bytes, tensor.dtype, tensor.shape, &Device::Cpu);
        // One word may come without its dimension.
        let values = values.and_then(|values| values.to_dtype(DType::F32)?.reshape(((), last(tensor.shape))));
        values.map_err(|error| wrong(&format_args!("{name}: {error}")))
    };
    let [first, second] = [table(&NAMES[0])?, table(&NAMES[1])?];
    match first.dims()[0] == second.dims()[0] {
        true => Ok([first, second]),
        false => Err(wrong(&format_args!("{:?} and {:?} are not of as many words", first.dims(), second.dims()))),
    }
}

fn last(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1).max(1)
}
