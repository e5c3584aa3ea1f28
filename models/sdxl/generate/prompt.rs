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

struct Reader {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
    /// `[tokens, hidden]`: the vectors of the tokens that were added to the tokenizer, in their order.
    learned: Option<Tensor>,
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
    /// `vocabulary` is OpenAI's file, for checkpoints that come without tokenizers.
    pub fn open(opened: &Opened, load: Load, vocabulary: Option<&[u8]>) -> Result<Self, PredictError> {
        let mut readers = Vec::new();
        // The second encoder was trained with "!" behind the text.
        let all = [(Component::Text1, "tokenizer", None), (Component::Text2, "tokenizer_2", Some("!"))];
        for (component, folder, pad) in all {
            let Some(encoder) = opened.text_encoder(component, load)? else { continue };
            let file = |name: &str| opened.file(&format!("{folder}/{name}"));
            let wrong = |why: &dyn std::fmt::Display| {
                PredictError::Operator(format!("{}, {folder}: {why}", opened.path().display()))
            };
            let own = file("vocab.json")?.is_some() || file("tokenizer.json")?.is_some();
            let tokenizer = match vocabulary.filter(|_| !own) {
                Some(vocabulary) => Tokenizer::of_openai(vocabulary, pad).map_err(|why| wrong(&why))?,
                None => Tokenizer::read(&file).map_err(|why| wrong(&why))?,
            };
            readers.push(Reader { tokenizer, encoder, learned: None });
        }
        let index = opened.file("model_index.json")?.unwrap_or_default();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
        Ok(Self { readers, zero_negative: index["force_zeros_for_empty_prompt"].as_bool().unwrap_or(true) })
    }

    /// Makes each of these words a token of its own, with a row of `vectors`: for every encoder `[words, hidden]`.
    pub fn learn(&mut self, words: &[String], vectors: &[Tensor]) -> Result<(), PredictError> {
        for (Reader { tokenizer, encoder, learned }, vectors) in self.readers.iter_mut().zip(vectors) {
            let (hidden, vocabulary) = (encoder.config().tower.hidden, encoder.config().vocabulary);
            if vectors.dims() != [words.len(), hidden] || learned.is_some() || tokenizer.size() != vocabulary {
                return Err(PredictError::FixInput(format!(
                    "vectors of {:?}; {} words of {hidden} features, once, are what this encoder learns",
                    vectors.dims(),
                    words.len()
                )));
            }
            words.iter().try_for_each(|word| tokenizer.add(word).map(|_| ()))?;
            *learned = Some(vectors.clone());
        }
        Ok(())
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
