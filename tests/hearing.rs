//! Speech to text through the whole program: recordings behind URLs, what is no recording, what is asked wrongly, and how
//! much memory long or lying things take. Real weights, real HTTP; refuses to know the net.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::processes::{peak_bytes, worker_of};
use crate::support::shelf::{Answer, Shelf};
use crate::support::{Server, output_of, pinion, recordings};

/// An input's limits in these tests: bytes, and seconds of fetching.
const INPUT_BYTES: u64 = 100_000_000;
const FETCH_SECONDS: u64 = 8;
/// Longer than a page of an operating system, shorter than any file that would be held in memory.
const FLAT_BYTES: u64 = 64 << 20;
const SAID: &str =
    "And so my fellow Americans ask not what your country can do for you ask what you can do for your country";

fn speech() -> Vec<u8> {
    fs::read(recordings().join("jfk.wav")).unwrap()
}

fn serve(folder: &Path) -> Server {
    let config = folder.join("cog.yaml");
    let models = "[{ name: ear, model: whisper, weights: whisper-tiny.en, preload: true }]";
    let limits = format!("{{ input_bytes: {INPUT_BYTES}, fetch_seconds: {FETCH_SECONDS} }}");
    fs::write(&config, format!("native: {{ models: {models}, limits: {limits} }}\n")).unwrap();
    Server::start(&folder.join("data"), &["--config", config.to_str().unwrap()])
}

fn ask(server: &Server, input: Value) -> (u16, Value) {
    server.post("/v1/models/pinion/ear/predictions", &json!({ "input": input }))
}

/// Asks for all at once; how each of them ended.
fn hear_all(server: &Server, inputs: Vec<Value>) -> Vec<Value> {
    let ids: Vec<String> = inputs
        .into_iter()
        .map(|input| {
            let (code, prediction) = ask(server, input);
            assert_eq!(code, 201, "{prediction}");
            prediction["id"].as_str().unwrap().to_owned()
        })
        .collect();
    ids.iter().map(|id| server.finished(id)).collect()
}

fn hear(server: &Server, input: Value) -> Value {
    hear_all(server, vec![input]).remove(0)
}

fn said(prediction: &Value) -> String {
    let text = prediction["output"]["transcription"].as_str();
    text.unwrap_or_else(|| panic!("nothing was heard: {prediction}")).replace(',', "").trim().to_owned()
}

fn fails(prediction: &Value, expected: &str, case: &str) {
    let error = prediction["error"].as_str().unwrap_or_default();
    assert!(prediction["status"] == "failed" && error.contains(expected), "{case}: {expected:?}, not {prediction}");
}

#[test]
fn what_is_no_recording_fails_and_names_what_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path());
    let header =
        [&b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0"[..], &16_000u32.to_le_bytes(), &32_000u32.to_le_bytes()];
    let zero_length = [&header.concat()[..], b"\x02\0\x10\0data\0\0\0\0"].concat();
    let shelf = Shelf::open(move |path| match path {
        "/letter.wav" => Answer::File("audio/wav", b"This is a letter, and no sound at all. ".repeat(200)),
        "/empty.wav" => Answer::File("audio/wav", Vec::new()),
        "/zero-length.wav" => Answer::File("audio/wav", zero_length.clone()),
        _ => Answer::Missing,
    });
    let cases = [
        ("letter.wav", "audio: the file is not audio of a kind that is read"),
        ("letter.wav", "readable are wav, aiff, caf, mp3, flac, ogg (Vorbis, FLAC), m4a"),
        ("empty.wav", "audio: the file is empty (0 bytes)"),
        ("zero-length.wav", "audio: the file has no samples"),
        ("absent.wav", "answered 404 Not Found"),
    ];
    let inputs = cases.iter().map(|(name, _)| json!({ "audio": format!("{}/{name}", shelf.base) }));
    for (prediction, (name, expected)) in hear_all(&server, inputs.collect()).iter().zip(cases) {
        fails(prediction, expected, name);
    }
}

#[test]
fn a_recording_that_was_cut_in_the_middle_is_heard_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path());
    let whole = speech();
    let shelf = Shelf::open(move |_| Answer::File("audio/wav", whole[..whole.len() / 2].to_vec()));
    let heard = hear(&server, json!({ "audio": format!("{}/cut.wav", shelf.base) }));
    assert!(said(&heard).starts_with("And so my fellow Americans") && said(&heard).len() < SAID.len(), "{heard}");
    assert!(heard["logs"].as_str().unwrap().contains("audio: the file"), "the logs say so: {heard}");
}

#[test]
fn what_is_asked_wrongly_is_refused_with_its_value() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path());
    let shelf = Shelf::open(|_| Answer::File("audio/wav", speech()));
    let input = |more: Value| {
        let mut input = json!({ "audio": format!("{}/jfk.wav", shelf.base) });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    };
    for (more, expected) in [
        (json!({ "transcription": "pdf" }), "- input.transcription: transcription must be one of the following"),
        (json!({ "language": "Klingon" }), "- input.language: language must be one of the following"),
        (json!({ "audio": "jfk.wav" }), "- input.audio: Does not match format 'uri'"),
        (json!({ "audio": null }), "- input.audio: Invalid type. Expected: string, given: null"),
    ] {
        let (code, refused) = ask(&server, input(more.clone()));
        assert!(code == 422 && refused["detail"].as_str().unwrap().contains(expected), "{more}: {code} {refused}");
    }
    let cases = [
        (json!({ "temperature": -0.5 }), "temperature is -0.5; 0 or more"),
        (json!({ "language": "French" }), "language is fr (french), which this model lacks: it hears English only"),
        (json!({ "suppress_tokens": "70000" }), "suppress_tokens has 70000; -1, or 0 to 51863"),
    ];
    let inputs = cases.iter().map(|(more, _)| input(more.clone())).collect();
    for (prediction, (more, expected)) in hear_all(&server, inputs).iter().zip(&cases) {
        fails(prediction, expected, &more.to_string());
    }
}

/// Ten gigabytes that are announced, as many that are not, more than were announced, a server that never answers, and
/// redirects to where nobody may look: each is refused by its own limit, and none of it is held in memory.
#[test]
fn urls_that_lie_or_lead_astray_are_refused_and_memory_stays_flat() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path());
    let whole = speech();
    let shelf = Shelf::open(move |path| match path {
        "/more.wav" => Answer::More("audio/wav", whole.clone()),
        "/10-gb.wav" => Answer::Announced(10_000_000_000),
        "/endless.wav" => Answer::Endless,
        "/silent.wav" => Answer::Nothing,
        "/private.wav" => Answer::Elsewhere("http://192.168.0.1/a.wav"),
        "/cloud.wav" => Answer::Elsewhere("http://169.254.169.254/latest/meta-data"),
        "/file.wav" => Answer::Elsewhere("file:///etc/passwd"),
        _ => Answer::Missing,
    });
    let url = |name: &str| json!({ "audio": format!("{}/{name}", shelf.base) });
    let heard = hear(&server, url("more.wav"));
    assert_eq!(said(&heard), SAID, "what was announced is the file");
    let held = || peak_bytes(server.pid()) + peak_bytes(worker_of(&server));
    let before = held();
    let cases = [
        ("10-gb.wav", "is 10000000000 bytes; at most 100000000 may be"),
        ("endless.wav", "is longer than 100000000 bytes, which is the limit"),
        ("silent.wav", "not complete after 8 s, which is the limit"),
        ("private.wav", "redirects to 192.168.0.1, which points to 192.168.0.1, a private address"),
        ("cloud.wav", "redirects to 169.254.169.254, which points to 169.254.169.254"),
        ("file.wav", "must be an http or https URL, not file"),
    ];
    let ended = hear_all(&server, cases.iter().map(|(name, _)| url(name)).collect());
    for (prediction, (name, expected)) in ended.iter().zip(cases) {
        fails(prediction, expected, name);
        assert!(prediction["error"].as_str().unwrap().starts_with("input audio: "), "{prediction}");
    }
    let grown = held() - before;
    assert!(grown < FLAT_BYTES, "{grown} bytes more were in memory");
}

/// A FLAC file of so many seconds of digital silence, mono at 16 kHz: 17 bytes for every 4 s.
fn silence(seconds: usize) -> Vec<u8> {
    const FRAME_SAMPLES: u16 = 64_000;
    let frames = seconds / 4;
    let samples = frames as u64 * u64::from(FRAME_SAMPLES);
    let size = FRAME_SAMPLES.to_be_bytes();
    let mut file = b"fLaC\x80\0\0\x22".to_vec();
    file.extend([size, size].concat());
    file.extend([0; 6]);
    // 16,000 Hz, one channel less one, 16 bits less one, and how many samples.
    file.extend(((16_000u64 << 44) | (15 << 36) | samples).to_be_bytes());
    file.extend([0; 16]);
    for number in 0..frames as u32 {
        // One size for all, told below; 16 kHz, mono, 16 bits; the frame's number as a character's bytes.
        let mut frame = vec![0xFF, 0xF8, 0x75, 0x08];
        frame.extend(char::from_u32(number).expect("a day has fewer than surrogates begin at").to_string().bytes());
        frame.extend((FRAME_SAMPLES - 1).to_be_bytes());
        frame.push(checksum(&frame, 0x07 << 8) as u8);
        // The same sample throughout: 0.
        frame.extend([0, 0, 0]);
        let whole = checksum(&frame, 0x8005);
        file.extend([frame, whole.to_be_bytes().to_vec()].concat());
    }
    file
}

/// FLAC's checksums: a remainder by this polynomial, of 16 bits or in the upper 8; the latter comes out below.
fn checksum(bytes: &[u8], polynomial: u16) -> u16 {
    let mut rest = 0u16;
    for byte in bytes {
        rest ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            rest = if rest & 0x8000 == 0 { rest << 1 } else { (rest << 1) ^ polynomial };
        }
    }
    if polynomial & 0xFF == 0 { rest >> 8 } else { rest }
}

#[test]
fn a_day_of_silence_has_no_words_and_takes_no_memory() {
    const DAY: usize = 24 * 3600;
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path());
    let (minute, day) = (silence(60), silence(DAY));
    assert!(day.len() < 500_000, "{}", day.len());
    let shelf = Shelf::open(move |path| match path {
        "/minute.flac" => Answer::File("audio/flac", minute.clone()),
        "/day.flac" => Answer::File("audio/flac", day.clone()),
        "/jfk.wav" => Answer::File("audio/wav", speech()),
        _ => Answer::Missing,
    });
    let url = |name: &str| json!({ "audio": format!("{}/{name}", shelf.base) });
    assert_eq!(said(&hear(&server, url("jfk.wav"))), SAID);
    assert_eq!(hear(&server, url("minute.flac"))["metrics"]["audio_duration"], 60);
    let worker = worker_of(&server);
    let before = peak_bytes(worker);
    let heard = hear(&server, url("day.flac"));
    assert_eq!((said(&heard).as_str(), &heard["metrics"]["audio_duration"]), ("", &json!(DAY)), "{heard}");
    assert_eq!((&heard["output"]["segments"], &heard["metrics"]["windows"]), (&json!([]), &json!(0)), "{heard}");
    let grown = peak_bytes(worker) - before;
    assert!(grown < FLAT_BYTES, "{grown} bytes more were in memory");
}

/// What `-i audio=@FILE` names lies where it lies, whatever it is called; the text alone goes to stdout.
#[test]
fn a_file_of_any_name_is_heard_and_its_text_alone_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("100 % of a talk, %41 and ü.wav");
    fs::write(&file, speech()).unwrap();
    let copy = folder.path().join("talk.txt");
    let audio = format!("audio=@{}", file.display());
    let words = ["run", "whisper-tiny.en", "-i", &audio, "-o", copy.to_str().unwrap()];
    let out = output_of(pinion().args(words));
    assert_eq!(out.replace(',', ""), format!("{SAID}\n"));
    assert_eq!(fs::read_to_string(copy).unwrap().trim(), out.trim());
    let subtitles = output_of(pinion().args(["run", "whisper-tiny.en", "-i", &audio, "-i", "transcription=srt"]));
    assert!(subtitles.starts_with("1\n00:00:00,000 --> "), "{subtitles}");
    let whole = output_of(pinion().args(["run", "whisper-tiny.en", "-i", &audio, "--json"]));
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(said(&whole), SAID);
}
