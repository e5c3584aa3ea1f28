//! The shape of a Whisper, read from `config.json` or from the variables of a CTranslate2 file into one struct. Whatever
//! would change the arithmetic and is not done here is refused with a sentence.

use prediction::PredictError;
use runner::Ct2;
use serde_json::Value;

/// The largest number of any kind that a config may name: keeps products inside 64 bits.
const MAX_SIZE: u64 = 1 << 24;
/// Whisper's mel frames in a window; two of them become one position of the encoder.
pub const FRAMES: usize = 3000;
/// Heads are this wide in every Whisper there is.
const HEAD_DIM: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub mels: usize,
    pub hidden: usize,
    pub encoder_layers: usize,
    pub encoder_heads: usize,
    pub decoder_layers: usize,
    pub decoder_heads: usize,
    /// Positions of the encoder: half a window's frames.
    pub audio_context: usize,
    /// Positions of the decoder.
    pub text_context: usize,
    pub vocabulary: usize,
    /// (layer, head) of the decoder whose attention follows the audio, for word timestamps.
    pub alignment_heads: Vec<(usize, usize)>,
}

impl Config {
    /// `config` is a transformers folder's `config.json`, `generation` its `generation_config.json` where it has one.
    pub fn from_json(config: &Value, generation: Option<&Value>) -> Result<Self, PredictError> {
        json(config, generation).map_err(|why| PredictError::Operator(format!("config.json: {why}")))
    }

    /// `config` is the `config.json` beside CTranslate2's file; the shape is the variables'.
    pub fn from_ct2(file: &Ct2, config: &Value) -> Result<Self, PredictError> {
        if file.spec() != "WhisperSpec" {
            let why = format!("the file is a {}; this model runs WhisperSpec only", file.spec());
            return Err(PredictError::Operator(why));
        }
        let dims = |name: &str, dim: usize| {
            let variable = file.variable(name)?;
            variable.shape.get(dim).copied().ok_or_else(|| {
                PredictError::Operator(format!("variable {name} of shape {:?} has no dimension {dim}", variable.shape))
            })
        };
        let heads = |side: &str| {
            let name = format!("{side}/num_heads");
            match *file.variable(&name)?.bytes {
                [low, high] => Ok(usize::from(u16::from_le_bytes([low, high]))),
                [one] => Ok(usize::from(one)),
                ref other => Err(PredictError::Operator(format!("variable {name} has {} bytes", other.len()))),
            }
        };
        let layers =
            |side: &str| (0..).take_while(|n| file.has(&format!("{side}/layer_{n}/ffn/linear_0/weight"))).count();
        Self {
            mels: dims("encoder/conv1/weight", 1)?,
            hidden: dims("encoder/conv1/weight", 0)?,
            encoder_layers: layers("encoder"),
            encoder_heads: heads("encoder")?,
            decoder_layers: layers("decoder"),
            decoder_heads: heads("decoder")?,
            audio_context: dims("encoder/position_encodings/encodings", 0)?,
            text_context: dims("decoder/position_encodings/encodings", 0)?,
            vocabulary: dims("decoder/embeddings/weight", 0)?,
            alignment_heads: alignment(config),
        }
        .checked()
        .map_err(PredictError::Operator)
    }

    pub fn multilingual(&self) -> bool {
        self.vocabulary >= 51_865
    }

    /// What the reference takes where a file names no heads: those of the upper half of the layers.
    fn usual_alignment(&self) -> Vec<(usize, usize)> {
        let layers = self.decoder_layers / 2..self.decoder_layers;
        layers.flat_map(|layer| (0..self.decoder_heads).map(move |head| (layer, head))).collect()
    }

    fn checked(mut self) -> Result<Self, String> {
        for (name, size) in [
            ("num_mel_bins", self.mels),
            ("d_model", self.hidden),
            ("encoder_layers", self.encoder_layers),
            ("decoder_layers", self.decoder_layers),
            ("encoder_attention_heads", self.encoder_heads),
            ("decoder_attention_heads", self.decoder_heads),
            ("max_source_positions", self.audio_context),
            ("max_target_positions", self.text_context),
            ("vocab_size", self.vocabulary),
        ] {
            if size == 0 || size as u64 > MAX_SIZE {
                return Err(format!("{name} is {size}; 1 to {MAX_SIZE}"));
            }
        }
        for (name, heads) in [("encoder", self.encoder_heads), ("decoder", self.decoder_heads)] {
            if self.hidden != heads * HEAD_DIM {
                let Self { hidden, .. } = self;
                return Err(format!(
                    "{name}_attention_heads is {heads} for d_model {hidden}; heads of {HEAD_DIM} are run"
                ));
            }
        }
        if ![80, 128].contains(&self.mels) {
            return Err(format!("num_mel_bins is {}; 80 and 128 are run", self.mels));
        }
        if self.audio_context != FRAMES / 2 {
            return Err(format!("max_source_positions is {}; windows of {} are run", self.audio_context, FRAMES / 2));
        }
        if self.vocabulary < 51_864 {
            return Err(format!(
                "vocab_size is {}; Whisper's vocabularies have 51864 entries or more",
                self.vocabulary
            ));
        }
        if self.alignment_heads.is_empty() {
            self.alignment_heads = self.usual_alignment();
        }
        let (layers, heads) = (self.decoder_layers, self.decoder_heads);
        match self.alignment_heads.iter().find(|(layer, head)| *layer >= layers || *head >= heads) {
            Some(wrong) => Err(format!("alignment_heads has {wrong:?}; there are {layers} layers of {heads} heads")),
            None => Ok(self),
        }
    }
}

fn json(config: &Value, generation: Option<&Value>) -> Result<Config, String> {
    let named = config.pointer("/architectures/0").or(config.get("model_type")).and_then(Value::as_str).unwrap_or("");
    if !named.to_lowercase().starts_with("whisper") {
        return Err(format!("the architecture is {named:?}; this model runs Whisper only"));
    }
    let text = |name: &str| config.get(name).and_then(Value::as_str);
    if let Some(other) = text("activation_function").filter(|&name| name != "gelu") {
        return Err(format!("activation_function is {other}; gelu is run"));
    }
    if config.get("scale_embedding") == Some(&Value::Bool(true)) {
        return Err("scale_embedding is true; embeddings are taken as they are".into());
    }
    let integer = |name: &str| match config.get(name) {
        Some(value) => {
            let number = value.as_u64().filter(|&number| number <= MAX_SIZE);
            number.map(|number| number as usize).ok_or_else(|| format!("{name} is {value}; 1 to {MAX_SIZE}"))
        }
        None => Err(format!("{name} is missing")),
    };
    let hidden = integer("d_model")?;
    for name in ["encoder_ffn_dim", "decoder_ffn_dim"] {
        if let Ok(inner) = integer(name)
            && inner != 4 * hidden
        {
            return Err(format!("{name} is {inner}; four times d_model ({hidden}) is run"));
        }
    }
    Config {
        mels: integer("num_mel_bins")?,
        hidden,
        encoder_layers: integer("encoder_layers")?,
        encoder_heads: integer("encoder_attention_heads")?,
        decoder_layers: integer("decoder_layers")?,
        decoder_heads: integer("decoder_attention_heads")?,
        audio_context: integer("max_source_positions")?,
        text_context: integer("max_target_positions")?,
        vocabulary: integer("vocab_size")?,
        alignment_heads: generation.map(alignment).unwrap_or_default(),
    }
    .checked()
}

fn alignment(config: &Value) -> Vec<(usize, usize)> {
    let pair = |pair: &Value| Some((pair.get(0)?.as_u64()? as usize, pair.get(1)?.as_u64()? as usize));
    config.get("alignment_heads").and_then(Value::as_array).into_iter().flatten().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tiny(changes: Value) -> Result<Config, String> {
        let mut config = json!({
            "architectures": ["WhisperForConditionalGeneration"], "d_model": 384, "encoder_layers": 4,
            "decoder_layers": 4, "encoder_attention_heads": 6, "decoder_attention_heads": 6, "num_mel_bins": 80,
            "max_source_positions": 1500, "max_target_positions": 448, "vocab_size": 51864,
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        json(&config, Some(&json!({"alignment_heads": [[1, 0], [2, 5]]})))
    }

    #[test]
    fn a_transformers_config_is_read() {
        let config = tiny(json!({})).unwrap();
        assert_eq!((config.mels, config.hidden, config.decoder_heads), (80, 384, 6));
        assert_eq!(config.alignment_heads, [(1, 0), (2, 5)]);
        assert!(!config.multilingual() && tiny(json!({"vocab_size": 51866})).unwrap().multilingual());
    }

    #[test]
    fn what_is_not_run_is_refused_with_the_value() {
        for (changes, expected) in [
            (json!({"architectures": ["BartModel"]}), "the architecture is \"BartModel\""),
            (json!({"d_model": 400}), "encoder_attention_heads is 6 for d_model 400"),
            (json!({"num_mel_bins": 81}), "num_mel_bins is 81; 80 and 128"),
            (json!({"vocab_size": 1000}), "vocab_size is 1000"),
            (json!({"activation_function": "relu"}), "activation_function is relu"),
            (json!({"decoder_layers": 2}), "alignment_heads has (2, 5); there are 2 layers"),
            (json!({"encoder_ffn_dim": 5}), "encoder_ffn_dim is 5"),
            (json!({"encoder_layers": null}), "encoder_layers is null"),
        ] {
            let why = tiny(changes).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }
}
