//! Fields and outputs as the JSON Schema that Cog publishes: what the hosted service's clients and pages read.

use serde_json::{Value, json};

use crate::{Field, Kind, Map, Output};

pub fn input(fields: &[Field]) -> Value {
    let properties: Map =
        fields.iter().enumerate().map(|(order, field)| (field.name.to_owned(), property(field, order))).collect();
    let required: Vec<_> = fields.iter().filter(|field| field.required()).map(|field| field.name).collect();
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    schema.insert("title".into(), "Input".into());
    if !required.is_empty() {
        schema.insert("required".into(), required.into());
    }
    schema.insert("properties".into(), properties.into());
    schema.into()
}

fn property(field: &Field, order: usize) -> Value {
    let mut schema = Map::new();
    let mut put = |key: &str, value: Option<Value>| value.map(|value| schema.insert(key.into(), value));
    match field.choices {
        [] => {
            put("type", Some(field.kind.json_type().into()));
            put("title", Some(title(field.name).into()));
        }
        _ => {
            put("allOf", Some(json!([{ "$ref": format!("#/components/schemas/{}", field.name) }])));
        }
    }
    put("description", Some(field.description).filter(|text| !text.is_empty()).map(Value::from));
    put("default", field.default.clone());
    put("minimum", field.min.clone());
    put("maximum", field.max.clone());
    put("minLength", field.min_len.map(Value::from));
    put("maxLength", field.max_len.map(Value::from));
    put("format", (field.kind == Kind::Uri).then(|| "uri".into()));
    put("x-order", Some(order.into()));
    put("nullable", field.nullable.then(|| true.into()));
    schema.into()
}

/// `top_p` becomes `Top P`.
fn title(name: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
    };
    name.split('_').map(word).collect::<Vec<_>>().join(" ")
}

pub fn choices(fields: &[Field]) -> Map {
    let with_choices = fields.iter().filter(|field| !field.choices.is_empty());
    with_choices
        .map(|field| {
            let schema = json!({
                "type": "string", "enum": field.choices, "title": field.name, "description": "An enumeration.",
            });
            (field.name.to_owned(), schema)
        })
        .collect()
}

pub fn output(output: &Output) -> Value {
    let uri = || json!({ "type": "string", "format": "uri" });
    match output {
        // Clients decide by these two keys whether to hand the list out piece by piece and as one text.
        Output::TextIterator => json!({
            "type": "array", "items": { "type": "string" }, "title": "Output",
            "x-cog-array-type": "iterator", "x-cog-array-display": "concatenate",
        }),
        Output::Text => json!({ "type": "string", "title": "Output" }),
        Output::Uri => json!({ "type": "string", "title": "Output", "format": "uri" }),
        Output::UriList => json!({ "type": "array", "items": uri(), "title": "Output" }),
        Output::UriIterator => json!({
            "type": "array", "items": uri(), "title": "Output", "x-cog-array-type": "iterator",
        }),
        Output::Object(schema) => schema.clone(),
    }
}
