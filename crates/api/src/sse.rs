//! Events as Server-Sent Events, in the form that every known client's parser survives.
//!
//! Every event has an `id:`, for one client drops what comes before the first. Line ends are LF. One event's text is
//! split into `data:` lines at everything that some client takes for a line end: CR, CR LF, and the Unicode line breaks
//! at which one client would silently lose the rest of the line. So a reader gets all text, with those characters as
//! line feeds; the polled output has them unchanged. Empty text makes no event: clients drop it.

use prediction::{Event, Numbered, Outcome, Output, Timestamp};
use serde_json::{Value, json};

/// Headers go out with it, so the caller knows at once that the stream is open.
pub const HELLO: &str = ": hi\n";
/// A comment without a blank line after it: one client would take that for an empty event.
pub const PING: &str = ": ping\n";

/// Frames that one event may have: one for each file of a list, or an error and the end.
const FRAMES_OF_AN_EVENT: u64 = 1024;
const MOST_FRAMES: usize = FRAMES_OF_AN_EVENT as usize;

/// A frame's place in its stream. Each has a number of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub number: u64,
    /// The one after which nothing comes.
    pub last: bool,
    pub text: String,
}

/// The number of the first frame of an event.
fn number(seq: u64) -> u64 {
    seq * FRAMES_OF_AN_EVENT
}

/// The last frame a reader has seen, from `Last-Event-ID`; an id that is not ours means none.
pub fn last_seen(header: Option<&str>) -> u64 {
    header.and_then(|id| id.trim().rsplit(':').next()?.parse().ok()).unwrap_or(0)
}

/// The event before the one that frame `number` belongs to: whoever follows from there misses nothing.
pub fn resume_after(number: u64) -> u64 {
    (number / FRAMES_OF_AN_EVENT).saturating_sub(1)
}

/// Frames a prediction's events in their order. It remembers one thing: a CR LF may come in two pieces of text.
#[derive(Debug, Default)]
pub struct Framer {
    after_cr: bool,
}

impl Framer {
    /// What one event says on the stream. Logs and metrics say nothing: one client fails on unknown names.
    pub fn frames(&mut self, event: &Numbered) -> Vec<Frame> {
        match &event.event {
            Event::Output(output) => self.output(event, output),
            Event::Ended(outcome) => end(outcome, event.seq, event.at),
            Event::Started | Event::Log(_) | Event::Metric { .. } => Vec::new(),
        }
    }

    /// A list of texts that is said at once (the files of a model) is one frame for each, as if each was said by itself.
    fn output(&mut self, event: &Numbered, output: &Output) -> Vec<Frame> {
        let (Output::Item(value) | Output::Whole(value)) = output;
        let whole = std::slice::from_ref(value);
        let texts = value.as_array().filter(|items| items.iter().all(Value::is_string) && items.len() < MOST_FRAMES);
        let texts = texts.map_or(whole, Vec::as_slice).iter().zip(number(event.seq)..);
        texts.filter_map(|(value, number)| self.text(value, number, event.at)).collect()
    }

    fn text(&mut self, value: &Value, number: u64, at: Timestamp) -> Option<Frame> {
        let text = match value {
            Value::String(text) => text.clone(),
            other => json_text(other),
        };
        let last = text.chars().last()?;
        let was_after_cr = std::mem::replace(&mut self.after_cr, last == '\r');
        let text = if was_after_cr { text.strip_prefix('\n').unwrap_or(&text) } else { &text };
        (!text.is_empty()).then(|| frame("output", number, at, text))
    }
}

/// How a stream closes. `done` is last, and its data is never empty.
pub fn end(outcome: &Outcome, seq: u64, at: Timestamp) -> Vec<Frame> {
    let first = number(seq);
    let done = |reason: Value| frame("done", first + 1, at, &json_text(&reason));
    match outcome {
        Outcome::Succeeded => vec![done(json!({}))],
        Outcome::Canceled | Outcome::Aborted => vec![done(json!({ "reason": "canceled" }))],
        Outcome::Failed { error } => {
            let error = frame("error", first, at, &json_text(&json!({ "detail": error })));
            vec![error, done(json!({ "reason": "error" }))]
        }
    }
}

fn frame(event: &str, number: u64, at: Timestamp, text: &str) -> Frame {
    let mut frame = format!("event: {event}\nid: {}:{number}\n", at.0 / 1000);
    for line in lines(text) {
        // One space after the colon is taken off again, so text that begins with a space keeps it.
        frame.push_str("data: ");
        frame.push_str(line);
        frame.push('\n');
    }
    frame.push('\n');
    Frame { number, last: event == "done", text: frame }
}

/// Everything that some client's parser takes for a line end. CR LF is one.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let here = rest?;
        let Some(at) = here.find(is_line_end) else { return rest.take() };
        let end = here[at..].chars().next().map_or(1, char::len_utf8);
        let end = if here[at..].starts_with("\r\n") { 2 } else { end };
        rest = Some(&here[at + end..]);
        Some(&here[..at])
    })
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// JSON on one line for every parser: what is a line end to some is written as an escape.
fn json_text(value: &Value) -> String {
    let text = value.to_string();
    match text.contains(is_line_end) {
        false => text,
        true => text.chars().map(|c| if is_line_end(c) { format!("\\u{:04x}", c as u32) } else { c.into() }).collect(),
    }
}

#[cfg(test)]
mod tests;
