//! A LoRA that a prediction asks for, in the order of things: read and, as far as headers tell, refused when the prediction
//! comes; added when the nets are read again. Refuses to know how it is added.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use prediction::PredictError;
use schema::Uri;

use super::generate::Nets;
use super::lora::Lora;
use super::weights::{Load, Opened};

/// A LoRA and how much of it.
#[derive(Clone)]
pub struct Change {
    /// The same for the same file and scale: nets that were changed so already are not read again.
    pub key: u64,
    lora: Arc<Lora>,
    scale: f64,
}

impl Change {
    /// Reads a fetched file, and looks whether these weights have what it changes.
    pub fn open(uri: &Uri, scale: f64, opened: &Opened) -> Result<Self, PredictError> {
        let refuse = |why: String| PredictError::FixInput(format!("replicate_weights: {why}"));
        let path = uri.path().ok_or_else(|| refuse(format!("{} was not fetched", uri.0)))?;
        let lora = Lora::open(&path).map_err(|error| refuse(error.text().to_owned()))?;
        lora.fit(opened, scale).map_err(|error| refuse(error.text().to_owned()))?;
        let bytes = std::fs::read(&path).map_err(|error| refuse(error.to_string()))?;
        let mut hasher = DefaultHasher::new();
        (bytes, scale.to_bits()).hash(&mut hasher);
        let key = hasher.finish();
        Ok(Self { key, lora: Arc::new(lora), scale })
    }

    /// The nets with it.
    pub fn nets(&self, opened: &Opened, load: Load) -> Result<Nets, PredictError> {
        let fitted = self.lora.fit(opened, self.scale)?;
        Nets::open(opened, Load { adapter: Some(&fitted), ..load }, None)
    }
}
