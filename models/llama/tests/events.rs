//! What a prediction emits, and where it ends.

use ::prediction::{Event, Loaded, Outcome, Output};
use serde_json::json;

use super::{alone, golden, job, load, metric, pieces, spec, steps, tiny};

#[test]
fn a_prediction_starts_speaks_counts_and_ends() {
    let mut pipeline = tiny("tiny-llama3");
    let events = alone(&mut pipeline, json!({"prompt": "Hi", "temperature": 0, "max_tokens": 6, "seed": 9}));
    assert_eq!(events[0], Event::Started);
    assert_eq!(events[1], Event::Log("Using seed: 9\n".into()));
    assert!(matches!(events[2], Event::Output(Output::Item(_))), "{events:?}");
    assert_eq!(events.last(), Some(&Event::Ended(Outcome::Succeeded)));
    assert_eq!(metric(&events, "output_token_count"), json!(6));
    assert!(metric(&events, "input_token_count").as_u64().unwrap() > 5, "the template counts");
    assert!(metric(&events, "time_to_first_token").as_f64().unwrap() > 0.0);
    assert!(metric(&events, "tokens_per_second").as_f64().unwrap() > 0.0);
}

#[test]
fn nothing_said_is_an_empty_list() {
    let mut pipeline = tiny("tiny-llama3");
    let text = pieces(&alone(&mut pipeline, json!({"prompt": "Hi", "temperature": 0, "max_tokens": 6}))).concat();
    let first: String = text.chars().take(1).collect();
    let events = alone(&mut pipeline, json!({"prompt": "Hi", "temperature": 0, "stop_sequences": first}));
    assert!(events.contains(&Event::Output(Output::Whole(json!([])))), "{events:?}");
    assert!(pieces(&events).is_empty());
}

#[test]
fn a_stop_string_is_cut_out_of_what_was_said() {
    let mut pipeline = tiny("tiny-llama3");
    let whole = pieces(&alone(&mut pipeline, json!({"prompt": "Hi", "temperature": 0, "max_tokens": 30}))).concat();
    let characters: Vec<char> = whole.chars().collect();
    for at in [3, 8, 15] {
        let stop: String = characters[at..at + 3].iter().collect();
        if stop.contains(',') {
            continue;
        }
        let events =
            alone(&mut pipeline, json!({"prompt": "Hi", "temperature": 0, "max_tokens": 30, "stop_sequences": stop}));
        assert_eq!(pieces(&events).concat(), whole[..whole.find(&stop).unwrap()], "{stop:?}");
    }
}

#[test]
fn end_tokens_end_and_are_not_shown() {
    let mut pipeline = tiny("tiny-llama3");
    // Hot enough to meet one of three end tokens among 512 soon.
    let input = |min: i64| json!({"prompt": "Hi", "temperature": 5, "seed": 2, "max_tokens": 200, "min_tokens": min});
    let events = alone(&mut pipeline, input(-1));
    let said = metric(&events, "output_token_count").as_u64().unwrap();
    assert!(said < 200, "none came in 200 tokens");
    assert!(!pieces(&events).concat().contains("<|"));
    let longer = alone(&mut pipeline, input(said as i64 + 1));
    assert!(metric(&longer, "output_token_count").as_u64().unwrap() > said, "min_tokens keeps it speaking");
}

#[test]
fn the_text_ends_where_the_context_is_full_and_says_so() {
    let mut small = spec(&golden("tiny-llama3"));
    small.context_tokens = Some(40);
    let mut pipeline = load(&small).unwrap();
    let input = json!({"prompt": "Hi", "temperature": 0, "min_tokens": 100, "max_tokens": 100});
    let events = alone(&mut pipeline, input);
    let count = |name| metric(&events, name).as_u64().unwrap();
    assert_eq!(count("input_token_count") + count("output_token_count"), 40);
    let told = events.iter().any(|event| matches!(event, Event::Log(text) if text.contains("max_tokens is 100")));
    assert!(told, "{events:?}");
}

#[test]
fn a_prompt_template_replaces_the_chat() {
    let mut pipeline = tiny("tiny-llama3");
    let count = |pipeline: &mut _, input| metric(&alone(pipeline, input), "input_token_count");
    // The first token is written once, whether the template has it or not.
    for template in ["<|begin_of_text|>{prompt}", "{prompt}"] {
        let input = json!({"prompt": "x", "prompt_template": template, "max_tokens": 1});
        assert_eq!(count(&mut pipeline, input), json!(2), "{template}");
    }
}

#[test]
fn a_system_prompt_is_read() {
    let mut pipeline = tiny("tiny-llama3");
    let mut count = |input| metric(&alone(&mut pipeline, input), "input_token_count").as_u64().unwrap();
    let without = count(json!({"prompt": "Hi", "max_tokens": 1}));
    assert!(count(json!({"prompt": "Hi", "system_prompt": "Be kind", "max_tokens": 1})) > without + 2);
}

#[test]
fn capacity_is_what_was_asked_and_places_come_back() {
    let mut pipeline = tiny("tiny-llama3");
    assert_eq!((pipeline.capacity(), pipeline.active()), (4, 0));
    assert!(pipeline.bytes() > 500_000);
    for round in 0..3 {
        for n in 0..4 {
            pipeline.admit(job(&format!("{round}-{n}"), json!({"prompt": "Hi", "max_tokens": 2}))).unwrap();
        }
        assert_eq!(pipeline.active(), 4);
        assert!(pipeline.admit(job("one too many", json!({"prompt": "Hi"}))).is_err());
        steps(&mut pipeline, 100);
        assert_eq!(pipeline.active(), 0);
    }
}
