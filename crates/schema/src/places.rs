//! Where a value holds files, by its schema: every string whose schema says `format: uri`. Knows objects, arrays and
//! alternatives, which is what output schemas are made of.

use serde_json::Value;

/// Whether any value of this schema can hold a file.
pub fn holds_files(schema: &Value) -> bool {
    match schema {
        Value::Object(keys) => is_uri(schema) || keys.values().any(holds_files),
        Value::Array(items) => items.iter().any(holds_files),
        _ => false,
    }
}

/// JSON pointers to the files in `value`, in its order.
pub fn places(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(schema, value, String::new(), &mut found);
    found
}

fn is_uri(schema: &Value) -> bool {
    schema["format"] == "uri"
}

fn walk(schema: &Value, value: &Value, at: String, found: &mut Vec<String>) {
    for key in ["allOf", "anyOf", "oneOf"] {
        for schema in schema[key].as_array().into_iter().flatten() {
            walk(schema, value, at.clone(), found);
        }
    }
    match value {
        Value::String(_) if is_uri(schema) && !found.contains(&at) => found.push(at),
        Value::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                walk(&schema["items"], item, format!("{at}/{place}"), found);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                let step = name.replace('~', "~0").replace('/', "~1");
                let schema = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
                walk(schema, member, format!("{at}/{step}"), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{ModelSchema, Output};

    fn given(output: Output) -> ModelSchema {
        ModelSchema { input: Vec::new(), output }
    }

    #[test]
    fn files_are_found_where_the_schema_says_and_nowhere_else() {
        use prediction::Output::{Item, Whole};
        let whisper = json!({ "type": "object", "properties": {
            "transcription": { "type": "string" },
            "srt_file": { "type": "string", "format": "uri", "nullable": true },
            "a/b": { "anyOf": [{ "type": "string", "format": "uri" }, { "type": "null" }] },
            "more": { "type": "array", "items": { "type": "string", "format": "uri" } },
        } });
        let all = json!({ "transcription": "data:,x", "srt_file": "u", "a/b": "u", "more": ["u", "u"], "other": "u" });
        let none = json!({ "transcription": "data:,x", "srt_file": null });
        let table = [
            (Output::Uri, Whole(json!("u")), vec![""]),
            (Output::UriList, Whole(json!(["u", "u"])), vec!["/0", "/1"]),
            (Output::UriIterator, Item(json!("u")), vec![""]),
            (Output::TextIterator, Item(json!("data:,x")), vec![]),
            (Output::Text, Whole(json!("data:,x")), vec![]),
            (Output::Object(whisper.clone()), Whole(all), vec!["/srt_file", "/a~1b", "/more/0", "/more/1"]),
            (Output::Object(whisper), Whole(none), vec![]),
        ];
        for (schema, output, found) in table {
            assert_eq!(given(schema).file_places(&output), found, "{output:?}");
        }
    }

    #[test]
    fn a_model_gives_files_if_any_part_of_its_output_is_one() {
        assert!(
            [Output::Uri, Output::UriList, Output::UriIterator].into_iter().all(|output| given(output).gives_files())
        );
        assert!(![Output::Text, Output::TextIterator].into_iter().any(|output| given(output).gives_files()));
        let object = json!({ "type": "object", "properties": { "file": { "type": "string", "format": "uri" } } });
        assert!(given(Output::Object(object)).gives_files());
    }
}
