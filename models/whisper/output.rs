//! Segments as text, subtitles and the prediction's output. Knows the hosted model's formats, to the byte; refuses to know
//! how segments came about.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::clip::Segment;
use super::input::Format;
use super::languages::LANGUAGES;

/// The finished passes over one recording.
pub struct Transcript {
    pub language: usize,
    pub segments: Vec<Segment>,
    /// The text of all segments.
    pub text: String,
    /// The text of the second pass.
    pub translation: Option<String>,
}

impl Transcript {
    pub fn to_json(&self, format: Format) -> Value {
        let Self { segments, .. } = self;
        let transcription = match format {
            Format::Plain => self.text.clone(),
            Format::Srt => srt(segments),
            // Without its first line: the hosted model has none here, and callers put it there themselves.
            Format::Vtt => cues(segments),
        };
        let file = |mime: &str, text: &str| format!("data:{mime};base64,{}", STANDARD.encode(text));
        json!({
            "detected_language": LANGUAGES[self.language].1,
            "transcription": transcription,
            "segments": segments.iter().enumerate().map(|(id, segment)| segment.to_json(id)).collect::<Vec<_>>(),
            "translation": self.translation,
            "txt_file": file("text/plain", &lines(segments)),
            "srt_file": file("application/x-subrip", &srt(segments)),
            "vtt_file": file("text/vtt", &format!("WEBVTT\n\n{}", cues(segments))),
        })
    }
}

/// One line per segment, for the logs.
pub fn line(segment: &Segment) -> String {
    format!("[{} --> {}] {}\n", clock(segment.start, false, '.'), clock(segment.end, false, '.'), segment.text)
}

fn lines(segments: &[Segment]) -> String {
    segments.iter().map(|segment| format!("{}\n", segment.text.trim())).collect()
}

fn srt(segments: &[Segment]) -> String {
    let cue = |(index, segment): (usize, &Segment)| {
        let (start, end) = (clock(segment.start, true, ','), clock(segment.end, true, ','));
        format!("{}\n{start} --> {end}\n{}\n\n", index + 1, cue_text(segment))
    };
    segments.iter().enumerate().map(cue).collect()
}

/// The body of a WebVTT file.
fn cues(segments: &[Segment]) -> String {
    let cue = |segment: &Segment| {
        let (start, end) = (clock(segment.start, false, '.'), clock(segment.end, false, '.'));
        format!("{start} --> {end}\n{}\n\n", cue_text(segment))
    };
    segments.iter().map(cue).collect()
}

/// An arrow in a text would be a time's.
fn cue_text(segment: &Segment) -> String {
    segment.text.trim().replace("-->", "->")
}

/// `[hh:]mm:ss.mmm`.
pub fn clock(time: f64, always_hours: bool, point: char) -> String {
    let milliseconds = (time.max(0.0) * 1000.0).round_ties_even() as u64;
    let (hours, minutes) = (milliseconds / 3_600_000, milliseconds / 60_000 % 60);
    let (seconds, rest) = (milliseconds / 1000 % 60, milliseconds % 1000);
    let hours = if always_hours || hours > 0 { format!("{hours:02}:") } else { String::new() };
    format!("{hours}{minutes:02}:{seconds:02}{point}{rest:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript() -> Transcript {
        let segment = |start: f64, end: f64, text: &str| Segment {
            seek: 0,
            start,
            end,
            text: text.into(),
            tokens: vec![1],
            temperature: 0.2,
            mean_log_probability: -0.5,
            compression_ratio: 1.25,
            no_speech_probability: 0.5,
            words: None,
        };
        let segments = vec![segment(0.0, 2.5, " Hello --> you."), segment(3661.0, 3662.0, " Bye.")];
        Transcript { language: 0, segments, text: " Hello --> you. Bye.".into(), translation: None }
    }

    fn file(output: &Value, name: &str) -> String {
        let uri = output[name].as_str().unwrap();
        String::from_utf8(STANDARD.decode(uri.split_once(";base64,").unwrap().1).unwrap()).unwrap()
    }

    #[test]
    fn the_output_has_the_hosted_models_keys() {
        let output = transcript().to_json(Format::Plain);
        assert_eq!(output["detected_language"], "english");
        assert_eq!(output["transcription"], " Hello --> you. Bye.");
        assert_eq!(output["translation"], Value::Null);
        let segment = json!({"id": 1, "seek": 0, "start": 3661.0, "end": 3662.0, "text": " Bye.", "tokens": [1],
            "temperature": 0.2, "avg_logprob": -0.5, "compression_ratio": 1.25, "no_speech_prob": 0.5});
        assert_eq!(output["segments"][1], segment);
    }

    #[test]
    fn subtitles_are_written_as_players_read_them() {
        let srt = "1\n00:00:00,000 --> 00:00:02,500\nHello -> you.\n\n2\n01:01:01,000 --> 01:01:02,000\nBye.\n\n";
        let vtt = "00:00.000 --> 00:02.500\nHello -> you.\n\n01:01:01.000 --> 01:01:02.000\nBye.\n\n";
        let transcript = transcript();
        assert_eq!(transcript.to_json(Format::Srt)["transcription"], srt);
        assert_eq!(transcript.to_json(Format::Vtt)["transcription"], vtt);
        let output = transcript.to_json(Format::Plain);
        assert_eq!(file(&output, "srt_file"), srt);
        assert_eq!(file(&output, "vtt_file"), format!("WEBVTT\n\n{vtt}"));
        assert_eq!(file(&output, "txt_file"), "Hello --> you.\nBye.\n");
    }
}
