//! What a caller may ask of a Whisper: the hosted model's names in the hosted order, our own behind them, and what they
//! come to.

use prediction::{Map, PredictError};
use schema::Uri;
use serde_json::{Value, json};

use super::languages::{self, CHOICES};

/// Windows of one prediction that are decoded together at most.
pub const MAX_BATCH: i64 = 16;
const MAX_BEAMS: i64 = 16;
/// Beams where patience is asked for and their number is not: the reference's own default on the command line.
const USUAL_BEAMS: usize = 5;
/// No temperature is tried above this one.
const LAST_TEMPERATURE: f64 = 1.0;
const MAX_TEMPERATURES: usize = 101;

schema::input! {
    pub struct Input {
        audio: Uri { description: "Audio file" }
        transcription: String {
            description: "Choose the format for the transcription",
            default: "plain text", choices: &["plain text", "srt", "vtt"],
        }
        translate: bool { description: "Translate the text to English when set to True", default: false }
        language: String {
            description: "Language spoken in the audio, specify 'auto' for automatic language detection",
            default: "auto", choices: CHOICES,
        }
        temperature: f64 { description: "temperature to use for sampling", default: 0 }
        patience: Option<f64> {
            description: "optional patience value to use in beam decoding, as in https://arxiv.org/abs/2204.05424, the \
                default (1.0) is equivalent to conventional beam search",
        }
        suppress_tokens: String {
            description: "comma-separated list of token ids to suppress during sampling; '-1' will suppress most special \
                characters except common punctuations",
            default: "-1",
        }
        initial_prompt: Option<String> {
            description: "optional text to provide as a prompt for the first window.",
        }
        condition_on_previous_text: bool {
            description: "if True, provide the previous output of the model as a prompt for the next window; disabling \
                may make the text inconsistent across windows, but the model becomes less prone to getting stuck in a \
                failure loop",
            default: true,
        }
        temperature_increment_on_fallback: f64 {
            description: "temperature to increase when falling back when the decoding fails to meet either of the \
                thresholds below",
            default: 0.2,
        }
        compression_ratio_threshold: f64 {
            description: "if the gzip compression ratio is higher than this value, treat the decoding as failed",
            default: 2.4,
        }
        logprob_threshold: f64 {
            description: "if the average log probability is lower than this value, treat the decoding as failed",
            default: -1.0,
        }
        no_speech_threshold: f64 {
            description: "if the probability of the <|nospeech|> token is higher than this value AND the decoding has \
                failed due to `logprob_threshold`, consider the segment as silence",
            default: 0.6,
        }
        model: Option<String> {
            description: "A size, as older versions took it. This deployment runs the one it has; the logs say so where \
                another was asked for.",
        }
        word_timestamps: bool { description: "Say when each word begins and ends.", default: false }
        vad_filter: bool {
            description: "Leave out what is no voice before the model hears it.",
            default: false,
        }
        batch_size: i64 {
            description: "Above 1, long audio is cut at its silences and so many windows are decoded together: faster, \
                and without the text before as a prompt.",
            default: 1, min: 1, max: MAX_BATCH,
        }
        beam_size: Option<i64> {
            description: "Beams of a search at temperature 0, in place of taking the likeliest token.",
            min: 1, max: MAX_BEAMS,
        }
        best_of: Option<i64> {
            description: "Samples above temperature 0, of which the likeliest is taken.",
            min: 1, max: MAX_BEAMS,
        }
        length_penalty: Option<f64> {
            description: "How much longer texts are preferred among beams or samples, from 0 to 1. Left out: the mean \
                over tokens.",
            min: 0.0, max: 1.0,
        }
        seed: Option<i64> { description: "Random seed of what is sampled above temperature 0." }
    }
}

/// What the output is, as JSON Schema.
pub fn output() -> Value {
    let text = |title: &str| json!({ "title": title, "type": "string" });
    let optional = |title: &str| json!({ "title": title, "type": "string", "nullable": true });
    let file = |title: &str| json!({ "title": title, "type": "string", "format": "uri", "nullable": true });
    json!({
        "type": "object",
        "required": ["detected_language", "transcription", "segments"],
        "title": "Output",
        (schema::READ_AS): "transcription",
        "properties": {
            "detected_language": text("Detected Language"),
            "transcription": text("Transcription"),
            "segments": { "title": "Segments" },
            "translation": optional("Translation"),
            "txt_file": file("Txt File"),
            "srt_file": file("Srt File"),
            "vtt_file": file("Vtt File"),
        },
    })
}

/// How the text is written in `transcription`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Plain,
    Srt,
    Vtt,
}

/// An input as the pipeline wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub audio: Uri,
    pub format: Format,
    pub translate: bool,
    /// None: to be detected.
    pub language: Option<usize>,
    /// Tried one after the other.
    pub temperatures: Vec<f32>,
    /// -1 stands for everything that is no speech.
    pub suppress: Vec<i64>,
    pub initial_prompt: Option<String>,
    pub condition: bool,
    pub compression_ratio_threshold: f64,
    pub logprob_threshold: f64,
    pub no_speech_threshold: f64,
    pub model: Option<String>,
    pub words: bool,
    pub skip_silence: bool,
    pub batch: usize,
    pub beams: Option<usize>,
    pub patience: f64,
    pub best_of: usize,
    pub length_penalty: Option<f64>,
    pub seed: u64,
}

impl Asked {
    /// `defaults` are the deployment's, in place of the model's own. `seed` serves where the input names none.
    pub fn read(mut given: Map, defaults: &Map, seed: u64) -> Result<Self, PredictError> {
        for (name, value) in defaults {
            if given.get(name).is_none_or(Value::is_null) {
                given.insert(name.clone(), value.clone());
            }
        }
        let input =
            Input::parse(&given).map_err(|errors| PredictError::FixInput(schema::detail(&errors).trim_end().into()))?;
        let refuse = |why: String| Err(PredictError::FixInput(why));
        if input.temperature < 0.0 {
            return refuse(format!("temperature is {}; 0 or more", input.temperature));
        }
        if input.patience.is_some_and(|patience| patience <= 0.0) {
            return refuse(format!("patience is {}; above 0", input.patience.unwrap_or_default()));
        }
        let suppress = input.suppress_tokens.split(',').map(str::trim).filter(|part| !part.is_empty());
        let suppress = suppress.map(|part| {
            part.parse::<i64>().map_err(|_| {
                PredictError::FixInput(format!("suppress_tokens has {part:?}; token numbers with commas between them"))
            })
        });
        let beams = input.beam_size.map(|beams| beams as usize);
        Ok(Self {
            temperatures: temperatures(input.temperature, input.temperature_increment_on_fallback),
            suppress: suppress.collect::<Result<_, _>>()?,
            audio: input.audio,
            format: match input.transcription.as_str() {
                "srt" => Format::Srt,
                "vtt" => Format::Vtt,
                _ => Format::Plain,
            },
            translate: input.translate,
            language: languages::index(&input.language),
            initial_prompt: input.initial_prompt.filter(|prompt| !prompt.trim().is_empty()),
            condition: input.condition_on_previous_text,
            compression_ratio_threshold: input.compression_ratio_threshold,
            logprob_threshold: input.logprob_threshold,
            no_speech_threshold: input.no_speech_threshold,
            model: input.model,
            words: input.word_timestamps,
            skip_silence: input.vad_filter,
            batch: input.batch_size as usize,
            beams: beams.or(input.patience.map(|_| USUAL_BEAMS)),
            patience: input.patience.unwrap_or(1.0),
            best_of: input.best_of.unwrap_or(1) as usize,
            length_penalty: input.length_penalty,
            seed: input.seed.map_or(seed, |seed| seed as u64),
        })
    }
}

/// From the first one up to 1, in steps.
fn temperatures(first: f64, step: f64) -> Vec<f32> {
    let steps = if step > 0.0 { ((LAST_TEMPERATURE + 1e-6 - first) / step).max(0.0) as usize } else { 0 };
    (0..=steps.min(MAX_TEMPERATURES - 1)).map(|n| (first + n as f64 * step) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: Value) -> Result<Asked, PredictError> {
        let mut input = json!({"audio": "file:///a.wav"});
        input.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
        Asked::read(input.as_object().unwrap().clone(), &Map::new(), 77)
    }

    #[test]
    fn names_come_in_the_hosted_order_and_ours_behind_them() {
        let names: Vec<_> = Input::fields().iter().map(|field| field.name).collect();
        let hosted = "audio transcription translate language temperature patience suppress_tokens initial_prompt \
            condition_on_previous_text temperature_increment_on_fallback compression_ratio_threshold logprob_threshold \
            no_speech_threshold";
        assert_eq!(names[..13].join(" "), hosted);
        assert_eq!(names[13], "model");
    }

    #[test]
    fn defaults_are_the_hosted_models() {
        let asked = read(json!({})).unwrap();
        assert_eq!(asked.temperatures, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!((asked.language, asked.beams, asked.best_of, asked.suppress), (None, None, 1, vec![-1]));
        assert_eq!((asked.compression_ratio_threshold, asked.logprob_threshold), (2.4, -1.0));
        assert_eq!((asked.no_speech_threshold, asked.seed, asked.condition), (0.6, 77, true));
    }

    #[test]
    fn temperatures_end_at_one_and_without_a_step_there_is_one() {
        assert_eq!(read(json!({"temperature": 0.5})).unwrap().temperatures, [0.5, 0.7, 0.9]);
        assert_eq!(read(json!({"temperature_increment_on_fallback": 0})).unwrap().temperatures, [0.0]);
        assert_eq!(read(json!({"temperature": 1.5})).unwrap().temperatures, [1.5]);
    }

    #[test]
    fn patience_alone_asks_for_a_search() {
        let asked = read(json!({"patience": 2.0})).unwrap();
        assert_eq!((asked.beams, asked.patience), (Some(5), 2.0));
        assert_eq!(read(json!({"language": "Mandarin"})).unwrap().language, languages::index("zh"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_field_and_value() {
        for (given, expected) in [
            (json!({"temperature": -0.5}), "temperature is -0.5; 0 or more"),
            (json!({"patience": 0}), "patience is 0; above 0"),
            (json!({"suppress_tokens": "1,x"}), "suppress_tokens has \"x\""),
            (json!({"language": "Klingon"}), "language"),
            (json!({"transcription": "doc"}), "transcription"),
            (json!({"batch_size": 0}), "batch_size"),
            (json!({"audio": null}), "audio"),
            (json!({"audio": 7}), "audio"),
        ] {
            let why = read(given.clone()).unwrap_err();
            assert!(matches!(&why, PredictError::FixInput(text) if text.contains(expected)), "{given}: {why}");
        }
    }
}
