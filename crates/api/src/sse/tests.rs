//! What is framed arrives: three parsers written after the three families of clients read the same stream.

use prediction::{Event, Numbered, Outcome, Output, Timestamp};
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    event: String,
    id: String,
    data: String,
}

/// A client of the python family: breaks lines wherever Unicode does, and forgets a line without a known field.
fn python(stream: &str) -> Vec<Got> {
    let ends = ['\n', '\u{b}', '\u{c}', '\r', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    read(stream.replace("\r\n", "\n").split(ends))
}

/// A client of the javascript family: CR, LF and CR LF end a line.
fn javascript(stream: &str) -> Vec<Got> {
    read(stream.replace("\r\n", "\n").split(['\n', '\r']))
}

/// A client of the go family: LF ends a line, and nothing else does.
fn go(stream: &str) -> Vec<Got> {
    read(stream.split('\n'))
}

fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Got> {
    let (mut got, mut event, mut id) = (Vec::new(), String::new(), String::new());
    let mut data: Vec<&str> = Vec::new();
    for line in lines {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() => {
                if !data.is_empty() && !id.is_empty() {
                    got.push(Got { event: std::mem::take(&mut event), id: id.clone(), data: data.join("\n") });
                }
                data.clear();
            }
            "event" => event = value.to_owned(),
            "id" => id = value.to_owned(),
            "data" => data.push(value),
            _ => {}
        }
    }
    got
}

/// The rule: what some client takes for a line end arrives as a line feed.
fn as_received(text: &str) -> String {
    text.replace("\r\n", "\n").chars().map(|c| if is_line_end(c) { '\n' } else { c }).collect()
}

fn numbered(seq: usize, event: Event) -> Numbered {
    Numbered { seq: seq as u64, at: Timestamp(1_700_000_000_000_000 + seq as i64), event }
}

fn told(texts: &[String], outcome: Outcome) -> Vec<Frame> {
    let outputs = texts.iter().map(|text| Event::Output(Output::text(text.as_str())));
    let events = outputs.chain([Event::Ended(outcome)]).enumerate().map(|(i, event)| numbered(i + 1, event));
    let mut framer = Framer::default();
    events.flat_map(|event| framer.frames(&event)).collect()
}

fn frames(event: &Numbered) -> Vec<Frame> {
    Framer::default().frames(event)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,12}",
        "[ a\r\n\u{b}\u{c}\u{1c}\u{1d}\u{1e}\u{85}\u{2028}\u{2029}:]{0,8}",
        Just("data: x\n\nevent: done".to_owned()),
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn every_client_reads_all_text(texts in prop::collection::vec(text(), 0..8), cuts in any::<u64>()) {
        let frames = told(&texts, Outcome::Succeeded);
        // Comments may stand between any two frames.
        let comment = |i: usize| if cuts & (1 << (i % 64)) != 0 { PING } else { "" };
        let body: String = frames.iter().enumerate().map(|(i, frame)| format!("{}{}", comment(i), frame.text)).collect();
        let stream = format!("{HELLO}{body}");
        let expected = as_received(&texts.concat());
        for client in [python, javascript, go] {
            let mut got = client(&stream);
            let done = got.pop().expect("done is last");
            prop_assert_eq!((done.event.as_str(), done.data.as_str()), ("done", "{}"));
            prop_assert!(got.iter().all(|event| event.event == "output"));
            let read: String = got.into_iter().map(|event| event.data).collect();
            prop_assert_eq!(&read, &expected);
        }
    }

    #[test]
    fn whoever_resumes_misses_nothing_and_reads_nothing_twice(
        texts in prop::collection::vec(text(), 0..8), error in text(), cut in any::<prop::sample::Index>(),
    ) {
        let frames = told(&texts, Outcome::Failed { error });
        let seen = cut.index(frames.len());
        let ids: Vec<_> = javascript(&frames.iter().map(|frame| frame.text.as_str()).collect::<String>());
        let last = last_seen(Some(&ids[seen].id));
        // What a follower from `resume_after` gets, less what was seen.
        let again = frames.iter().filter(|frame| frame.number / FRAMES_OF_AN_EVENT > resume_after(last) && frame.number > last);
        prop_assert_eq!(again.collect::<Vec<_>>(), frames[seen + 1..].iter().collect::<Vec<_>>());
    }

    #[test]
    fn ids_are_unique_and_rise(texts in prop::collection::vec(text(), 0..8)) {
        let frames = told(&texts, Outcome::Failed { error: "boom".into() });
        prop_assert!(frames.windows(2).all(|pair| pair[0].number < pair[1].number));
        prop_assert_eq!(frames.iter().filter(|frame| frame.last).count(), 1);
    }
}

#[test]
fn a_frame_looks_as_recorded() {
    let event = numbered(7, Event::Output(Output::text(" the\ngear\r\n")));
    let text = "event: output\nid: 1700000000000:7168\ndata:  the\ndata: gear\ndata: \n\n";
    assert_eq!(frames(&event), [Frame { number: 7 * FRAMES_OF_AN_EVENT, last: false, text: text.into() }]);
}

#[test]
fn the_end_says_why() {
    let end = |outcome| {
        let frames: String = frames(&numbered(3, Event::Ended(outcome))).into_iter().map(|frame| frame.text).collect();
        javascript(&frames).into_iter().map(|got| format!("{} {}", got.event, got.data)).collect::<Vec<_>>()
    };
    assert_eq!(end(Outcome::Succeeded), ["done {}"]);
    assert_eq!(end(Outcome::Canceled), [r#"done {"reason":"canceled"}"#]);
    assert_eq!(end(Outcome::Aborted), [r#"done {"reason":"canceled"}"#]);
    assert_eq!(
        end(Outcome::Failed { error: "no\u{2028}way\n".into() }),
        [r#"error {"detail":"no\u2028way\n"}"#, r#"done {"reason":"error"}"#]
    );
}

#[test]
fn logs_metrics_and_empty_text_make_no_event() {
    for event in [
        Event::Started,
        Event::Log("a\n".into()),
        Event::Metric { name: "n".into(), value: 1.into() },
        Event::Output(Output::text("")),
    ] {
        assert_eq!(frames(&numbered(1, event)), []);
    }
}

#[test]
fn a_foreign_id_means_from_the_beginning() {
    for header in [None, Some(""), Some("x"), Some("1690212292:x"), Some("1690212292:0")] {
        assert_eq!(resume_after(last_seen(header)), 0, "{header:?}");
    }
    assert_eq!(last_seen(Some(" 1690212292000:15 ")), 15);
}

/// The files of a model that gives them at once arrive as those of one that gives them one by one.
#[test]
fn a_list_of_texts_is_one_event_for_each() {
    let list = numbered(3, Event::Output(Output::Whole(serde_json::json!(["data:,a", "", "data:,b"]))));
    let told: String = frames(&list).into_iter().map(|frame| frame.text).collect();
    let got: Vec<_> = javascript(&told).into_iter().map(|got| got.data).collect();
    assert_eq!(got, ["data:,a", "data:,b"]);
    let mixed = numbered(3, Event::Output(Output::Whole(serde_json::json!(["a", 1]))));
    assert_eq!(frames(&mixed).len(), 1, "anything else is JSON");
}
