//! Files that are audio, at any rate and channel count.

use super::*;
use crate::whisper::tests::{golden, wav};

fn read(bytes: Vec<u8>) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audio");
    std::fs::write(&path, bytes).unwrap();
    let mut audio = Audio::open(&path).unwrap();
    let mut out = Vec::new();
    while audio.read(&mut out).unwrap() {}
    assert_eq!(audio.complaint(), None);
    out
}

fn sine(rate: u32, seconds: f64) -> Vec<i16> {
    let step = 2.0 * std::f64::consts::PI * 440.0 / f64::from(rate);
    (0..(f64::from(rate) * seconds) as usize).map(|i| ((i as f64 * step).sin() * 20_000.0) as i16).collect()
}

#[test]
fn mono_at_16_khz_is_taken_as_it_is() {
    let samples = sine(16_000, 0.5);
    let expected: Vec<f32> = samples.iter().map(|&sample| f32::from(sample) / 32_768.0).collect();
    assert_eq!(read(wav(16_000, 1, &samples)), expected);
}

#[test]
fn every_rate_becomes_16_khz_within_a_sample_and_without_gain() {
    let expected: Vec<f32> = sine(16_000, 1.0).iter().map(|&sample| f32::from(sample) / 32_768.0).collect();
    let power = |samples: &[f32]| samples.iter().map(|v| v * v).sum::<f32>();
    // The largest step from one sample to the next.
    let step = expected.windows(2).map(|pair| (pair[0] - pair[1]).abs()).fold(0.0, f32::max);
    for rate in [8_000, 11_025, 22_050, 44_100, 48_000, 96_000] {
        let got = read(wav(rate, 1, &sine(rate, 1.0)));
        assert_eq!(got.len(), 16_000, "{rate}");
        let (got, expected) = (&got[800..15_200], &expected[800..15_200]);
        let worst = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
        assert!(worst < step, "{rate}: {worst}");
        let gain = power(got) / power(expected);
        assert!((gain - 1.0).abs() < 0.01, "{rate}: {gain}");
    }
}

/// How loud 440 Hz is in the middle of it.
fn loudness(samples: &[f32]) -> f64 {
    let middle = &samples[samples.len() / 4..samples.len() * 3 / 4];
    let angle = |i: usize| 2.0 * std::f64::consts::PI * 440.0 * i as f64 / 16_000.0;
    let along = |wave: fn(f64) -> f64| -> f64 {
        middle.iter().enumerate().map(|(i, &sample)| f64::from(sample) * wave(angle(i))).sum()
    };
    2.0 * along(f64::sin).hypot(along(f64::cos)) / middle.len() as f64
}

#[test]
fn every_container_and_codec_that_is_promised_is_read() {
    let files = "mp3.mp3 flac.flac vorbis.ogg flac.ogg aac.m4a alac.m4a aac.mp4 vorbis.webm aac.mkv pcm.aiff pcm.caf";
    for name in files.split(' ') {
        let seconds = if name.starts_with("pcm") || name.starts_with("alac") { 0.05 } else { 0.5 };
        let heard = read(std::fs::read(golden("formats").join(name)).unwrap());
        // Encoders begin and end with some silence of their own.
        let length = heard.len() as f64 / 16_000.0;
        assert!((seconds - 0.01..seconds + 0.15).contains(&length), "{name}: {length} s");
        let tone = loudness(&heard);
        assert!((0.4..0.55).contains(&tone), "{name}: {tone}");
    }
}

#[test]
fn a_codec_that_is_not_read_is_named_with_those_that_are() {
    for (name, codec) in [("opus.ogg", "Opus"), ("opus.webm", "Opus"), ("ac3.mkv", "AC-3")] {
        let why = Audio::open(&golden("formats").join(name)).err().unwrap().to_string();
        assert!(why.starts_with(&format!("audio: the codec {codec} is not read; readable are wav, ")), "{name}: {why}");
        assert!(why.contains("webm and mkv (Vorbis, "), "{why}");
    }
}

#[test]
fn channels_are_averaged() {
    let interleaved: Vec<i16> = sine(16_000, 0.2).iter().flat_map(|&sample| [sample, -sample, 300]).collect();
    assert!(read(wav(16_000, 3, &interleaved)).iter().all(|sample| (sample - 100.0 / 32_768.0).abs() < 1e-4));
}

#[test]
fn a_file_may_have_any_name_and_nothing_else_is_read() {
    let named = |uri: &str| file(&Uri(uri.into()));
    assert_eq!(named("file:///a%20100%25%20talk.wav").unwrap(), Path::new("/a 100% talk.wav"));
    for other in ["https://example.org/a.wav", "data:audio/wav;base64,AAEC", "file://a.wav", "/a.wav"] {
        let why = named(other).unwrap_err().to_string();
        assert!(why.contains("was not fetched") && why.contains(other), "{why}");
    }
}
