//! One thing that is wrong with a body, in the words of the hosted service's validator (Go's gojsonschema, default locale).

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// What, where and why. The serialised form is an element of `invalid_fields` in a 422 body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Invalid {
    /// The validator's name for the rule, e.g. `number_lte`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The path from the body's root, e.g. `input.top_p`; empty for the root itself.
    pub field: String,
    pub description: String,
}

impl Invalid {
    pub fn new(kind: &'static str, field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { kind, field: field.into(), description: description.into() }
    }

    /// `field` is the object that lacks `property`.
    pub fn required(field: &str, property: &str) -> Self {
        Self::new("required", field, format!("{property} is required"))
    }

    pub fn additional_property(field: &str, property: &str) -> Self {
        let description = format!("Additional property {property} is not allowed");
        Self::new("additional_property_not_allowed", field, description)
    }

    pub fn invalid_type(field: &str, expected: &str, given: &Value) -> Self {
        let description = format!("Invalid type. Expected: {expected}, given: {}", type_name(given));
        Self::new("invalid_type", field, description)
    }

    /// `name` is how the sentence calls the field: the last part of its path.
    pub fn not_one_of(field: &str, name: &str, allowed: &[&str]) -> Self {
        let allowed: Vec<_> = allowed.iter().map(|choice| Value::from(*choice).to_string()).collect();
        Self::new("enum", field, format!("{name} must be one of the following: {}", allowed.join(", ")))
    }

    pub fn below(field: &str, min: f64) -> Self {
        Self::new("number_gte", field, format!("Must be greater than or equal to {min}"))
    }

    pub fn above(field: &str, max: f64) -> Self {
        Self::new("number_lte", field, format!("Must be less than or equal to {max}"))
    }

    pub fn too_short(field: &str, min_len: usize) -> Self {
        Self::new("string_gte", field, format!("String length must be greater than or equal to {min_len}"))
    }

    pub fn too_long(field: &str, max_len: usize) -> Self {
        Self::new("string_lte", field, format!("String length must be less than or equal to {max_len}"))
    }

    pub fn not_a(format: &str, field: &str) -> Self {
        Self::new("format", field, format!("Does not match format '{format}'"))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.description)
    }
}

/// The `detail` of a 422: one line per error, each with its line end.
pub fn detail(errors: &[Invalid]) -> String {
    errors.iter().map(|error| format!("- {error}\n")).collect()
}

/// The validator's name for a JSON value's type. A number without a fraction is an integer, however it is written.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() == 0.0 => "integer",
            _ => "number",
        },
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
