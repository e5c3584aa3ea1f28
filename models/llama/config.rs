//! The shape of a Llama, read from `config.json` or from GGUF metadata into one struct. Whatever would change the
//! arithmetic and is not done here is refused with a sentence: a wrong answer would look like a bad model.

use prediction::PredictError;
use runner::Gguf;
use serde_json::Value;

/// The largest number of any kind that a config may name: keeps products inside 64 bits.
const MAX_SIZE: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1024;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub hidden: usize,
    /// Width of the feed-forward part.
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f32,
    pub rope_theta: f32,
    pub rope_scaling: RopeScaling,
    /// Positions that the model was made for.
    pub context: usize,
    /// The head is the embedding.
    pub tied: bool,
    /// Any of these ends the text.
    pub ends: Vec<u32>,
}

/// How rotary frequencies differ from the plain ones.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions are divided by this.
    Linear(f32),
    /// Llama 3.1: long wavelengths are stretched, short ones kept, those between blended.
    Llama3 {
        factor: f32,
        low: f32,
        high: f32,
        original_context: f32,
    },
    /// GGUF's `rope_freqs.weight`: each frequency is divided by its number.
    Divisors(Vec<f32>),
}

impl Config {
    /// From `config.json` and, where there is one, `generation_config.json` (its end tokens count too).
    pub fn from_json(config: &Value, generation: Option<&Value>) -> Result<Self, PredictError> {
        json(config, generation).map_err(|why| PredictError::Operator(format!("config.json: {why}")))
    }

    pub fn from_gguf(file: &Gguf) -> Result<Self, PredictError> {
        let architecture = file.str("general.architecture")?;
        if architecture != "llama" {
            return Err(PredictError::Operator(format!(
                "general.architecture is \"{architecture}\"; this model runs the architecture \"llama\" only"
            )));
        }
        let integer = |key: &str| file.u64(&format!("llama.{key}"));
        let optional = |key: &str| file.get(&format!("llama.{key}")).and_then(runner::gguf::Value::as_u64);
        if let Some(experts) = optional("expert_count").filter(|&n| n > 0) {
            return Err(PredictError::Operator(format!(
                "llama.expert_count is {experts}; mixtures of experts are not run"
            )));
        }
        let heads = integer("attention.head_count")?;
        let hidden = integer("embedding_length")?;
        let head_dim = optional("attention.key_length").unwrap_or(hidden / heads.max(1));
        if let Some(rotated) = optional("rope.dimension_count").filter(|&n| n != head_dim) {
            return Err(PredictError::Operator(format!(
                "llama.rope.dimension_count is {rotated}; only whole heads ({head_dim}) are rotated here"
            )));
        }
        let theta = file.get("llama.rope.freq_base").and_then(runner::gguf::Value::as_f32).unwrap_or(10_000.0);
        let ends = ["eos", "eot", "eom"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
        let ends = ends.iter().filter_map(|key| file.get(key)?.as_u64()).map(|id| id as u32);
        Self {
            hidden: hidden as usize,
            inner: integer("feed_forward_length")? as usize,
            layers: integer("block_count")? as usize,
            heads: heads as usize,
            kv_heads: optional("attention.head_count_kv").unwrap_or(heads) as usize,
            head_dim: head_dim as usize,
            norm_eps: file.f32("llama.attention.layer_norm_rms_epsilon")?,
            rope_theta: theta,
            rope_scaling: gguf_scaling(file)?,
            context: integer("context_length")? as usize,
            tied: !file.has("output.weight"),
            ends: distinct(ends),
        }
        .checked()
        .map_err(PredictError::Operator)
    }

    /// Rotary frequencies of one head, as transformers computes them (single precision throughout).
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let dim = self.head_dim as f32;
        let plain = (0..self.head_dim / 2).map(|i| 1.0 / self.rope_theta.powf(2.0 * i as f32 / dim));
        match &self.rope_scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear(factor) => plain.map(|f| f / factor).collect(),
            RopeScaling::Divisors(by) => plain.zip(by).map(|(f, by)| f / by).collect(),
            &RopeScaling::Llama3 { factor, low, high, original_context } => plain
                .map(|f| {
                    let wavelength = 2.0 * std::f32::consts::PI / f;
                    if wavelength > original_context / low {
                        f / factor
                    } else if wavelength < original_context / high {
                        f
                    } else {
                        let kept = (original_context / wavelength - low) / (high - low);
                        (1.0 - kept) * f / factor + kept * f
                    }
                })
                .collect(),
        }
    }

    /// Keys and values of one position, all layers, in elements.
    pub fn cache_elements_per_position(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim
    }

    fn checked(self) -> Result<Self, String> {
        for (name, size, limit) in [
            ("hidden_size", self.hidden, MAX_SIZE),
            ("intermediate_size", self.inner, MAX_SIZE),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_SIZE),
            ("num_key_value_heads", self.kv_heads, MAX_SIZE),
            ("head_dim", self.head_dim, MAX_SIZE),
            ("max_position_embeddings", self.context, MAX_SIZE),
        ] {
            if size == 0 || size as u64 > limit {
                return Err(format!("{name} is {size}; 1 to {limit}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let Self { heads, kv_heads, .. } = self;
            return Err(format!("num_attention_heads is {heads}; not a multiple of num_key_value_heads {kv_heads}"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim is {}; rotary positions need an even one", self.head_dim));
        }
        let positive = |x: f32| x.is_finite() && x > 0.0;
        if !positive(self.norm_eps) || !positive(self.rope_theta) {
            return Err(format!("rms_norm_eps is {} and rope_theta {}; both above 0", self.norm_eps, self.rope_theta));
        }
        match &self.rope_scaling {
            RopeScaling::Linear(factor) | RopeScaling::Llama3 { factor, .. } if !positive(*factor) => {
                Err(format!("rope_scaling.factor is {factor}; above 0"))
            }
            &RopeScaling::Llama3 { low, high, original_context, .. }
                if !positive(low) || !positive(original_context) || high.is_nan() || high <= low =>
            {
                Err(format!(
                    "rope_scaling: low_freq_factor {low}, high_freq_factor {high}, original {original_context}"
                ))
            }
            RopeScaling::Divisors(by) if by.len() != self.head_dim / 2 || !by.iter().all(|&x| positive(x)) => {
                Err(format!("rope_freqs.weight has {} numbers; {} above 0 are needed", by.len(), self.head_dim / 2))
            }
            _ => Ok(self),
        }
    }
}

fn json(config: &Value, generation: Option<&Value>) -> Result<Config, String> {
    refuse_what_is_not_done(config)?;
    let integer = |name: &str| number(config, name)?.ok_or_else(|| format!("{name} is missing"));
    let heads = integer("num_attention_heads")?;
    let hidden = integer("hidden_size")?;
    let rope = given(config, "rope_parameters").or(given(config, "rope_scaling"));
    let theta = given(config, "rope_theta").or(rope.and_then(|rope| given(rope, "rope_theta")));
    let ends = [Some(config), generation].into_iter().flatten().filter_map(|source| given(source, "eos_token_id"));
    let ends = ends.flat_map(|ids| ids.as_array().cloned().unwrap_or_else(|| vec![ids.clone()]));
    Config {
        hidden: hidden as usize,
        inner: integer("intermediate_size")? as usize,
        layers: integer("num_hidden_layers")? as usize,
        heads: heads as usize,
        kv_heads: number(config, "num_key_value_heads")?.unwrap_or(heads) as usize,
        head_dim: number(config, "head_dim")?.unwrap_or(hidden / heads.max(1)) as usize,
        norm_eps: given(config, "rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6) as f32,
        rope_theta: theta.and_then(Value::as_f64).unwrap_or(10_000.0) as f32,
        rope_scaling: rope.map_or(Ok(RopeScaling::None), json_scaling)?,
        context: number(config, "max_position_embeddings")?.unwrap_or(2048) as usize,
        tied: given(config, "tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        ends: distinct(ends.filter_map(|id| u32::try_from(id.as_u64()?).ok())),
    }
    .checked()
}

fn refuse_what_is_not_done(config: &Value) -> Result<(), String> {
    let text = |name: &str| given(config, name).and_then(Value::as_str);
    let first = config.pointer("/architectures/0").and_then(Value::as_str);
    let named = first.or(text("model_type")).unwrap_or("(none named)");
    if !["LlamaForCausalLM", "llama"].contains(&named) {
        return Err(format!("the architecture is {named}; this model runs LlamaForCausalLM only"));
    }
    for name in ["attention_bias", "mlp_bias"] {
        if given(config, name) == Some(&Value::Bool(true)) {
            return Err(format!("{name} is true; Llamas with biases are not run"));
        }
    }
    if let Some(other) = text("hidden_act").filter(|&name| name != "silu") {
        return Err(format!("hidden_act is {other}; silu is run"));
    }
    if let Some(share) = given(config, "partial_rotary_factor").and_then(Value::as_f64).filter(|&share| share != 1.0) {
        return Err(format!("partial_rotary_factor is {share}; only whole heads are rotated"));
    }
    if given(config, "quantization_config").is_some() {
        return Err(
            "quantization_config is set; safetensors are read as f32, f16 or bf16, quantised weights as GGUF".into()
        );
    }
    Ok(())
}

fn json_scaling(rope: &Value) -> Result<RopeScaling, String> {
    let float = |name: &str| {
        let value = given(rope, name).and_then(Value::as_f64);
        value.map(|x| x as f32).ok_or_else(|| format!("rope_scaling.{name} is missing"))
    };
    match given(rope, "rope_type").or(given(rope, "type")).and_then(Value::as_str) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear(float("factor")?)),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: float("factor")?,
            low: float("low_freq_factor")?,
            high: float("high_freq_factor")?,
            original_context: float("original_max_position_embeddings")?,
        }),
        Some(other) => Err(format!("rope_scaling is of type {other}; linear and llama3 are run")),
    }
}

fn gguf_scaling(file: &Gguf) -> Result<RopeScaling, PredictError> {
    if file.has("rope_freqs.weight") {
        let tensor = file.tensor("rope_freqs.weight")?;
        if tensor.kind != runner::GgmlType::F32 {
            return Err(PredictError::Operator(format!("rope_freqs.weight is {}; F32 is read", tensor.kind)));
        }
        let numbers = tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        return Ok(RopeScaling::Divisors(numbers.collect()));
    }
    let float = |key: &str| file.get(key).and_then(runner::gguf::Value::as_f32);
    let factor = float("llama.rope.scaling.factor").or(float("llama.rope.scale_linear"));
    match file.get("llama.rope.scaling.type").and_then(runner::gguf::Value::as_str) {
        Some("none") => Ok(RopeScaling::None),
        None | Some("linear") => Ok(factor.map_or(RopeScaling::None, RopeScaling::Linear)),
        Some(other) => {
            Err(PredictError::Operator(format!("llama.rope.scaling.type is {other}; none and linear are run")))
        }
    }
}

/// A key's value; null is none.
fn given<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

fn number(object: &Value, name: &str) -> Result<Option<u64>, String> {
    let read = |value: &Value| value.as_u64().ok_or_else(|| format!("{name} is {value}; a whole number is needed"));
    given(object, name).map(read).transpose()
}

fn distinct(ids: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut ids: Vec<u32> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama(changes: Value) -> Result<Config, String> {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5, "eos_token_id": 2,
            "max_position_embeddings": 256,
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        json(&config, None)
    }

    #[test]
    fn what_a_config_leaves_out_has_the_usual_meaning() {
        let config = llama(json!({"rope_scaling": null})).unwrap();
        assert_eq!((config.kv_heads, config.head_dim, config.rope_theta), (4, 16, 10_000.0));
        assert_eq!((config.rope_scaling, config.tied, config.ends), (RopeScaling::None, false, vec![2]));
    }

    #[test]
    fn end_tokens_come_from_both_files() {
        let config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "eos_token_id": [7, 9],
        });
        assert_eq!(json(&config, Some(&json!({"eos_token_id": [9, 8]}))).unwrap().ends, [7, 8, 9]);
    }

    #[test]
    fn old_and_new_names_of_the_rotary_scaling_are_read() {
        let linear = RopeScaling::Linear(4.0);
        assert_eq!(llama(json!({"rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap().rope_scaling, linear);
        let new = llama(json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}})).unwrap();
        assert_eq!((new.rope_scaling, new.rope_theta), (linear, 5e5));
    }

    #[test]
    fn llama3_scaling_keeps_blends_and_stretches() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32});
        let scaled = llama(json!({"rope_scaling": scaling})).unwrap().inverse_frequencies();
        let plain = llama(json!({})).unwrap().inverse_frequencies();
        let ratios: Vec<f32> = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
        assert_eq!(ratios[0], 1.0);
        assert!(ratios[1] > 1.0 && ratios[1] < 8.0, "{ratios:?}");
        assert!(ratios[2..].iter().all(|&ratio| (ratio - 8.0).abs() < 1e-5), "{ratios:?}");
    }

    #[test]
    fn what_is_not_done_here_is_refused_with_its_name() {
        for (change, word) in [
            (json!({"architectures": ["MistralForCausalLM"]}), "MistralForCausalLM"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"mlp_bias": true}), "mlp_bias"),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "yarn"),
            (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads 3"),
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (json!({"hidden_size": -1}), "hidden_size is -1"),
            (json!({"num_hidden_layers": 100_000}), "1 to 1024"),
            (json!({"head_dim": 15}), "head_dim is 15"),
            (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0"),
            (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), "low_freq_factor is missing"),
        ] {
            let why = llama(change.clone()).unwrap_err();
            assert!(why.contains(word), "{change}: {why}");
        }
    }
}
