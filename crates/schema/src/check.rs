//! An input against its fields. Says everything that is wrong at once, in the order of the declaration.

use serde_json::Value;

use crate::{Field, Invalid, Kind, Map};

/// Where a file may be. A caller never names one of this machine: that is for whoever fetched it, and for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    Elsewhere,
    Anywhere,
}

/// Unknown keys are ignored: the hosted service does the same, and people leave old keys in their calls.
pub fn check(fields: &[Field], input: &Map, files: Files) -> Result<(), Vec<Invalid>> {
    let missing = fields.iter().filter(|field| field.required() && !input.contains_key(field.name));
    let missing = missing.map(|field| Invalid::required("input", field.name));
    let wrong = fields.iter().filter_map(|field| {
        let given = input.get(field.name)?;
        value(field, &format!("input.{}", field.name), given, files)
    });
    let errors: Vec<_> = missing.chain(wrong).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What is wrong with one value, if anything. `path` is what the error calls it.
pub fn value(field: &Field, path: &str, given: &Value, files: Files) -> Option<Invalid> {
    if given.is_null() && field.nullable {
        return None;
    }
    let wrong_type = |expected| Some(Invalid::invalid_type(path, expected, given));
    match field.kind {
        Kind::Boolean if given.is_boolean() => None,
        Kind::Boolean => wrong_type("boolean"),
        Kind::String | Kind::Uri => match given.as_str() {
            Some(text) => self::text(field, path, text, files),
            None => wrong_type("string"),
        },
        Kind::Number => match given.as_f64() {
            Some(number) => bounds(field, path, number),
            None => wrong_type("number"),
        },
        Kind::Integer => match (integer(given), given.as_f64()) {
            (Some(whole), _) => bounds(field, path, whole as f64),
            // A whole number that no machine integer holds is of the right type, and out of range all the same.
            (None, Some(number)) if number.fract() == 0.0 => bounds(field, path, number).or_else(|| {
                let too_big =
                    || Invalid::new("number_lte", path, format!("Must be less than or equal to {}", i64::MAX));
                let too_small =
                    || Invalid::new("number_gte", path, format!("Must be greater than or equal to {}", i64::MIN));
                Some(if number > 0.0 { too_big() } else { too_small() })
            }),
            _ => wrong_type("integer"),
        },
    }
}

fn text(field: &Field, path: &str, text: &str, files: Files) -> Option<Invalid> {
    if !field.choices.is_empty() && !field.choices.contains(&text) {
        return Some(Invalid::not_one_of(path, field.name, field.choices));
    }
    let length = text.chars().count();
    if let Some(min) = field.min_len.filter(|min| length < *min) {
        return Some(Invalid::too_short(path, min));
    }
    if let Some(max) = field.max_len.filter(|max| length > *max) {
        return Some(Invalid::too_long(path, max));
    }
    let is_file = || is_file_uri(text) || (files == Files::Anywhere && text.starts_with("file:///"));
    let blank = field.kind == Kind::String && text.trim().is_empty();
    (field.is_file() && !blank && !is_file()).then(|| Invalid::not_a("uri", path))
}

fn bounds(field: &Field, path: &str, number: f64) -> Option<Invalid> {
    let bound = |bound: &Option<Value>| bound.as_ref().and_then(Value::as_f64);
    match (bound(&field.min), bound(&field.max)) {
        (Some(min), _) if number < min => Some(Invalid::below(path, min)),
        (_, Some(max)) if number > max => Some(Invalid::above(path, max)),
        _ => None,
    }
}

/// The integer that a JSON number is: `2`, and `2.0` and `2e0` too.
pub fn integer(value: &Value) -> Option<i64> {
    /// Beyond this a double no longer names every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        (!value.is_u64() && number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
    })
}

/// Only what can be fetched without touching the machine: anything else, a path or `file:` among it, is no file here.
fn is_file_uri(text: &str) -> bool {
    let head: String = text.chars().take(8).collect::<String>().to_ascii_lowercase();
    let rest = |scheme: &str| head.starts_with(scheme) && text.len() > scheme.len();
    match head.starts_with("data:") {
        true => text.contains(','),
        false => (rest("http://") || rest("https://")) && !text.contains(|c: char| c.is_whitespace() || c.is_control()),
    }
}

/// The known fields with the defaults filled in; whole numbers become integers, nulls are gone.
pub fn fill(fields: &[Field], input: &Map) -> Map {
    let pairs = fields.iter().filter_map(|field| {
        let given = match input.get(field.name) {
            None => field.default.clone(),
            Some(Value::Null) => None,
            Some(value) => Some(value.clone()),
        }?;
        let value = match field.kind {
            Kind::Integer => integer(&given).map_or(given, Value::from),
            _ => given,
        };
        Some((field.name.to_owned(), value))
    });
    pairs.collect()
}
