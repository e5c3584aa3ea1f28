//! What is refused, before or during the work, and in which words.

use super::*;

fn refused(pipeline: &mut Pipeline, input: Value) -> String {
    match pipeline.admit(job("r", input)) {
        Err(why) => {
            assert!(matches!(why, PredictError::FixInput(_)), "{why:?}");
            assert_eq!(pipeline.active(), 0);
            why.to_string()
        }
        Ok(()) => failure(&finish(pipeline)),
    }
}

#[test]
fn bad_audio_is_refused_with_what_is_wrong_and_what_is_read() {
    let folder = tiny::write(1);
    let mut pipeline = load(&spec(folder.path())).unwrap();
    let opus =
        [b"OggS\0\x02".as_slice(), &[0; 8], &[1, 0, 0, 0], &[0; 8], &[1, 19], b"OpusHead\x01\x01", &[0; 9]].concat();
    for (name, bytes, expected) in [
        ("empty", vec![], "the file is empty (0 bytes)"),
        ("text", b"This is a letter, and no sound at all. ".repeat(200), "not audio"),
        ("zeros", vec![0; 70_000], "not audio"),
        ("png", [b"\x89PNG\r\n\x1a\n".as_slice(), &[7; 9000]].concat(), "not audio"),
        ("zero-length", wav(16_000, 1, &[]), "the file has no samples"),
        ("opus", opus, "audio: "),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let said = refused(&mut pipeline, json!({"audio": file(&path)}));
        assert!(said.starts_with("audio: ") && said.contains(expected), "{name}: {said}");
        if expected == "not audio" {
            assert!(said.contains("mp3, flac, ogg"), "{name}: {said}");
        }
    }
    for (audio, expected) in [
        (json!("file:///nowhere/a.wav"), "the file cannot be read"),
        (json!("https://example.org/a.wav"), "was not fetched"),
    ] {
        let said = refused(&mut pipeline, json!({"audio": audio}));
        assert!(said.contains(expected), "{audio}: {said}");
    }
}

#[test]
fn a_file_that_was_cut_is_heard_as_far_as_it_goes_and_the_logs_say_so() {
    let folder = tiny::write(2);
    let mut pipeline = load(&spec(folder.path())).unwrap();
    let path = folder.path().join("cut.wav");
    let whole = wav(16_000, 1, &tone(20));
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    pipeline.admit(job("c", json!({"audio": file(&path), "language": "en"}))).unwrap();
    let events = finish(&mut pipeline);
    assert!(matches!(events.last(), Some((_, Event::Ended(Outcome::Succeeded)))), "{:?}", events.last());
    let logs = logs(&events);
    assert!(logs.contains("00:09.9") || logs.contains("00:10.0"), "{logs}");
    assert!(logs.contains("audio: the file"), "{logs}");
}

#[test]
fn inputs_that_mean_nothing_here_are_refused_before_the_work() {
    let folder = tiny::write(2);
    let mut pipeline = load(&spec(folder.path())).unwrap();
    let audio = folder.path().join("tone.wav");
    std::fs::write(&audio, wav(16_000, 1, &tone(2))).unwrap();
    for (more, expected) in [
        (json!({"temperature": -1}), "temperature is -1"),
        (json!({"language": "yue"}), "language is yue (cantonese), which this model lacks: it hears 99 languages"),
        (json!({"language": "Elvish"}), "language"),
        (json!({"transcription": "pdf"}), "transcription"),
        (json!({"suppress_tokens": "60000"}), "suppress_tokens has 60000; -1, or 0 to 51864"),
        (json!({"initial_prompt": "a <|endoftext|> b"}), "initial_prompt: the text contains <|endoftext|>"),
        (json!({"beam_size": 0}), "beam_size"),
    ] {
        let mut input = json!({"audio": file(&audio)});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let said = refused(&mut pipeline, input);
        assert!(said.contains(expected), "{more}: {said}");
    }
    for n in 0..pipeline.capacity() {
        pipeline.admit(job(&n.to_string(), json!({"audio": file(&audio)}))).unwrap();
    }
    let full = pipeline.admit(job("full", json!({"audio": file(&audio)}))).unwrap_err();
    assert!(matches!(full, PredictError::RetryLater(_)), "{full:?}");
}

#[test]
fn weights_that_contradict_their_config_are_refused() {
    let folder = tiny::write(8);
    let path = folder.path().join("config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (name, value, expected) in [
        ("decoder_layers", json!(2), "decoder.layers.1"),
        ("num_mel_bins", json!(128), "tensor encoder.conv1.weight is [64, 80, 3]; the config needs [64, 128, 3]"),
        ("vocab_size", json!(51866), "tensor decoder.embed_tokens.weight"),
    ] {
        let mut config = config.clone();
        config[name] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let why = load(&spec(folder.path())).err().unwrap().to_string();
        assert!(why.contains(expected), "{name}: {why}");
    }
    let empty = tempfile::tempdir().unwrap();
    let why = load(&spec(empty.path())).err().unwrap().to_string();
    assert!(why.contains("holds neither model.bin (CTranslate2) nor config.json"), "{why}");
}
