//! `-i key=value` words to a prediction's input. The model's own schema says what each value has to be.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prediction::Map;
use schema::{Kind, ModelSchema};
use serde_json::Value;

use crate::failure::Failure;

/// Reads the words and checks the result as the server would. All that is wrong is said at once.
pub fn read(words: &[String], schema: &ModelSchema) -> Result<Map, Failure> {
    let mut input = Map::new();
    for word in words {
        let Some((key, text)) = word.split_once('=') else {
            return Err(Failure::BadInput(format!("-i {word:?}: key=value is expected")));
        };
        let kind = schema.input.iter().find(|field| field.name == key).map(|field| field.kind);
        if kind.is_none() {
            let known: Vec<&str> = schema.input.iter().map(|field| field.name).collect();
            eprintln!("pinion: input {key:?} is ignored; this model has {}", known.join(", "));
        }
        input.insert(key.to_owned(), value(key, text, kind.unwrap_or(Kind::String))?);
    }
    schema.validate(&input).map_err(|wrong| {
        Failure::BadInput(format!("the input is not valid:\n{}", schema::detail(&wrong).trim_end()))
    })?;
    Ok(input)
}

/// What cannot be read as the wanted type stays text, and the schema's check names it.
fn value(key: &str, text: &str, kind: Kind) -> Result<Value, Failure> {
    if let Some(path) = text.strip_prefix('@') {
        return file(key, Path::new(path), kind);
    }
    let parsed = match kind {
        Kind::String | Kind::Uri => None,
        Kind::Integer | Kind::Number | Kind::Boolean => serde_json::from_str(text).ok(),
    };
    Ok(parsed.unwrap_or_else(|| Value::String(text.to_owned())))
}

/// A file is a data URI to a field that takes files, and its text to any other.
fn file(key: &str, path: &Path, kind: Kind) -> Result<Value, Failure> {
    let bytes =
        std::fs::read(path).map_err(|error| Failure::BadInput(format!("-i {key}=@{}: {error}", path.display())))?;
    Ok(Value::String(match kind {
        Kind::Uri => format!("data:application/octet-stream;base64,{}", STANDARD.encode(bytes)),
        _ => String::from_utf8(bytes)
            .map_err(|_| Failure::BadInput(format!("-i {key}=@{}: the file is not UTF-8 text", path.display())))?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> ModelSchema {
        (models::ALL[0].schema)()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn values_take_the_type_that_the_schema_wants() {
        let input = read(&words(&["prompt=12", "max_tokens=12", "temperature=0.5"]), &llama()).unwrap();
        assert_eq!(Value::Object(input), serde_json::json!({"prompt": "12", "max_tokens": 12, "temperature": 0.5}));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let error = read(&words(&["max_tokens=many", "top_p=2"]), &llama()).unwrap_err().to_string();
        for part in ["prompt is required", "input.max_tokens", "input.top_p"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
