//! Trained weights that a prediction asks for, in the order of things: read and, as far as headers tell, refused when the
//! prediction comes; the prompt in their words; the nets read again with them. Refuses to know what they are made of.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use prediction::PredictError;
use schema::Uri;

use super::generate::Nets;
use super::trained::Trained;
use super::weights::{Load, Opened};

/// Of a file, hashed at once.
const PIECE_BYTES: usize = 1 << 20;

/// Trained weights and how much of them.
#[derive(Clone)]
pub struct Change {
    /// The same for the same file and scale: nets that were changed so already are not read again.
    pub key: u64,
    trained: Arc<Trained>,
    scale: f64,
}

impl Change {
    /// Reads a fetched file, and looks whether these weights have what it changes.
    pub fn open(uri: &Uri, scale: f64, opened: &Opened) -> Result<Self, PredictError> {
        let path = uri.path().ok_or_else(|| refuse(&format_args!("{} was not fetched", uri.0)))?;
        let trained = Trained::open(&path).map_err(|error| refuse(&error.text()))?;
        trained.fit(opened, scale).map_err(|error| refuse(&error.text()))?;
        let key = key(&path, scale).map_err(|error| refuse(&error))?;
        Ok(Self { key, trained: Arc::new(trained), scale })
    }

    /// The nets with it.
    pub fn nets(&self, opened: &Opened, load: Load) -> Result<Nets, PredictError> {
        self.trained.nets(opened, load, self.scale)
    }

    /// A prompt as it is read, and what the logs say of that.
    pub fn prompt(&self, prompt: &str) -> Result<(String, String), PredictError> {
        let read = self.trained.words.replaced(prompt).map_err(|error| refuse(&error.text()))?;
        let mut note = String::new();
        if read != prompt {
            note = format!("Prompt: {read}\n");
        }
        let taught = self.trained.taught();
        if !taught.is_empty() && !taught.iter().any(|word| read.contains(word)) {
            let words = taught.join(" ");
            note += &format!("The prompt has none of the words that replicate_weights brings: {words}\n");
        }
        Ok((read, note))
    }
}

fn key(path: &Path, scale: f64) -> std::io::Result<u64> {
    let (mut file, mut piece, mut hasher) = (File::open(path)?, vec![0; PIECE_BYTES], DefaultHasher::new());
    loop {
        match file.read(&mut piece)? {
            0 => break,
            count => hasher.write(&piece[..count]),
        }
    }
    hasher.write_u64(scale.to_bits());
    Ok(hasher.finish())
}

fn refuse(why: &dyn std::fmt::Display) -> PredictError {
    PredictError::FixInput(format!("replicate_weights: {why}"))
}
