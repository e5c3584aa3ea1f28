//! The echo model as something that a cog.yaml can ask for: `model: echo` with `synth: nothing`. For the tests and benches of
//! the servers; it says back what it was told, and is listed nowhere.

use std::sync::Arc;

use models::Entry;
use prediction::PredictError;
use runner::synth::{Plan, Shape};
use schema::{ModelSchema, Output};
use worker::echo::Echo;

schema::input! {
    /// What the echo model reads, from a caller or from a deployment's defaults; `worker::echo` says what each does.
    pub struct Input {
        text: String { description: "What to say." }
        pieces: i64 { description: "In how many pieces.", default: 1, min: 1, max: 5000 }
        temperature: f64 { description: "Unused.", default: 0.7, min: 0, max: 5 }
        style: String { description: "Unused.", default: "plain", choices: &["plain", "loud"] }
        hold: bool { description: "After the last piece, wait to be cancelled.", default: false }
        until: Option<String> { description: "The same, or until this file is there." }
        log: Option<String> { description: "A line for the logs.", max_len: 50 }
        follows: Option<String> { description: "What this file gets, too." }
        fail: Option<String> { description: "Fail so after the last piece." }
        crash: Option<String> { description: "Break the model so." }
        panic: Option<String> { description: "The same by a panic." }
        file: Option<schema::Uri> { description: "Say the size and the digest of this file in place of the text." }
        gives: Option<String> { description: "Give the text as files." }
        mime: Option<String> { description: "Of this type." }
        load_says: Option<String> { description: "Of a deployment: said while it loads." }
        load_fails: Option<String> { description: "Of a deployment: why it does not load." }
        load_waits_for: Option<String> { description: "Of a deployment: it loads when this file is there." }
    }
}

pub const ENTRY: Entry = Entry {
    name: "echo",
    schema: || ModelSchema { input: Input::fields(), output: Output::TextIterator },
    model: || Arc::new(Echo),
    lock: "",
    manifest: "",
    bench: |_, _, _| Err(nothing("measure")),
    golden: |_, _, _, _, _| Err(nothing("compare")),
    synth: &[Shape {
        name: "nothing",
        about: "",
        dtype: "f32",
        listed: false,
        plan: |_| Plan { files: vec![], tensors: vec![] },
    }],
};

fn nothing(what: &str) -> PredictError {
    PredictError::FixInput(format!("the echo model has no numbers to {what}"))
}
