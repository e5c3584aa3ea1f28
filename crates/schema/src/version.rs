//! A version id: the same id behaves the same. A digest over everything that decides behaviour, and over no prose.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Map, ModelSchema, READ_AS};

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
                "x-order" | READ_AS => true,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Field, Kind, Output};

    fn schema(change: impl FnOnce(&mut Vec<Field>)) -> ModelSchema {
        let mut input = vec![
            Field::new("prompt", Kind::String, false).description("What to say."),
            Field::new("top_p", Kind::Number, false).description("Nucleus.").default(0.95).min(0.0).max(1.0),
            Field::new("style", Kind::String, false).default("a").choices(&["a", "b"]),
        ];
        change(&mut input);
        ModelSchema { input, output: Output::TextIterator }
    }

    fn id(schema: &ModelSchema) -> String {
        version_id(&json!({ "model": "llama", "precision": null }), "sha256:abc", schema)
    }

    #[test]
    fn prose_and_order_keep_the_id() {
        let id_before = id(&schema(|_| {}));
        assert!(id_before.len() == 64 && id_before.bytes().all(|b| b.is_ascii_hexdigit()), "{id_before}");
        assert_eq!(id_before, id(&schema(|fields| fields[1].description = "Other words.")));
        assert_eq!(id_before, id(&schema(|fields| fields.swap(0, 1))));
        let manifest = json!({ "precision": null, "model": "llama" });
        assert_eq!(id_before, version_id(&manifest, "sha256:abc", &schema(|_| {})));
    }

    #[test]
    fn whatever_decides_behaviour_changes_the_id() {
        let plain = schema(|_| {});
        let defaults = json!({ "top_p": 0.5 });
        let ids = [
            id(&plain),
            id(&schema(|fields| fields[1].max = Some(2.0.into()))),
            id(&schema(|fields| fields[1].default = Some(0.9.into()))),
            id(&schema(|fields| fields[2].choices = &["a", "b", "c"])),
            id(&schema(|fields| fields[0].nullable = true)),
            id(&schema(|fields| fields.truncate(2))),
            id(&ModelSchema { output: Output::Text, ..plain.clone() }),
            id(&plain.clone().with_defaults(defaults.as_object().unwrap()).unwrap()),
            version_id(&json!({ "model": "llama", "precision": "f16" }), "sha256:abc", &plain),
            version_id(&json!({ "model": "llama", "precision": null }), "sha256:abd", &plain),
        ];
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:#?}");
    }

    /// The promise itself: this id stays this id. A change here breaks every pin out there.
    #[test]
    fn the_recipe_has_not_changed() {
        let id = id(&schema(|_| {}));
        assert_eq!(id, "16fa693932d1e5f8c03b607486ee18acf4367a13a77ae945cf1e33256d77acbf");
    }
}
