//! `-i key=value` words to a prediction's input. The model's own schema says what each value has to be.

use std::path::Path;

use prediction::Map;
use schema::{Kind, ModelSchema};
use serde_json::Value;
use url::Url;

use crate::failure::Failure;

/// Reads the words and checks the result as the server would. All that is wrong is said at once.
pub fn read(words: &[String], schema: &ModelSchema) -> Result<Map, Failure> {
    let mut input = Map::new();
    for word in words {
        let Some((key, text)) = word.split_once('=') else {
            return Err(Failure::BadInput(format!("-i {word:?}: key=value is expected")));
        };
        let field = schema.input.iter().find(|field| field.name == key);
        // A path to what names a file, whatever it is published as.
        let kind = field.map(|field| if field.is_file() { Kind::Uri } else { field.kind });
        if kind.is_none() {
            let known: Vec<&str> = schema.input.iter().map(|field| field.name).collect();
            eprintln!("pinion: input {key:?} is ignored; this model has {}", known.join(", "));
        }
        input.insert(key.to_owned(), value(key, text, kind.unwrap_or(Kind::String))?);
    }
    schema.validate_here(&input).map_err(|wrong| {
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

/// To a field that takes files a file is where it lies, to any other its text.
fn file(key: &str, path: &Path, kind: Kind) -> Result<Value, Failure> {
    let refuse = |why: String| Failure::BadInput(format!("-i {key}=@{}: {why}", path.display()));
    if kind == Kind::Uri {
        let whole = path.canonicalize().map_err(|error| refuse(error.to_string()))?;
        std::fs::File::open(&whole).map_err(|error| refuse(error.to_string()))?;
        let uri = Url::from_file_path(whole).map_err(|()| refuse("its path cannot be written as a URI".to_owned()))?;
        return Ok(Value::String(uri.into()));
    }
    let bytes = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    Ok(Value::String(String::from_utf8(bytes).map_err(|_| refuse("the file is not UTF-8 text".to_owned()))?))
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
    fn a_file_is_a_path_to_a_field_of_files_and_its_text_to_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a talk.wav");
        std::fs::write(&path, "hello").unwrap();
        let named = |path: &Path, kind| file("audio", path, kind).map_err(|error| error.to_string());
        let uri = schema::Uri(named(&path, Kind::Uri).unwrap().as_str().unwrap().to_owned());
        assert_eq!(uri.path().unwrap(), path.canonicalize().unwrap());
        assert_eq!(named(&path, Kind::String).unwrap(), "hello");
        for kind in [Kind::Uri, Kind::String] {
            let error = named(&folder.path().join("none"), kind).unwrap_err();
            assert!(error.contains("-i audio=@") && error.contains("No such file"), "{error}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let error = read(&words(&["max_tokens=many", "top_p=2"]), &llama()).unwrap_err().to_string();
        for part in ["prompt is required", "input.max_tokens", "input.top_p"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
