//! What `replicate_weights` may be: the tar that the hosted trainer gives (cog-sdxl's: `lora.safetensors` or
//! `unet.safetensors`, `embeddings.pti`, `special_params.json`), or one safetensors file with a LoRA, a UNet or learned
//! words. Tells them apart, refuses what fits these weights not, and changes nets while they are read. Nothing is unpacked:
//! members are mapped where they lie in the archive. Refuses to know predictions.

use std::path::Path;

use prediction::PredictError;
use runner::SafeTensors;
use runner::archive::{self, Member};

use super::generate::{Nets, learned::Learned};
use super::lora::Lora;
use super::weights::{Adapter, Load, Opened};
use super::whole::Whole;
use super::words::Words;

/// The members that are read; others, such as samples and checkpoints, are passed over.
const LORA: &str = "lora.safetensors";
const UNET: &str = "unet.safetensors";
const EMBEDDINGS: &str = "embeddings.pti";
const WORDS: &str = "special_params.json";
/// Of the words' table, which has one line in the trainer's.
const MAX_WORDS_BYTES: u64 = 64 << 10;
/// What old tools call the learned vectors of a model with one text encoder.
const OF_ONE_ENCODER: &str = "emb_params";
/// Names that a refusal lists.
const LISTED: usize = 8;

#[derive(Default)]
pub struct Trained {
    nets: Option<Change>,
    learned: Option<Learned>,
    pub words: Words,
}

enum Change {
    LowRank(Lora),
    Unet(Whole),
}

impl Trained {
    /// A tar or a safetensors file, by its content.
    pub fn open(path: &Path) -> Result<Self, PredictError> {
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let unreadable = |error: std::io::Error| PredictError::FixInput(format!("{file}: {error}"));
        if archive::is_tar(path).map_err(unreadable)? {
            return Self::of_tar(path);
        }
        let size = std::fs::metadata(path).map_err(unreadable)?.len();
        // By its own name: where it lies is nobody's business.
        Self::default().with(&file, SafeTensors::open_part(path, 0..size, &file).map_err(fixable)?)
    }

    fn of_tar(path: &Path) -> Result<Self, PredictError> {
        let members = archive::members(path).map_err(fixable)?;
        let find = |name: &str| members.iter().find(|member| member.name == name);
        let open = |member: &Member| SafeTensors::open_part(path, member.range.clone(), &member.name).map_err(fixable);
        let mut this = Self::default();
        // A whole UNet comes first, as in the reference.
        for name in [find(UNET).map_or(LORA, |_| UNET), EMBEDDINGS] {
            if let Some(member) = find(name) {
                this = this.with(name, open(member)?)?;
            }
        }
        if this.nets.is_none() && this.learned.is_none() {
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).take(LISTED).collect();
            return Err(PredictError::FixInput(format!(
                "the archive has none of {LORA}, {UNET} and {EMBEDDINGS}: of {} files the first are {names:?}",
                members.len()
            )));
        }
        if let Some(member) = find(WORDS) {
            this.words = Words::read(WORDS, &member.read(path, MAX_WORDS_BYTES).map_err(fixable)?)?;
        }
        Ok(this)
    }

    /// With what a file of tensors holds.
    fn with(mut self, file: &str, tensors: SafeTensors) -> Result<Self, PredictError> {
        if tensors.has(OF_ONE_ENCODER) {
            let why = format!("the embeddings {file}: {OF_ONE_ENCODER} is for one text encoder; an SDXL has two");
            return Err(PredictError::FixInput(why));
        }
        if Learned::is_in(&tensors) {
            self.learned = Some(Learned::read(file, &tensors)?);
        } else if Whole::is_in(&tensors) {
            self.nets = Some(Change::Unet(Whole::new(file, tensors)));
        } else {
            self.nets = Some(Change::LowRank(Lora::read(file, &tensors)?));
        }
        Ok(self)
    }

    /// What it changes weights of these shapes with; refuses what is for another architecture. From headers alone.
    pub fn fit(&self, opened: &Opened, scale: f64) -> Result<Option<Box<dyn Adapter + '_>>, PredictError> {
        if let Some(learned) = &self.learned {
            learned.fit(opened)?;
        }
        match &self.nets {
            None => Ok(None),
            Some(Change::LowRank(lora)) => Ok(Some(Box::new(lora.fit(opened, scale)?))),
            Some(Change::Unet(whole)) => {
                whole.fit(opened)?;
                Ok(Some(Box::new(whole)))
            }
        }
    }

    /// Nets with it.
    pub fn nets(&self, opened: &Opened, load: Load, scale: f64) -> Result<Nets, PredictError> {
        let adapter = self.fit(opened, scale)?;
        let mut nets = Nets::open(opened, Load { adapter: adapter.as_deref(), ..load }, None)?;
        if let Some(learned) = &self.learned {
            learned.teach(&mut nets.texts, load.device)?;
        }
        Ok(nets)
    }

    /// The words that it brings, for people.
    pub fn taught(&self) -> Vec<String> {
        self.learned.as_ref().map(Learned::words).unwrap_or_default()
    }
}

/// Whose file it is, is who can mend it.
fn fixable(error: PredictError) -> PredictError {
    PredictError::FixInput(error.text().to_owned())
}
