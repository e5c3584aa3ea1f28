//! Who shares a step with whom changes nothing, and what a prediction tells while it runs.

use super::*;

/// Everybody tells the same alone and together: greedy, sampled, by beams, translated, in batches of windows.
#[test]
fn a_prediction_is_told_the_same_in_any_company() {
    let folder = tiny::write(3);
    let mut pipeline = load(&spec(folder.path())).unwrap();
    let audio = folder.path().join("tone.wav");
    std::fs::write(&audio, wav(16_000, 1, &tone(41))).unwrap();
    let input = |more: Value| {
        let mut input = json!({"audio": file(&audio), "language": "en", "temperature_increment_on_fallback": 0});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    };
    let inputs = [
        input(json!({})),
        input(json!({"temperature": 0.7, "best_of": 3, "seed": 5})),
        input(json!({"beam_size": 3, "patience": 1.5})),
        input(json!({"batch_size": 3, "word_timestamps": true, "language": "auto"})),
    ];
    let alone: Vec<Value> = inputs.iter().map(|input| hear(&mut pipeline, input.clone())).collect();
    for (index, input) in inputs.iter().enumerate() {
        pipeline.admit(job(&index.to_string(), input.clone())).unwrap();
    }
    let events = finish(&mut pipeline);
    for (index, alone) in alone.iter().enumerate() {
        assert_eq!(output(&index.to_string(), &events), *alone, "{}", inputs[index]);
    }
    assert!(alone[0]["segments"].as_array().is_some_and(|segments| !segments.is_empty()));
    assert_ne!(alone[0]["transcription"], alone[1]["transcription"]);
}

#[test]
fn seeds_repeat_and_differ() {
    let folder = tiny::write(4);
    let mut pipeline = load(&spec(folder.path())).unwrap();
    let audio = folder.path().join("tone.wav");
    std::fs::write(&audio, wav(16_000, 1, &tone(9))).unwrap();
    let mut hear = |seed: u64| {
        let input = json!({"audio": file(&audio), "language": "fr", "temperature": 1.0, "seed": seed});
        super::hear(&mut pipeline, input)["transcription"].clone()
    };
    assert_eq!(hear(1), hear(1));
    assert_ne!(hear(1), hear(2));
}

#[test]
fn a_cancelled_prediction_is_gone_at_once_and_the_others_go_on() {
    let folder = tiny::write(5);
    let mut pipeline = load(&spec(folder.path())).unwrap();
    let audio = folder.path().join("tone.wav");
    std::fs::write(&audio, wav(16_000, 1, &tone(31))).unwrap();
    for id in ["a", "b"] {
        pipeline.admit(job(id, json!({"audio": file(&audio), "language": "en"}))).unwrap();
    }
    let mut events = Vec::new();
    for _ in 0..9 {
        pipeline.step(&mut |id, event| events.push((id.0.clone(), event))).unwrap();
    }
    pipeline.cancel(&Id::from("a"));
    assert_eq!(pipeline.active(), 1);
    let rest = finish(&mut pipeline);
    assert!(rest.iter().all(|(id, _)| id == "b"), "{rest:?}");
    assert!(matches!(rest.last(), Some((_, Event::Ended(Outcome::Succeeded)))));
}

#[test]
fn events_begin_with_the_start_and_end_with_the_output_and_its_metrics() {
    let folder = tiny::write(6);
    let mut pipeline = load(&spec(folder.path())).unwrap();
    let audio = folder.path().join("stereo.wav");
    std::fs::write(&audio, wav(44_100, 2, &tone(12))).unwrap();
    pipeline.admit(job("a", json!({"audio": file(&audio), "model": "large-v3", "translate": true}))).unwrap();
    let events = finish(&mut pipeline);
    assert_eq!(events[0].1, Event::Started);
    let logs = logs(&events);
    for expected in
        ["model large-v3 was asked for; this deployment has ", "Detected language: ", "Translating\n", "of audio\n"]
    {
        assert!(logs.contains(expected), "{expected}: {logs}");
    }
    let metric = |wanted: &str| {
        events.iter().find_map(|(_, event)| match event {
            Event::Metric { name, value } if name == wanted => Some(value.clone()),
            _ => None,
        })
    };
    // 12 s of 16 kHz samples, played as stereo at 44.1 kHz.
    assert_eq!(metric("audio_duration"), Some(json!(2)));
    assert!(metric("output_token_count").is_some_and(|count| count.is_u64()));
    let output = output("a", &events);
    assert!(
        output["translation"].is_string() && output["vtt_file"].as_str().unwrap().starts_with("data:text/vtt;base64,")
    );
    assert!(matches!(events.last(), Some((_, Event::Ended(Outcome::Succeeded)))));
}

/// No model hears what is not there.
#[test]
fn digital_silence_costs_no_forward_and_gives_no_text() {
    let folder = tiny::write(7);
    let mut pipeline = load(&spec(folder.path())).unwrap();
    let audio = folder.path().join("silence.wav");
    std::fs::write(&audio, wav(16_000, 1, &vec![0; 16_000 * 600])).unwrap();
    for more in [json!({}), json!({"vad_filter": true}), json!({"batch_size": 4})] {
        let mut input = json!({"audio": file(&audio), "language": "en"});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pipeline.admit(job("s", input)).unwrap();
        let events = finish(&mut pipeline);
        let output = output("s", &events);
        assert_eq!((&output["transcription"], &output["segments"]), (&json!(""), &json!([])));
        let windows = events.iter().any(
            |(_, event)| matches!(event, Event::Metric { name, value } if name == "windows" && *value == json!(0)),
        );
        assert!(windows, "{more}");
    }
}
