//! The macro, the validator's words and the published schema, on one input that has a field of every kind.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{Invalid, Map, ModelSchema, Output, Uri, detail};

crate::input! {
    /// One of each.
    pub struct Input {
        prompt: String { description: "What to say.", min_len: 1, max_len: 20 }
        max_tokens: i64 { description: "At most.", default: 512, min: 1, max: 4096 }
        top_p: f64 { description: "Nucleus.", default: 0.95, min: 0.0, max: 1.0 }
        loud: bool { description: "Louder.", default: false }
        seed: Option<i64> { description: "Leave out for a random one." }
        scheduler: String { description: "Which.", default: "K_EULER", choices: &["DDIM", "K_EULER"] }
        image: Option<Uri> { description: "A picture." }
    }
}

fn schema() -> ModelSchema {
    ModelSchema { input: Input::fields(), output: Output::TextIterator }
}

fn map(value: Value) -> Map {
    value.as_object().expect("an object").clone()
}

fn errors(mut input: Value) -> Vec<Invalid> {
    input.as_object_mut().unwrap().entry("prompt").or_insert_with(|| "x".into());
    schema().validate(&map(input)).expect_err("refused")
}

#[test]
fn an_outputs_text_is_what_its_schema_says_people_read() {
    let of = |output| ModelSchema { output, ..schema() };
    let whisper = Output::Object(json!({ (crate::READ_AS): "transcription", "properties": {} }));
    let cases = [
        (Output::TextIterator, json!(["Hel", "lo"]), Some("Hello")),
        (Output::TextIterator, json!(["Hello", 1]), None),
        (Output::Text, json!("Hello"), Some("Hello")),
        (whisper.clone(), json!({ "transcription": "Hello", "segments": [] }), Some("Hello")),
        (whisper, json!({ "segments": [] }), None),
        (Output::Object(json!({ "properties": {} })), json!({ "transcription": "Hello" }), None),
        (Output::UriList, json!(["data:,x"]), None),
    ];
    for (output, value, text) in cases {
        assert_eq!(of(output.clone()).text(&value).as_deref(), text, "{output:?} {value}");
    }
}

#[test]
fn the_declaration_fills_the_defaults_in() {
    let input = Input::parse(&map(json!({ "prompt": "Hi", "max_tokens": 2.0, "unknown": [1] }))).unwrap();
    assert_eq!(
        input,
        Input {
            prompt: "Hi".into(),
            max_tokens: 2,
            top_p: 0.95,
            loud: false,
            seed: None,
            scheduler: "K_EULER".into(),
            image: None,
        }
    );
    let filled = schema().fill(&map(json!({ "prompt": "Hi", "seed": null, "max_tokens": 2.0, "unknown": 1 })));
    let expected = json!({ "prompt": "Hi", "max_tokens": 2, "top_p": 0.95, "loud": false, "scheduler": "K_EULER" });
    assert_eq!(Value::Object(filled), expected);
}

/// The two bodies that public repositories quote from the hosted service.
#[test]
fn the_words_are_those_of_the_hosted_validator() {
    let missing = schema().validate(&map(json!({ "top_p": 4 }))).unwrap_err();
    assert_eq!(detail(&missing), "- input: prompt is required\n- input.top_p: Must be less than or equal to 1\n");
    assert_eq!(
        serde_json::to_value(&missing).unwrap(),
        json!([
            { "type": "required", "field": "input", "description": "prompt is required" },
            { "type": "number_lte", "field": "input.top_p", "description": "Must be less than or equal to 1" },
        ])
    );
    assert_eq!(
        detail(&errors(json!({ "scheduler": "x" }))),
        "- input.scheduler: scheduler must be one of the following: \"DDIM\", \"K_EULER\"\n"
    );
}

#[test]
fn each_wrong_value_has_its_words() {
    let wrong_type = |field: &str, expected: &str, given: &str| {
        ("invalid_type", format!("input.{field}"), format!("Invalid type. Expected: {expected}, given: {given}"))
    };
    let says = |kind, field: &str, words: &str| (kind, format!("input.{field}"), words.to_owned());
    let cases = [
        (json!({ "prompt": 3 }), wrong_type("prompt", "string", "integer")),
        (json!({ "prompt": null }), wrong_type("prompt", "string", "null")),
        (json!({ "prompt": "" }), says("string_gte", "prompt", "String length must be greater than or equal to 1")),
        (
            json!({ "prompt": "a".repeat(21) }),
            says("string_lte", "prompt", "String length must be less than or equal to 20"),
        ),
        (json!({ "max_tokens": 2.5 }), wrong_type("max_tokens", "integer", "number")),
        (json!({ "max_tokens": "2" }), wrong_type("max_tokens", "integer", "string")),
        (json!({ "max_tokens": null }), wrong_type("max_tokens", "integer", "null")),
        (json!({ "max_tokens": true }), wrong_type("max_tokens", "integer", "boolean")),
        (json!({ "max_tokens": 0 }), says("number_gte", "max_tokens", "Must be greater than or equal to 1")),
        (json!({ "max_tokens": 1e300 }), says("number_lte", "max_tokens", "Must be less than or equal to 4096")),
        (json!({ "top_p": [0.5] }), wrong_type("top_p", "number", "array")),
        (json!({ "top_p": -0.5 }), says("number_gte", "top_p", "Must be greater than or equal to 0")),
        (json!({ "loud": 1 }), wrong_type("loud", "boolean", "integer")),
        (json!({ "seed": {} }), wrong_type("seed", "integer", "object")),
        (
            json!({ "seed": 18_446_744_073_709_551_615_u64 }),
            says("number_lte", "seed", "Must be less than or equal to 9223372036854775807"),
        ),
        (json!({ "seed": -1e19 }), says("number_gte", "seed", "Must be greater than or equal to -9223372036854775808")),
        (json!({ "image": "cat.png" }), says("format", "image", "Does not match format 'uri'")),
        (json!({ "image": "file:///etc/hostname" }), says("format", "image", "Does not match format 'uri'")),
        (json!({ "image": "https://" }), says("format", "image", "Does not match format 'uri'")),
    ];
    for (input, (kind, field, description)) in cases {
        assert_eq!(errors(input.clone()), [Invalid { kind, field, description }], "{input}");
    }
}

#[test]
fn everything_wrong_is_said_at_once_in_the_order_of_the_declaration() {
    let all = errors(json!({ "image": 1, "seed": "x", "top_p": 2, "prompt": "" }));
    let fields: Vec<_> = all.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["input.prompt", "input.top_p", "input.seed", "input.image"]);
}

#[test]
fn what_is_right_in_an_unusual_way_passes() {
    for input in [
        json!({ "seed": null }),
        json!({ "image": null }),
        json!({ "max_tokens": 1e3 }),
        json!({ "top_p": 1 }),
        json!({ "prompt": "ü".repeat(20) }),
        json!({ "image": "HTTPS://host/a.png" }),
        json!({ "image": "data:image/png;base64,AAAA" }),
        json!({ "temprature": "a wrong key is ignored" }),
    ] {
        let mut input = map(input);
        input.entry("prompt").or_insert_with(|| "x".into());
        assert_eq!(schema().validate(&input), Ok(()), "{input:?}");
    }
}

#[test]
fn the_schema_is_published_as_cog_does() {
    assert_eq!(
        schema().input_json(),
        json!({
            "type": "object",
            "title": "Input",
            "required": ["prompt"],
            "properties": {
                "prompt": {
                    "type": "string", "title": "Prompt", "description": "What to say.", "minLength": 1, "maxLength": 20,
                    "x-order": 0,
                },
                "max_tokens": {
                    "type": "integer", "title": "Max Tokens", "description": "At most.", "default": 512, "minimum": 1,
                    "maximum": 4096, "x-order": 1,
                },
                "top_p": {
                    "type": "number", "title": "Top P", "description": "Nucleus.", "default": 0.95, "minimum": 0.0,
                    "maximum": 1.0, "x-order": 2,
                },
                "loud": {
                    "type": "boolean", "title": "Loud", "description": "Louder.", "default": false, "x-order": 3,
                },
                "seed": {
                    "type": "integer", "title": "Seed", "description": "Leave out for a random one.", "x-order": 4,
                    "nullable": true,
                },
                "scheduler": {
                    "allOf": [{ "$ref": "#/components/schemas/scheduler" }], "description": "Which.",
                    "default": "K_EULER", "x-order": 5,
                },
                "image": {
                    "type": "string", "title": "Image", "description": "A picture.", "format": "uri", "x-order": 6,
                    "nullable": true,
                },
            },
        })
    );
    let scheduler = json!({ "type": "string", "enum": ["DDIM", "K_EULER"], "title": "scheduler", "description": "An enumeration." });
    assert_eq!(Value::Object(schema().choices_json()), json!({ "scheduler": scheduler }));
    assert_eq!(
        schema().output_json(),
        json!({
            "type": "array", "items": { "type": "string" }, "title": "Output", "x-cog-array-type": "iterator",
            "x-cog-array-display": "concatenate",
        })
    );
}

#[test]
fn a_deployments_defaults_are_checked_and_take_the_place() {
    let changed = schema().with_defaults(&map(json!({ "prompt": "Hi", "top_p": 0.5 }))).unwrap();
    assert_eq!(changed.validate(&Map::new()), Ok(()));
    assert_eq!(changed.fill(&Map::new())["top_p"], json!(0.5));
    let refusal = |defaults| schema().with_defaults(&map(defaults)).unwrap_err();
    assert_eq!(refusal(json!({ "top_p": 2 })), "defaults.top_p: Must be less than or equal to 1, given 2",);
    assert!(refusal(json!({ "topp": 1 })).contains("defaults.topp: the model has no such input; it has prompt,"));
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,24}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({ "a": 1 })),
    ]
}

proptest! {
    #[test]
    fn what_passes_the_check_parses(values in prop::collection::vec(any_value(), 7), kept in any::<u8>()) {
        let fields = Input::fields();
        let pairs = fields.iter().zip(values).enumerate().filter(|(i, _)| kept & (1 << i) != 0);
        let input: Map = pairs.map(|(_, (field, value))| (field.name.to_owned(), value)).collect();
        let checked = schema().validate(&input);
        prop_assert_eq!(checked.clone().err(), Input::parse(&input).err());
        if checked.is_ok() {
            prop_assert_eq!(Input::parse(&input), Input::parse(&schema().fill(&input)));
        }
    }
}

#[test]
fn a_model_is_given_a_path_and_a_caller_may_not_name_one() {
    let local = map(json!({ "prompt": "x", "image": "file:///inputs/a%20b.png" }));
    assert!(schema().validate(&local).is_err() && schema().validate_here(&local).is_ok());
    let image = Input::parse(&local).unwrap().image.unwrap();
    assert_eq!(image.path().unwrap(), std::path::Path::new("/inputs/a b.png"));
    for unresolved in ["https://gears.example/a.png", "data:,x"] {
        assert_eq!(Uri(unresolved.into()).path(), None, "{unresolved}");
    }
    let named: Vec<_> = schema().file_fields().map(|field| field.name).collect();
    assert_eq!(named, ["image"]);
}
