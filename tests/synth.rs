//! Random weights of a true shape, as a user makes, measures and serves them: always told from real ones.

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::support::pinion;

fn run(words: &[&str]) -> Output {
    pinion().args(words).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_written_shape_is_served_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("weights");
    let made = run(&["weights", "synth", "tiny", "--dtype", "f16", "--seed", "3", "-o", to.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert!(stderr(&made).contains("random weights of the shape tiny (f16, seed 3): 5 files"), "{}", stderr(&made));
    assert!(made.stdout.is_empty());

    let again = run(&["weights", "synth", "tiny", "-o", to.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("holds something already"), "{}", stderr(&again));

    let config = folder.path().join("cog.yaml");
    let model = format!("{{ name: mine, model: llama, path: \"{}\" }}", to.display());
    fs::write(&config, format!("native: {{ models: [{model}] }}")).unwrap();
    let config = config.to_str().unwrap();
    let said = run(&["run", "mine", "--config", config, "-i", "prompt=Hi", "-i", "max_tokens=4", "--json"]);
    let prediction: Value = serde_json::from_slice(&said.stdout).expect("one JSON document on stdout");
    assert_eq!(prediction["status"], "succeeded", "{prediction}");
}

#[test]
fn every_figure_from_random_weights_says_so() {
    let words = ["bench", "tiny", "--synth", "--dtype", "bf16", "--prompt-tokens", "16", "--decode-tokens", "4"];
    let title = "random weights of the shape tiny (bf16, seed 0)";
    let told = run(&words);
    assert!(String::from_utf8_lossy(&told.stdout).starts_with(title), "{}", stderr(&told));
    let json = run(&[&words[..], &["--json"]].concat());
    let body: Value = serde_json::from_slice(&json.stdout).expect("one JSON document on stdout");
    assert_eq!(body["random_weights"], title);
    assert!(body["decode_tokens_per_s"].as_f64().is_some_and(|speed| speed > 0.0), "{body}");
}

#[test]
fn a_cog_yaml_may_name_a_shape_for_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("cog.yaml");
    let serve = |shape: &str| {
        let model = format!("{{ name: fake, model: llama, synth: {shape}, precision: f32 }}");
        fs::write(&config, format!("native: {{ models: [{model}] }}")).unwrap();
        run(&["run", "fake", "--config", config.to_str().unwrap(), "-i", "prompt=Hi", "-i", "max_tokens=3", "--json"])
    };
    let said = serve("tiny");
    let prediction: Value = serde_json::from_slice(&said.stdout).expect("one JSON document on stdout");
    assert_eq!(prediction["status"], "succeeded", "{prediction}");
    let refused = serve("gpt-5");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("no shape is called \"gpt-5\"; there is llama-3-8b"), "{}", stderr(&refused));
}

#[test]
fn shapes_and_precisions_that_are_unknown_exit_with_2_and_those_there_are() {
    let cases: &[(&[&str], &str)] = &[
        (&["weights", "synth", "llama-9", "-o", "nowhere"], "there is llama-3-8b, llama-3-70b, smollm2-135m"),
        (&["weights", "synth", "tiny", "--dtype", "q4", "-o", "nowhere"], "[possible values: f32, f16, bf16]"),
        (&["bench", "llama-9", "--synth"], "there is llama-3-8b, llama-3-70b, smollm2-135m"),
        (&["bench", "smollm2", "--dtype", "f16"], "--synth"),
    ];
    for (words, expected) in cases {
        let output = run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(stderr(&output).contains(expected), "{words:?}: {}", stderr(&output));
    }
}
