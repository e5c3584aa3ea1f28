//! Words that textual inversion has learned ("An Image is Worth One Word", Gal et al. 2022): vectors for the token tables of
//! both encoders, from the safetensors that cog-sdxl's trainer (`embeddings.pti`) and diffusers write. Both call their words
//! `<s0>`, `<s1>`, … in the order of the rows. Refuses to know prompts.

use candle_core::{DType, Device, Tensor};
use prediction::PredictError;
use runner::SafeTensors;

use super::Texts;
use crate::sdxl::weights::{Component, Opened};

/// What files call the vectors of the first and of the second encoder.
const NAMES: [[&str; 2]; 2] = [["text_encoders_0", "clip_l"], ["text_encoders_1", "clip_g"]];
/// A text has 77 tokens, and trainers learn two or three.
const MAX_WORDS: usize = 256;

pub struct Learned {
    /// As messages call it.
    file: String,
    /// `[words, hidden]` f32 for the first and the second encoder; as many of each.
    vectors: [Tensor; 2],
}

impl Learned {
    /// Whether a file holds such vectors.
    pub fn is_in(tensors: &SafeTensors) -> bool {
        NAMES.iter().flatten().any(|name| tensors.has(name))
    }

    /// `file` is named in refusals.
    pub fn read(file: &str, tensors: &SafeTensors) -> Result<Self, PredictError> {
        let wrong = |why: &dyn std::fmt::Display| refuse(file, why);
        let table = |names: &[&str]| {
            let name = names.iter().find(|name| tensors.has(name));
            let name = name.ok_or_else(|| wrong(&format_args!("there is no tensor {}", names.join(" or "))))?;
            let tensor = tensors.tensor(name).map_err(|error| wrong(&error))?;
            let values = Tensor::from_raw_buffer(tensor.bytes, tensor.dtype, tensor.shape, &Device::Cpu);
            // One word may come without its dimension.
            let width = tensor.shape.last().copied().unwrap_or(1).max(1);
            let values = values.and_then(|values| values.to_dtype(DType::F32)?.reshape(((), width)));
            values.map_err(|error| wrong(&format_args!("{name}: {error}")))
        };
        let vectors = [table(&NAMES[0])?, table(&NAMES[1])?];
        let [first, second] = [&vectors[0], &vectors[1]].map(|table| table.dims()[0]);
        if first != second {
            return Err(wrong(&format_args!("{first} words for the first encoder, {second} for the second")));
        }
        if !(1..=MAX_WORDS).contains(&first) {
            return Err(wrong(&format_args!("{first} words; 1 to {MAX_WORDS} are learned")));
        }
        Ok(Self { file: file.to_owned(), vectors })
    }

    /// In the order of their vectors.
    pub fn words(&self) -> Vec<String> {
        (0..self.vectors[0].dims()[0]).map(|number| format!("<s{number}>")).collect()
    }

    /// Refuses vectors that are no rows of these encoders' tables. From configurations alone.
    pub fn fit(&self, opened: &Opened) -> Result<(), PredictError> {
        for (component, vectors) in [Component::Text1, Component::Text2].into_iter().zip(&self.vectors) {
            let (folder, width) = (component.folder(), vectors.dims()[1]);
            let needed = opened.text_config(component).map_or(0, |config| config.tower.hidden);
            if width != needed {
                let why = format_args!("vectors of {width} features for {folder}, which has {needed}");
                return Err(refuse(&self.file, &why));
            }
        }
        Ok(())
    }

    /// Makes them words of these encoders, which are on `device`.
    pub fn teach(&self, texts: &mut Texts, device: &Device) -> Result<(), PredictError> {
        let [first, second] = [0, 1].map(|at| self.vectors[at].to_device(device).map_err(super::device_error));
        texts.learn(&self.words(), &[first?, second?]).map_err(|error| refuse(&self.file, &error.text()))
    }
}

fn refuse(file: &str, why: &dyn std::fmt::Display) -> PredictError {
    PredictError::FixInput(format!("the embeddings {file}: {why}"))
}
