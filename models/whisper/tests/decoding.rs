//! What each word of the input does to the text, on random weights: which are taken is told by what the net is made to say,
//! not by whether it is right.

use super::*;

/// A net with a recording of two windows.
struct Ear {
    _folder: tempfile::TempDir,
    pipeline: Pipeline,
    audio: String,
}

impl Ear {
    fn new(seed: u64) -> Self {
        let folder = tiny::write(seed);
        let audio = folder.path().join("tone.wav");
        std::fs::write(&audio, wav(16_000, 1, &tone(41))).unwrap();
        Self { pipeline: load(&spec(folder.path())).unwrap(), audio: file(&audio), _folder: folder }
    }

    fn input(&self, more: Value) -> Value {
        let mut input = json!({"audio": self.audio, "language": "en", "temperature_increment_on_fallback": 0});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    }

    fn hear(&mut self, more: Value) -> Value {
        let input = self.input(more);
        super::hear(&mut self.pipeline, input)
    }
}

fn segments(output: &Value) -> &[Value] {
    output["segments"].as_array().unwrap()
}

fn tokens(output: &Value) -> Vec<u64> {
    let of = |segment: &Value| segment["tokens"].as_array().unwrap().clone();
    segments(output).iter().flat_map(of).map(|token| token.as_u64().unwrap()).collect()
}

/// Thresholds that nothing meets, everything meets, and the temperatures in between.
#[test]
fn a_window_that_fails_a_threshold_is_tried_again_at_the_next_temperature() {
    let mut ear = Ear::new(20);
    let never = json!({"logprob_threshold": -1000, "compression_ratio_threshold": 1000, "no_speech_threshold": 2});
    for (more, expected) in [
        (json!({"temperature_increment_on_fallback": 0.2}), 0.0),
        (json!({"temperature_increment_on_fallback": 0.2, "logprob_threshold": 0}), 1.0),
        (json!({"temperature_increment_on_fallback": 0.2, "compression_ratio_threshold": 0}), 1.0),
        (json!({"temperature_increment_on_fallback": 0.25, "temperature": 0.25, "logprob_threshold": 0}), 1.0),
        (json!({"temperature_increment_on_fallback": 0, "temperature": 0.25, "logprob_threshold": 0}), 0.25),
    ] {
        let mut input = never.clone();
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let heard = ear.hear(input);
        assert!(!segments(&heard).is_empty(), "{more}");
        assert!(segments(&heard).iter().all(|segment| segment["temperature"] == json!(expected)), "{more}: {heard}");
    }
}

#[test]
fn a_window_that_is_unlikely_and_probably_silent_is_left_out_at_once() {
    let mut ear = Ear::new(20);
    let silent = json!({"no_speech_threshold": -1, "logprob_threshold": 0, "temperature_increment_on_fallback": 0.2});
    assert_eq!(ear.hear(silent)["segments"], json!([]));
    assert_ne!(ear.hear(json!({"no_speech_threshold": -1, "logprob_threshold": -1000}))["segments"], json!([]));
}

#[test]
fn suppressed_tokens_are_not_said() {
    let mut ear = Ear::new(20);
    let text = |output: &Value| tokens(output).into_iter().filter(|&token| token < 50_257).collect::<Vec<_>>();
    let plain = text(&ear.hear(json!({})));
    let token = plain[plain.len() / 2];
    let heard = ear.hear(json!({"suppress_tokens": format!("-1, {token}")}));
    assert!(!text(&heard).is_empty() && !text(&heard).contains(&token), "{token}: {heard}");
}

#[test]
fn a_prompt_is_read_before_the_first_window_and_the_text_so_far_before_the_next_ones() {
    let mut ear = Ear::new(20);
    let window = |output: &Value, first: bool| -> Vec<String> {
        let of = |segment: &&Value| (segment["seek"] == json!(0)) == first;
        segments(output).iter().filter(of).map(|segment| segment["text"].to_string()).collect()
    };
    let plain = ear.hear(json!({}));
    let alone = ear.hear(json!({"condition_on_previous_text": false}));
    assert_eq!(window(&plain, true), window(&alone, true), "nothing was said before the first one");
    assert_ne!(window(&plain, false), window(&alone, false));
    let prompted = ear.hear(json!({"initial_prompt": "Gears, cogs and pinions."}));
    assert_ne!(window(&plain, true), window(&prompted, true));
}

/// While the second window is still to come.
#[test]
fn segments_are_told_as_they_are_ready_and_how_far_it_is() {
    let mut ear = Ear::new(20);
    let input = ear.input(json!({}));
    ear.pipeline.admit(job("s", input)).unwrap();
    let (mut events, mut told, mut steps) = (Vec::new(), None, 0);
    while ear.pipeline.active() > 0 {
        ear.pipeline.step(&mut |id, event| events.push((id.0.clone(), event))).unwrap();
        steps += 1;
        if told.is_none() && logs(&events).contains("] ") && logs(&events).contains(" --> ") {
            told = Some(steps);
        }
    }
    let told = told.expect("segments are told");
    assert!(told + 5 < steps, "step {told} of {steps}");
    let (logs, output) = (logs(&events), output("s", &events));
    let mut lines = logs.lines().filter(|line| line.contains(" --> "));
    for segment in segments(&output).iter().filter(|segment| segment["text"] != "") {
        let line = lines.next().unwrap_or_default();
        assert!(
            line.ends_with(segment["text"].as_str().unwrap().lines().last().unwrap_or_default()),
            "{line}: {segment}"
        );
    }
    assert!(logs.contains(" % (00:") && logs.contains(" of 00:41.000)\n"), "{logs}");
}
