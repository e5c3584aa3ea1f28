//! What our models take and give beside the published models' schemas, property by property. Files in `published/` are what
//! the real generator (Cog 0.16.12) makes of the public models' signatures, without the prose. A difference stands on the
//! list in docs/cog-schemas.md with its reason, or the test fails.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::compare;
use crate::support::tests_folder;

/// What a property says beside its prose.
const KEYS: [&str; 10] =
    ["type", "format", "default", "minimum", "maximum", "minLength", "maxLength", "enum", "nullable", "required"];

#[test]
fn every_property_of_the_published_models_is_ours_too() {
    let mut found = Vec::new();
    for entry in models::ALL {
        let path = tests_folder().join(format!("cog/published/{}.json", entry.name));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let published: Value = serde_json::from_str(&text).unwrap();
        let schema = (entry.schema)().with_defaults(&their_deployments(entry.name)).unwrap();
        let mut ours =
            Map::from_iter([("Input".to_owned(), schema.input_json()), ("Output".to_owned(), schema.output_json())]);
        ours.extend(schema.choices_json());
        compare_inputs(entry.name, &ours.clone().into(), &published, &mut found);
        compare_outputs(&format!("{}/Output", entry.name), &ours["Output"], &published["Output"], &mut found);
    }
    let listed = compare::listed("cog-schemas.md");
    let news = compare::unlisted(&found, &listed);
    assert!(news.is_empty(), "differences that are not in docs/cog-schemas.md:\n{}", news.join("\n"));
    // A model that is not in this build has its lines for when it is.
    let built = |line: &&String| models::ALL.iter().any(|entry| line.starts_with(entry.name));
    let gone: Vec<String> = compare::stale(&found, &listed).iter().filter(built).cloned().collect();
    assert!(gone.is_empty(), "in docs/cog-schemas.md, and not so:\n{}", gone.join("\n"));
}

/// What the environment of the container set whose schema was published; `defaults:` of a cog.yaml says the same here. Left
/// out, the weights decide (docs/cog-schemas.md).
fn their_deployments(model: &str) -> Map<String, Value> {
    let defaults = match model {
        "llama" => json!({
            "system_prompt": "You are a helpful assistant",
            "stop_sequences": "<|end_of_text|>,<|eot_id|>",
            "prompt_template": "{prompt}",
        }),
        _ => json!({}),
    };
    defaults.as_object().cloned().unwrap_or_default()
}

fn compare_inputs(model: &str, ours: &Value, published: &Value, found: &mut Vec<String>) {
    let names = |schema: &Value| -> Vec<String> {
        let properties = schema["Input"]["properties"].as_object().cloned().unwrap_or_default();
        let mut names: Vec<(i64, String)> =
            properties.iter().map(|(name, property)| (property["x-order"].as_i64().unwrap(), name.clone())).collect();
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    };
    let (our_names, their_names) = (names(ours), names(published));
    for name in &their_names {
        let (ours, theirs) = (facts(ours, name), facts(published, name));
        for key in KEYS {
            differ(&format!("{model}/{name}/{key}"), ours.get(key), theirs.get(key), found);
        }
    }
    let known: BTreeSet<&String> = their_names.iter().collect();
    found.extend(our_names.iter().filter(|name| !known.contains(name)).map(|name| format!("{model}/{name}: is more")));
    let order: Vec<&String> = our_names.iter().filter(|name| known.contains(name)).collect();
    if order != their_names.iter().collect::<Vec<_>>() {
        found.push(format!("{model}: the order is {order:?} in place of {their_names:?}"));
    }
}

/// A property's keys, its choices in place, and whether it is required.
fn facts(schema: &Value, name: &str) -> Map<String, Value> {
    let mut facts = schema["Input"]["properties"][name].as_object().cloned().unwrap_or_default();
    if facts.contains_key("allOf") {
        facts.extend(schema[name].as_object().cloned().unwrap_or_default());
    }
    let required = schema["Input"]["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    facts.insert("required".into(), required.into());
    facts
}

fn compare_outputs(at: &str, ours: &Value, published: &Value, found: &mut Vec<String>) {
    match (ours, published) {
        (Value::Object(ours), Value::Object(published)) => {
            for key in ours.keys().chain(published.keys()).filter(|key| *key != "description").collect::<BTreeSet<_>>()
            {
                match (ours.get(key), published.get(key)) {
                    (Some(ours), Some(published)) => compare_outputs(&format!("{at}/{key}"), ours, published, found),
                    (ours, published) => differ(&format!("{at}/{key}"), ours, published, found),
                }
            }
        }
        (ours, published) => differ(at, Some(ours), Some(published), found),
    }
}

/// 1 is 1.0.
fn differ(at: &str, ours: Option<&Value>, published: Option<&Value>, found: &mut Vec<String>) {
    let numbers = || Some(ours?.as_f64()? == published?.as_f64()?);
    if ours == published || numbers() == Some(true) {
        return;
    }
    let show = |value: Option<&Value>| value.map_or("none".to_owned(), Value::to_string);
    found.push(format!("{at}: {} in place of {}", show(ours), show(published)));
}
