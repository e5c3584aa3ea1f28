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
fn a_bench_of_several_batches_loads_once_and_tells_each() {
    let words =
        ["bench", "tiny", "--synth", "--prompt-tokens", "8", "--decode-tokens", "4", "--batch", "1,3", "--json"];
    let told = run(&words);
    let text = String::from_utf8_lossy(&told.stdout);
    let results: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a JSON document")).collect();
    let numbers = |name: &str| -> Vec<f64> { results.iter().filter_map(|result| result[name].as_f64()).collect() };
    assert_eq!(numbers("batch"), [1.0, 3.0], "{}", stderr(&told));
    let loads = numbers("load_s");
    assert_eq!(loads[0], loads[1]);
    for (p50, p99) in numbers("token_p50_s").into_iter().zip(numbers("token_p99_s")) {
        assert!(0.0 < p50 && p50 <= p99, "{text}");
    }
    // Three predictions read the weights once and three times as much of the cache.
    let bytes = |i: usize| numbers("read_bytes_per_s")[i] * numbers("token_p50_s")[i];
    let weights = numbers("weights_bytes")[0];
    assert!(bytes(0) < bytes(1) && bytes(1) < 3.0 * bytes(0) && bytes(1) < 2.0 * weights, "{text}");
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
        (
            &["weights", "synth", "llama-9", "-o", "nowhere"],
            "there is llama-3-8b, llama-3-70b, llama-3.2-1b, smollm2-135m",
        ),
        (&["weights", "synth", "tiny", "--dtype", "q4", "-o", "nowhere"], "[possible values: f32, f16, bf16]"),
        (&["bench", "llama-9", "--synth"], "there is llama-3-8b, llama-3-70b, llama-3.2-1b, smollm2-135m"),
        (&["bench", "smollm2", "--dtype", "f16"], "--synth"),
    ];
    for (words, expected) in cases {
        let output = run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(stderr(&output).contains(expected), "{words:?}: {}", stderr(&output));
    }
}
