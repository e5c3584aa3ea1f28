//! Whether an image is one that the hosted model would not give: CLIP's image side looks at it, and what it sees is held
//! against 17 concepts and, more strictly where one of them is near, 3 that call for special care. The reference is diffusers'
//! `StableDiffusionSafetyChecker` behind `CLIPImageProcessor`; the concepts are rows of numbers in the weights. Refuses to
//! know what becomes of such an image.

use prediction::PredictError;

use super::config::VisionConfig;
use super::image::Picture;
use super::reader::Reader;
use super::vision::VisionEncoder;
use super::vision_image;

/// Rows of the reference's two tables.
const CONCEPTS: usize = 17;
const SPECIAL: usize = 3;
/// How much nearer every concept counts once one of special care is near.
const CARE: f32 = 0.01;
/// Scores are rounded to so many parts of 1 before they are compared.
const PARTS: f32 = 1000.0;

pub struct Checker {
    encoder: VisionEncoder,
    special: Concepts,
    concepts: Concepts,
}

/// Directions among the projected images, and how near to each is too near.
struct Concepts {
    /// Of length 1.
    rows: Vec<Vec<f32>>,
    /// Cosines.
    thresholds: Vec<f32>,
}

/// By how much an image is nearer to each concept than it may be: a cosine, rounded to thousandths.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    pub special: Vec<f32>,
    pub concepts: Vec<f32>,
}

impl Checker {
    pub(super) fn load(config: VisionConfig, reader: &Reader) -> Result<Self, PredictError> {
        let features = config.projection;
        let concepts = |name: &str, count: usize| {
            let rows = reader.values(name, &[count, features])?;
            let thresholds = reader.values(&format!("{name}_weights"), &[count])?;
            Ok::<_, PredictError>(Concepts { rows: rows.chunks_exact(features).map(unit).collect(), thresholds })
        };
        Ok(Self {
            special: concepts("special_care_embeds", SPECIAL)?,
            concepts: concepts("concept_embeds", CONCEPTS)?,
            encoder: VisionEncoder::load(config, reader)?,
        })
    }

    pub fn is_flagged(&self, picture: &Picture) -> Result<bool, PredictError> {
        Ok(self.scores(&self.look(picture)?).flagged())
    }

    /// What the net sees: a row among CLIP's projected ones.
    pub fn look(&self, picture: &Picture) -> Result<Vec<f32>, PredictError> {
        let pixels = vision_image::pixels(picture, self.encoder.config().image_size);
        let look = || self.encoder.forward(&pixels)?.flatten_all()?.to_vec1::<f32>();
        let seen = look().map_err(|error| runner::device::fault(&error))?;
        // What is no number is nearer to nothing, and would let everything pass.
        match seen.iter().all(|value| value.is_finite()) {
            true => Ok(seen),
            false => Err(PredictError::Operator(
                "the safety checker sees no numbers: its weights are broken, or too large for their precision".into(),
            )),
        }
    }

    pub fn scores(&self, seen: &[f32]) -> Scores {
        let seen = unit(seen);
        let mut nearer = 0.0;
        // One that is near counts for those behind it too, as the reference's loop has it.
        let special = self.special.beyond(&seen).map(|beyond| {
            let score = rounded(beyond + nearer);
            if score > 0.0 {
                nearer = CARE;
            }
            score
        });
        let special = special.collect();
        Scores { special, concepts: self.concepts.beyond(&seen).map(|beyond| rounded(beyond + nearer)).collect() }
    }
}

impl Concepts {
    /// Cosines less their thresholds.
    fn beyond<'a>(&'a self, seen: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        let cosine = move |row: &Vec<f32>| row.iter().zip(seen).map(|(a, b)| a * b).sum::<f32>();
        self.rows.iter().zip(&self.thresholds).map(move |(row, threshold)| cosine(row) - threshold)
    }
}

impl Scores {
    pub fn flagged(&self) -> bool {
        self.concepts.iter().any(|score| *score > 0.0)
    }
}

fn rounded(score: f32) -> f32 {
    (score * PARTS).round_ties_even() / PARTS
}

/// Of length 1.
fn unit(row: &[f32]) -> Vec<f32> {
    let length = row.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-12);
    row.iter().map(|value| value / length).collect()
}
