//! One input field, all of them, and the shape of the output. Data only: checking and describing live beside this.

use std::borrow::Cow;

use serde_json::Value;

use crate::{Invalid, Map, check, check::Files, describe, places};

/// What a field's value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    String,
    Integer,
    Number,
    Boolean,
    /// An http(s) URL or a data URI: a file to the model.
    Uri,
}

/// A field as it was declared with `input!`.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    /// Declared as an `Option`: may be left out, and null means left out.
    pub nullable: bool,
    pub description: &'static str,
    pub default: Option<Value>,
    pub min: Option<Value>,
    pub max: Option<Value>,
    /// Characters, not bytes.
    pub min_len: Option<usize>,
    pub max_len: Option<usize>,
    pub choices: &'static [&'static str],
    /// Text to its readers, a file's address to the model: published as a plain string, and treated as a `Uri`. Blank is none.
    pub file: bool,
}

/// The setters that the braces of `input!` name.
impl Field {
    pub fn new(name: &'static str, kind: Kind, nullable: bool) -> Self {
        Self {
            name,
            kind,
            nullable,
            description: "",
            default: None,
            min: None,
            max: None,
            min_len: None,
            max_len: None,
            choices: &[],
            file: false,
        }
    }

    pub fn file(self, file: bool) -> Self {
        Self { file, ..self }
    }

    /// Whether its value names a file.
    pub fn is_file(&self) -> bool {
        self.file || self.kind == Kind::Uri
    }

    pub fn description(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    pub fn default(self, default: impl Into<Value>) -> Self {
        Self { default: Some(default.into()), ..self }
    }

    pub fn min(self, min: impl Into<Value>) -> Self {
        Self { min: Some(min.into()), ..self }
    }

    pub fn max(self, max: impl Into<Value>) -> Self {
        Self { max: Some(max.into()), ..self }
    }

    pub fn min_len(self, characters: usize) -> Self {
        Self { min_len: Some(characters), ..self }
    }

    pub fn max_len(self, characters: usize) -> Self {
        Self { max_len: Some(characters), ..self }
    }

    pub fn choices(self, choices: &'static [&'static str]) -> Self {
        Self { choices, ..self }
    }

    pub fn required(&self) -> bool {
        self.default.is_none() && !self.nullable
    }
}

/// What a model gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// A list of texts that grows and reads as one text.
    TextIterator,
    Text,
    /// One file.
    Uri,
    /// Several files.
    UriList,
    /// A list of files that grows.
    UriIterator,
    /// A schema of its own. Under `READ_AS` it may name the property that people read first.
    Object(Value),
}

/// Key of an object's schema: the name of the property that is the answer, where the others are about it.
pub const READ_AS: &str = "x-pinion-read-as";

/// What a model accepts and gives.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSchema {
    pub input: Vec<Field>,
    pub output: Output,
}

impl ModelSchema {
    /// The same schema with other defaults, as cog.yaml may ask. A field with a default is no longer required.
    pub fn with_defaults(mut self, defaults: &Map) -> Result<Self, String> {
        for (name, value) in defaults {
            let Some(field) = self.input.iter_mut().find(|field| field.name == name) else {
                let known: Vec<_> = self.input.iter().map(|field| field.name).collect();
                return Err(format!("defaults.{name}: the model has no such input; it has {}", known.join(", ")));
            };
            if let Some(wrong) = check::value(field, &format!("defaults.{name}"), value, Files::Elsewhere) {
                return Err(format!("{wrong}, given {value}"));
            }
            field.default = Some(value.clone()).filter(|value| !value.is_null());
        }
        Ok(self)
    }

    /// Everything that is wrong with an input, in the order of the declaration. Unknown keys are ignored.
    pub fn validate(&self, input: &Map) -> Result<(), Vec<Invalid>> {
        check::check(&self.input, input, Files::Elsewhere)
    }

    /// The same for whoever owns this machine, who may name files of it as `file:///path`.
    pub fn validate_here(&self, input: &Map) -> Result<(), Vec<Invalid>> {
        check::check(&self.input, input, Files::Anywhere)
    }

    /// Inputs that are files to the model.
    pub fn file_fields(&self) -> impl Iterator<Item = &Field> {
        self.input.iter().filter(|field| field.is_file())
    }

    /// Whether it gives files anywhere in its output.
    pub fn gives_files(&self) -> bool {
        places::holds_files(&self.output_json())
    }

    /// Whether its output is files and nothing else.
    pub fn is_files(&self) -> bool {
        matches!(self.output, Output::Uri | Output::UriList | Output::UriIterator)
    }

    /// What a person reads of an output, where the output is text or says which of its properties is.
    pub fn text<'a>(&self, output: &'a Value) -> Option<Cow<'a, str>> {
        match &self.output {
            Output::TextIterator => {
                let pieces = output.as_array()?.iter().map(Value::as_str);
                Some(Cow::Owned(pieces.collect::<Option<String>>()?))
            }
            Output::Text => output.as_str().map(Cow::Borrowed),
            Output::Object(schema) => output.get(schema[READ_AS].as_str()?)?.as_str().map(Cow::Borrowed),
            Output::Uri | Output::UriList | Output::UriIterator => None,
        }
    }

    /// Where a piece of its output holds files by the schema, as JSON pointers into the piece's value.
    pub fn file_places(&self, given: &prediction::Output) -> Vec<String> {
        let schema = self.output_json();
        match given {
            prediction::Output::Whole(value) => places::places(&schema, value),
            prediction::Output::Item(value) => places::places(&schema["items"], value),
        }
    }

    /// The known fields with the defaults filled in. The input has been validated.
    pub fn fill(&self, input: &Map) -> Map {
        check::fill(&self.input, input)
    }

    /// The `Input` component.
    pub fn input_json(&self) -> Value {
        describe::input(&self.input)
    }

    /// The `Output` component.
    pub fn output_json(&self) -> Value {
        describe::output(&self.output)
    }

    /// One component per field with choices, under the field's name.
    pub fn choices_json(&self) -> Map {
        describe::choices(&self.input)
    }
}
