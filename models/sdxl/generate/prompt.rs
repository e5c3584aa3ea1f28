//! A prompt as the UNet is told it: both encoders' states side by side and the second's pooled text. Refuses to know
//! guidance and images.

use candle_core::{D, Tensor};
use prediction::PredictError;

use super::device_error;
use crate::sdxl::clip::TextEncoder;
use crate::sdxl::tokenizer::Tokenizer;
use crate::sdxl::weights::{Component, Load, Opened};

/// The tokenizers and encoders of a pipeline: two of a base, the second alone of a refiner.
pub struct Texts {
    readers: Vec<Reader>,
    /// An absent negative prompt is zeros, not the empty text.
    zero_negative: bool,
}

pub struct Reader {
    pub tokenizer: Tokenizer,
    pub encoder: TextEncoder,
    /// `[tokens, hidden]`: the vectors of the tokens that were added to the tokenizer, in their order.
    pub learned: Option<Tensor>,
}

/// One text as read.
pub struct Read {
    /// `[1, 77, features of all encoders]`
    pub embeds: Tensor,
    /// `[1, features]`
    pub pooled: Tensor,
    /// 77 of each tokenizer.
    pub ids: Vec<Vec<u32>>,
    /// The end of the text that did not fit in.
    pub cut: Option<String>,
}

impl Texts {
    pub fn open(opened: &Opened, load: Load) -> Result<Self, PredictError> {
        let mut readers = Vec::new();
        for (component, folder) in [(Component::Text1, "tokenizer"), (Component::Text2, "tokenizer_2")] {
            if let Some(encoder) = opened.text_encoder(component, load)? {
                let tokenizer = Tokenizer::read(&|name| opened.file(&format!("{folder}/{name}")))
                    .map_err(|why| PredictError::Operator(format!("{}/{folder}: {why}", opened.path().display())))?;
                readers.push(Reader { tokenizer, encoder, learned: None });
            }
        }
        let index = opened.file("model_index.json")?.unwrap_or_default();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
        Ok(Self { readers, zero_negative: index["force_zeros_for_empty_prompt"].as_bool().unwrap_or(true) })
    }

    pub fn readers_mut(&mut self) -> &mut [Reader] {
        &mut self.readers
    }

    pub fn read(&self, text: &str) -> Result<Read, PredictError> {
        let (mut states, mut all_ids, mut pooled, mut cut) = (Vec::new(), Vec::new(), None, None);
        for Reader { tokenizer, encoder, learned } in &self.readers {
            let ids = tokenizer.encode(text)?;
            let said = encoder.forward_with(std::slice::from_ref(&ids.ids), learned.as_ref()).map_err(device_error)?;
            states.push(said.hidden);
            pooled = said.pooled.or(pooled);
            cut = cut.or(ids.cut);
            all_ids.push(ids.ids);
        }
        let embeds = Tensor::cat(&states, D::Minus1).map_err(device_error)?;
        let pooled = pooled.ok_or_else(|| PredictError::Operator("no text encoder has a projection".into()))?;
        Ok(Read { embeds, pooled, ids: all_ids, cut })
    }

    /// What guidance leads away from.
    pub fn read_negative(&self, text: Option<&str>, positive: &Read) -> Result<Read, PredictError> {
        match text {
            None if self.zero_negative => Ok(Read {
                embeds: positive.embeds.zeros_like().map_err(device_error)?,
                pooled: positive.pooled.zeros_like().map_err(device_error)?,
                ids: Vec::new(),
                cut: None,
            }),
            text => self.read(text.unwrap_or_default()),
        }
    }
}
