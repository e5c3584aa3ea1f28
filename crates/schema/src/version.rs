//! A version id: the same id behaves the same. A digest over everything that decides behaviour, and over no prose.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Map, ModelSchema};

/// Changes when the recipe itself changes: then every id does.
const RECIPE: &str = "pinion version 1\n";

/// 64 hexadecimal digits. `manifest` is what the model's folder and cog.yaml say about how it runs, without prose;
/// `set_digest` names the weights' bytes.
pub fn version_id(manifest: &Value, set_digest: &str, schema: &ModelSchema) -> String {
    let what = json!({
        "manifest": manifest,
        "weights": set_digest,
        "input": without_prose(schema.input_json()),
        "choices": without_prose(schema.choices_json().into()),
        "output": without_prose(schema.output_json()),
    });
    hex::encode(Sha256::digest(format!("{RECIPE}{}", sorted(what))))
}

/// Titles, descriptions and the order on the page say nothing about behaviour. A field that is itself called `title`
/// is an object, and stays.
fn without_prose(schema: Value) -> Value {
    match schema {
        Value::Object(map) => {
            let prose = |key: &str, value: &Value| match key {
                "title" | "description" => value.is_string(),
                "x-order" => true,
                _ => false,
            };
            let kept = map.into_iter().filter(|(key, value)| !prose(key, value));
            Value::Object(kept.map(|(key, value)| (key, without_prose(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(without_prose).collect(),
        other => other,
    }
}

/// One spelling per value: keys in byte order, no white space when printed.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(pairs.into_iter().collect::<Map>())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}
