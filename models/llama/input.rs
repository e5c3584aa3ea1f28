//! What a caller may ask of a Llama: the hosted model's names in the hosted order, and what they come to.

use prediction::{Map, PredictError};

use super::sampler::Settings;

schema::input! {
    pub struct Input {
        prompt: String { description: "Prompt to send to the model." }
        system_prompt: Option<String> {
            description: "System prompt: how the model is to behave. Left out, the model's own chat template decides.",
        }
        max_tokens: i64 {
            description: "Maximum number of tokens to generate. A word is about 1.3 tokens. The text ends earlier \
                where the context is full.",
            default: 512, min: 1,
        }
        min_tokens: Option<i64> {
            description: "Minimum number of tokens to generate: until then the model cannot end. To disable, set to -1.",
            min: -1,
        }
        temperature: f64 {
            description: "Randomness: 0 always takes the likeliest token, values above 1 are wild.",
            default: 0.7, min: 0.0, max: 5.0,
        }
        top_p: f64 {
            description: "Draws from the likeliest tokens that together hold this share of the probability.",
            default: 0.95, min: 0.0, max: 1.0,
        }
        top_k: i64 {
            description: "Draws from this many likeliest tokens. 0 or less: no such limit.",
            default: 0, min: -1,
        }
        stop_sequences: Option<String> {
            description: "Comma-separated texts. The output ends before the first of them; special tokens may be named. \
                The model's own end tokens always end it.",
        }
        length_penalty: f64 {
            description: "Accepted for compatibility; it weighs beams against each other, and there is one.",
            default: 1.0, min: 0.0, max: 5.0,
        }
        presence_penalty: f64 {
            description: "Taken off the score of every token that the output already has: above 0 it repeats less.",
            default: 0.0,
        }
        seed: Option<i64> {
            description: "Random seed: the same seed and input give the same output. Leave out, or 0, for a random one.",
        }
        prompt_template: Option<String> {
            description: "Template for the prompt in place of the model's own chat template. Must contain {prompt}, may \
                contain {system_prompt}; write {{ and }} for braces.",
            min_len: 1,
        }
        log_performance_metrics: bool { description: "Write timings to the logs.", default: false }
        max_new_tokens: Option<i64> { description: "Another name for max_tokens.", min: 1 }
        min_new_tokens: Option<i64> { description: "Another name for min_tokens.", min: -1 }
        frequency_penalty: f64 {
            description: "Taken off the score of a token once for every time that the output already has it.",
            default: 0.0,
        }
        repetition_penalty: f64 {
            description: "Divides the score of every token that the prompt or the output already has. 1 is off.",
            default: 1.0, min: 0.01,
        }
    }
}

/// An input as the pipeline wants it: aliases settled, -1 and null gone.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub prompt: String,
    pub system: Option<String>,
    pub template: Option<String>,
    pub max_tokens: usize,
    pub stops: Vec<String>,
    pub sampling: Settings,
    pub log_performance: bool,
}

impl Asked {
    /// `defaults` are the deployment's, in place of the model's own. `seed` serves where the input names none.
    pub fn read(mut given: Map, defaults: &Map, seed: u64) -> Result<Self, PredictError> {
        for (name, value) in defaults {
            if given.get(name).is_none_or(serde_json::Value::is_null) {
                given.insert(name.clone(), value.clone());
            }
        }
        let input =
            Input::parse(&given).map_err(|errors| PredictError::FixInput(schema::detail(&errors).trim_end().into()))?;
        if input.prompt.is_empty() {
            return Err(PredictError::FixInput("A prompt is required (E1001)".into()));
        }
        let max_tokens = input.max_tokens(defaults)?;
        let min_tokens = input.min_tokens()?;
        let count = |n: i64| usize::try_from(n).unwrap_or(0);
        let sampling = Settings {
            temperature: input.temperature,
            top_k: count(input.top_k),
            top_p: input.top_p,
            min_tokens: count(min_tokens),
            presence_penalty: input.presence_penalty as f32,
            frequency_penalty: input.frequency_penalty as f32,
            repetition_penalty: input.repetition_penalty as f32,
            seed: input.seed.filter(|&seed| seed != 0).map_or(seed, |seed| seed as u64),
        };
        Ok(Self {
            prompt: input.prompt,
            system: input.system_prompt,
            template: input.prompt_template,
            max_tokens: count(max_tokens),
            stops: input.stop_sequences.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect(),
            sampling,
            log_performance: input.log_performance_metrics,
        })
    }
}

impl Input {
    /// The alias wins over a default, and contradicts anything else.
    fn max_tokens(&self, defaults: &Map) -> Result<i64, PredictError> {
        let usual = defaults.get("max_tokens").and_then(serde_json::Value::as_i64).unwrap_or(512);
        match self.max_new_tokens {
            Some(alias) if alias != self.max_tokens && self.max_tokens != usual => {
                Err(PredictError::FixInput(format!(
                    "max_tokens is {} and max_new_tokens is {alias}: they mean the same; give one of them (E1102)",
                    self.max_tokens
                )))
            }
            alias => Ok(alias.unwrap_or(self.max_tokens)),
        }
    }

    fn min_tokens(&self) -> Result<i64, PredictError> {
        match (self.min_tokens, self.min_new_tokens) {
            (Some(min), Some(alias)) if min != alias => Err(PredictError::FixInput(format!(
                "min_tokens is {min} and min_new_tokens is {alias}: they mean the same; give one of them (E1101)"
            ))),
            (min, alias) => Ok(min.or(alias).unwrap_or(-1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(given: Value, defaults: Value) -> Result<Asked, PredictError> {
        Asked::read(given.as_object().unwrap().clone(), defaults.as_object().unwrap(), 77)
    }

    fn asked(given: Value) -> Asked {
        read(given, json!({})).unwrap()
    }

    #[test]
    fn names_come_in_the_hosted_order() {
        let names: Vec<_> = Input::fields().iter().map(|field| field.name).collect();
        let hosted = "prompt system_prompt max_tokens min_tokens temperature top_p top_k stop_sequences length_penalty \
            presence_penalty seed prompt_template log_performance_metrics max_new_tokens min_new_tokens";
        assert_eq!(names[..15].join(" "), hosted);
        assert_eq!(names[15..], ["frequency_penalty", "repetition_penalty"]);
    }

    #[test]
    fn defaults_are_the_hosted_models() {
        let input = asked(json!({"prompt": "Hi"}));
        assert_eq!((input.max_tokens, input.sampling.top_k, input.sampling.min_tokens), (512, 0, 0));
        assert_eq!((input.sampling.temperature, input.sampling.top_p), (0.7, 0.95));
        assert_eq!((input.system, input.template, input.stops), (None, None, vec![]));
    }

    #[test]
    fn a_falsy_seed_is_the_jobs() {
        assert_eq!(asked(json!({"prompt": "Hi"})).sampling.seed, 77);
        assert_eq!(asked(json!({"prompt": "Hi", "seed": 0})).sampling.seed, 77);
        assert_eq!(asked(json!({"prompt": "Hi", "seed": null})).sampling.seed, 77);
        assert_eq!(asked(json!({"prompt": "Hi", "seed": 5})).sampling.seed, 5);
    }

    #[test]
    fn a_deployments_defaults_stand_in_for_the_models() {
        let defaults = json!({"temperature": 0.0, "max_tokens": 9, "system_prompt": "Yo"});
        let input = read(json!({"prompt": "Hi", "max_tokens": 3}), defaults.clone()).unwrap();
        assert_eq!((input.sampling.temperature, input.max_tokens, input.system.as_deref()), (0.0, 3, Some("Yo")));
        assert_eq!(read(json!({"prompt": "Hi", "max_new_tokens": 4}), defaults).unwrap().max_tokens, 4);
    }

    #[test]
    fn aliases_mean_the_same() {
        assert_eq!(asked(json!({"prompt": "Hi", "max_new_tokens": 4})).max_tokens, 4);
        assert_eq!(asked(json!({"prompt": "Hi", "max_new_tokens": 4, "max_tokens": 4})).max_tokens, 4);
        assert_eq!(asked(json!({"prompt": "Hi", "min_new_tokens": 4})).sampling.min_tokens, 4);
        assert_eq!(asked(json!({"prompt": "Hi", "min_tokens": -1})).sampling.min_tokens, 0);
    }

    #[test]
    fn stop_sequences_are_split_at_commas() {
        assert_eq!(asked(json!({"prompt": "Hi", "stop_sequences": "</s>, User:"})).stops, ["</s>", " User:"]);
    }

    #[test]
    fn what_contradicts_itself_is_refused_in_the_hosted_codes() {
        for (given, code) in [
            (json!({"prompt": ""}), "(E1001)"),
            (json!({"prompt": "Hi", "max_tokens": 3, "max_new_tokens": 4}), "(E1102)"),
            (json!({"prompt": "Hi", "min_tokens": 3, "min_new_tokens": 4}), "(E1101)"),
        ] {
            let why = read(given.clone(), json!({})).unwrap_err();
            assert!(matches!(&why, PredictError::FixInput(text) if text.ends_with(code)), "{given}: {why}");
        }
    }
}
