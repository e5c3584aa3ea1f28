//! The real weights on real speech, beside openai-whisper's transcripts in golden/. The weights come from the cache, the
//! recordings from `PINION_RECORDINGS`: see `crate::real`.

use candle_core::{DType, Device};

use crate::real::recordings;

use super::super::audio::Audio;
use super::super::golden::{self as numbers, Golden};
use super::super::weights::Opened;
use super::*;

const MODELS: [&str; 2] = ["whisper-tiny.en", "whisper-base"];
/// Seconds: a step of the timestamps.
const TIME_TOLERANCE: f64 = 0.02 + 1e-9;
const WORD_TOLERANCE: f64 = 0.1 + 1e-9;

fn weights(name: &str) -> Option<PathBuf> {
    crate::real::weights(&super::super::ENTRY, name)
}

fn transcripts(name: &str) -> serde_json::Map<String, Value> {
    serde_json::from_slice(&std::fs::read(golden(&format!("{name}.json"))).unwrap()).unwrap()
}

/// The path of one of the golden's recordings.
fn path(recordings: &Path, key: &str) -> PathBuf {
    if key.contains('/') { recordings.join("clips").join(key) } else { recordings.join(key) }
}

/// Temperature 0 alone, as the golden has it.
fn greedy(audio: &str, more: Value) -> Value {
    let mut input = json!({"audio": audio, "temperature_increment_on_fallback": 0});
    input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    input
}

/// Words and times of segments, one by one.
fn same_segments(case: &str, ours: &Value, theirs: &Value) {
    let (ours, theirs) = (ours.as_array().unwrap(), theirs.as_array().unwrap());
    let texts =
        |segments: &[Value]| segments.iter().map(|s| s["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(texts(ours), texts(theirs), "{case}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        for time in ["start", "end"] {
            let (a, b) = (ours[time].as_f64().unwrap(), theirs[time].as_f64().unwrap());
            assert!((a - b).abs() <= TIME_TOLERANCE, "{case}: {time} {a}, not {b}: {theirs}");
        }
        assert_eq!(ours["tokens"], theirs["tokens"], "{case}");
        let (a, b) = (ours["avg_logprob"].as_f64().unwrap(), theirs["avg_logprob"].as_f64().unwrap());
        assert!((a - b).abs() < 2e-3, "{case}: mean log probability {a}, not {b}");
    }
}

#[test]
fn features_encoder_logits_and_tokens_are_the_references() {
    let Some(recordings) = recordings() else { return };
    for name in MODELS {
        let Some(weights) = weights(name) else { continue };
        let opened = Opened::open(&weights).unwrap();
        let golden = Golden::read(&golden(&format!("{name}.safetensors"))).unwrap();
        let errors =
            |dtype| numbers::errors(&opened, &recordings.join("jfk.wav"), &golden, &Device::Cpu, dtype).unwrap();
        let plain = errors(DType::F32);
        println!("{name}: {plain:?}");
        assert!(plain.input_features.unwrap() <= numbers::FEATURE_TOLERANCE, "{name}: {plain:?}");
        assert!(plain.encoder_out.unwrap() <= numbers::TOLERANCE, "{name}: {plain:?}");
        assert!(plain.first_logits.unwrap() <= numbers::TOLERANCE, "{name}: {plain:?}");
        assert_eq!(plain.tokens, 0, "{name}: {plain:?}");
        // The files hold f16: only what the decoder remembers is rounded.
        let half = errors(DType::F16);
        assert_eq!((half.tokens, half.encoder_out), (0, plain.encoder_out), "{name}: {half:?}");
    }
}

#[test]
fn every_clip_is_heard_as_the_reference_hears_it() {
    let Some(recordings) = recordings() else { return };
    for name in MODELS {
        let Some(weights) = weights(name) else { continue };
        let mut pipeline = load(&spec(&weights)).unwrap();
        for (key, theirs) in transcripts(name).into_iter().filter(|(key, _)| key != "ten-minutes.wav") {
            let audio = file(&path(&recordings, &key));
            let case = format!("{name}, {key}");
            let ours = hear(&mut pipeline, greedy(&audio, json!({})));
            assert_eq!(ours["transcription"], theirs["text"], "{case}");
            let code = theirs["language"].as_str().unwrap();
            let language = super::super::languages::LANGUAGES.iter().find(|(known, _)| *known == code).unwrap().1;
            assert_eq!(ours["detected_language"], language, "{case}");
            same_segments(&case, &ours["segments"], &theirs["segments"]);
            if let Some(beams) = theirs.get("beams") {
                let ours = hear(&mut pipeline, greedy(&audio, json!({"beam_size": 5, "patience": 1.5})));
                same_segments(&format!("{case}, beams"), &ours["segments"], beams);
            }
            if let Some(translated) = theirs.get("translated") {
                let ours = hear(&mut pipeline, greedy(&audio, json!({"translate": true})));
                assert_eq!(ours["translation"], *translated, "{case}");
            }
            if let Some(words) = theirs.get("with_words") {
                let ours = hear(&mut pipeline, greedy(&audio, json!({"word_timestamps": true})));
                same_words(&case, &ours["segments"], words);
            }
        }
    }
}

fn same_words(case: &str, ours: &Value, theirs: &Value) {
    let words = |segments: &Value| -> Vec<Value> {
        let of = |segment: &Value| segment["words"].as_array().cloned().unwrap_or_default();
        segments.as_array().unwrap().iter().flat_map(of).collect()
    };
    let (ours, theirs) = (words(ours), words(theirs));
    let texts = |words: &[Value]| words.iter().map(|word| word["word"].clone()).collect::<Vec<_>>();
    assert_eq!(texts(&ours), texts(&theirs), "{case}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        for time in ["start", "end"] {
            let (a, b) = (ours[time].as_f64().unwrap(), theirs[time].as_f64().unwrap());
            assert!((a - b).abs() <= WORD_TOLERANCE, "{case}: {time} {a}, not {b}: {theirs}");
        }
    }
}

/// The reference's ten minutes, made of the same clips: golden/reference.py has the recipe in its own words. Gives when
/// each clip begins, in seconds.
fn ten_minutes(recordings: &Path, keys: &[String]) -> (Vec<i16>, Vec<(String, f64)>) {
    let read = |key: &String| {
        let mut audio = Audio::open(&path(recordings, key)).unwrap();
        let mut samples = Vec::new();
        while audio.read(&mut samples).unwrap() {}
        samples
    };
    let clips: Vec<Vec<f32>> = keys.iter().map(read).collect();
    let (mut samples, mut turns, mut seconds, mut turn) = (Vec::new(), Vec::new(), 0.0, 0usize);
    while seconds < 600.0 {
        let which = (turn * 7 + turn / 3) % clips.len();
        let clip = &clips[which];
        turns.push((keys[which].clone(), seconds));
        let silence = 0.4 + 8.6 * (turn as f64 * 0.618034 % 1.0).powi(3);
        samples.extend(clip.iter().map(|v| (v * 32_768.0).round_ties_even().clamp(-32_768.0, 32_767.0) as i16));
        samples.extend(vec![0; (silence * 16_000.0) as usize]);
        seconds += clip.len() as f64 / 16_000.0 + silence;
        turn += 1;
    }
    samples.truncate(600 * 16_000);
    (samples, turns)
}

fn ten_minutes_of(name: &str) {
    let (Some(recordings), Some(weights)) = (recordings(), weights(name)) else { return };
    let all = transcripts(name);
    let english = |key: &&String| *key == "jfk.wav" || key.starts_with("en/");
    let keys: Vec<String> = all.keys().filter(english).cloned().collect();
    let theirs = &all["ten-minutes.wav"];
    let folder = tempfile::tempdir().unwrap();
    let audio = folder.path().join("ten-minutes.wav");
    std::fs::write(&audio, wav(16_000, 1, &ten_minutes(&recordings, &keys).0)).unwrap();
    let mut pipeline = load(&spec(&weights)).unwrap();
    let began = std::time::Instant::now();
    let ours = hear(&mut pipeline, greedy(&file(&audio), json!({})));
    println!("{name}: ten minutes in {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(ours["transcription"], theirs["text"], "{name}");
    same_segments(name, &ours["segments"], &theirs["segments"]);
}

#[test]
fn ten_minutes_with_silences_are_heard_as_the_reference_hears_them() {
    ten_minutes_of("whisper-tiny.en");
}

#[test]
fn ten_minutes_with_silences_are_heard_by_base_as_the_reference_hears_them() {
    ten_minutes_of("whisper-base");
}

#[test]
fn half_precision_and_batches_hear_the_same_words() {
    let (Some(recordings), Some(weights)) = (recordings(), weights("whisper-tiny.en")) else { return };
    let spec = LoadSpec { precision: None, ..spec(&weights) };
    let mut pipeline = load(&spec).unwrap();
    let theirs = &transcripts("whisper-tiny.en")["jfk.wav"];
    for more in [json!({}), json!({"batch_size": 4}), json!({"vad_filter": true})] {
        let ours = hear(&mut pipeline, greedy(&file(&recordings.join("jfk.wav")), more.clone()));
        let plain = |text: &Value| text.as_str().unwrap().replace([',', '.'], "").trim().to_lowercase();
        assert_eq!(plain(&ours["transcription"]), plain(&theirs["text"]), "{more}");
    }
}

/// Its silences left out and its windows decoded together: fewer windows, and everything is heard where it was said. The
/// text before is no prompt there, so that the words need not be the reference's.
#[test]
fn long_audio_in_batches_takes_fewer_windows_and_hears_everything_in_its_place() {
    const SECONDS: usize = 150;
    let (Some(recordings), Some(weights)) = (recordings(), weights("whisper-tiny.en")) else { return };
    let all = transcripts("whisper-tiny.en");
    let keys: Vec<String> = all.keys().filter(|key| *key != "ten-minutes.wav").cloned().collect();
    let folder = tempfile::tempdir().unwrap();
    let audio = folder.path().join("long.wav");
    let (samples, turns) = ten_minutes(&recordings, &keys);
    std::fs::write(&audio, wav(16_000, 1, &samples[..16_000 * SECONDS])).unwrap();
    let mut pipeline = load(&spec(&weights)).unwrap();
    let mut hear = |more: Value| {
        pipeline.admit(job("l", greedy(&file(&audio), more))).unwrap();
        let events = finish(&mut pipeline);
        let windows = events.iter().find_map(|(_, event)| match event {
            Event::Metric { name, value } if name == "windows" => value.as_u64(),
            _ => None,
        });
        (output("l", &events), windows.unwrap())
    };
    let (_, windows) = hear(json!({}));
    let (together, fewer) = hear(json!({"batch_size": 8}));
    assert!(fewer < windows, "{fewer} windows, not fewer than {windows}");
    let segments = together["segments"].as_array().unwrap();
    let speech = turns.iter().filter(|(key, start)| key == "jfk.wav" && start + 11.0 < SECONDS as f64);
    for (_, start) in speech {
        // A small model's own times stray by seconds; what it says is about what was said then.
        let near = |s: &&Value| {
            let said = s["text"].as_str().is_some_and(|text| text.to_lowercase().contains("fellow americans"));
            said && s["start"].as_f64().unwrap() < start + 11.0 && s["end"].as_f64().unwrap() > *start
        };
        assert!(segments.iter().find(near).is_some(), "nobody speaks at {start}: {together}");
    }
}
