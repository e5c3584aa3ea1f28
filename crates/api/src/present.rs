//! How an answer names output files. Rows hold references; a reader gets URLs of its own origin, or the files themselves.
//!
//! The official clients make a file of a string that begins with `https:` or `data:` and of nothing else. Over plain http
//! an answer therefore carries the content, unless cog.yaml says otherwise; to a waiting create it always does. Lists and
//! webhooks hold URLs: their readers make no files, and a hundred pictures are no list.

use base64::{Engine, engine::general_purpose::STANDARD};
use prediction::{Event, Numbered, Output, Prediction};
use schema::config::OutputFiles;
use serde_json::Value;
use store::files::{FileKind, Files, referred};

use crate::{App, origin::Origin, render::render_at};

/// Content that one answer may carry. What does not fit is named by its URL.
const INLINE_BYTES: u64 = 64 << 20;

/// How one answer names files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Url,
    Data,
}

impl Form {
    /// `waited`: in the answer to `Prefer: wait`.
    pub fn of(outputs: OutputFiles, origin: &Origin, waited: bool) -> Self {
        let secure = origin.0.starts_with("https:");
        match outputs {
            OutputFiles::Data => Self::Data,
            OutputFiles::Auto | OutputFiles::Url if secure => Self::Url,
            OutputFiles::Url if !waited => Self::Url,
            OutputFiles::Auto | OutputFiles::Url => Self::Data,
        }
    }
}

/// A prediction as its caller reads it.
pub async fn shown(app: &App, prediction: &Prediction, origin: &Origin, waited: bool) -> Value {
    let service = &app.api.files;
    if Form::of(service.outputs, origin, waited) == Form::Url || prediction.output.is_none() {
        return render_at(prediction, origin);
    }
    let mut prediction = prediction.clone();
    if let Some(output) = &mut prediction.output {
        inline(&service.files, output).await;
    }
    render_at(&prediction, origin)
}

/// An event as a stream says it.
pub async fn shown_event(app: &App, mut event: Numbered, origin: &Origin) -> Numbered {
    if let Event::Output(Output::Item(value) | Output::Whole(value)) = &mut event.event {
        if Form::of(app.api.files.outputs, origin, false) == Form::Data {
            inline(&app.api.files.files, value).await;
        }
        root(value, origin);
    }
    event
}

/// Every reference becomes a URL.
pub fn root(value: &mut Value, origin: &Origin) {
    for place in references(value) {
        if let Some(Value::String(text)) = value.pointer_mut(&place) {
            text.insert_str(0, &origin.0);
        }
    }
}

/// Every reference becomes the file itself. One that has expired stays: its URL says so.
async fn inline(files: &Files, value: &mut Value) {
    let mut left = INLINE_BYTES;
    for place in references(value) {
        let Some(Value::String(text)) = value.pointer_mut(&place) else { continue };
        if let Some((uri, bytes)) = data_uri(files, text, left).await {
            *text = uri;
            left -= bytes;
        }
    }
}

async fn data_uri(files: &Files, reference: &str, most: u64) -> Option<(String, u64)> {
    let found = files.get(referred(reference)?).await.ok().flatten();
    let file = found.filter(|file| file.kind == FileKind::Output && file.size <= most)?;
    let (path, size) = (files.path(&file), file.size);
    // Megabytes of base64 are work for a thread that may block.
    let encode =
        move || Some(format!("data:{};base64,{}", file.content_type, STANDARD.encode(std::fs::read(path).ok()?)));
    Some((tokio::task::spawn_blocking(encode).await.ok()??, size))
}

/// JSON pointers to the references in a value.
fn references(value: &Value) -> Vec<String> {
    fn walk(value: &Value, at: String, found: &mut Vec<String>) {
        match value {
            Value::String(text) if referred(text).is_some() => found.push(at),
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(place, item)| walk(item, format!("{at}/{place}"), found));
            }
            Value::Object(members) => {
                for (name, member) in members {
                    walk(member, format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(value, String::new(), &mut found);
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_form_follows_the_callers_scheme_and_the_configuration() {
        use OutputFiles::{Auto, Data, Url};
        let (plain, secure) = (Origin("http://h".into()), Origin("https://h".into()));
        let table = [
            (Auto, &plain, [Form::Data, Form::Data]),
            (Auto, &secure, [Form::Url, Form::Url]),
            (Data, &plain, [Form::Data, Form::Data]),
            (Data, &secure, [Form::Data, Form::Data]),
            (Url, &plain, [Form::Url, Form::Data]),
            (Url, &secure, [Form::Url, Form::Url]),
        ];
        for (outputs, origin, [polled, waited]) in table {
            assert_eq!(Form::of(outputs, origin, false), polled, "{outputs:?} {origin:?} polled");
            assert_eq!(Form::of(outputs, origin, true), waited, "{outputs:?} {origin:?} waited");
        }
    }

    #[test]
    fn a_reference_is_rooted_wherever_it_stands_and_nothing_else_is() {
        let reference = format!("/v1/outputs/{}/out-0.png", "a".repeat(44));
        let url = format!("https://h{reference}");
        let mut value =
            json!({ "a/b": [reference, "/v1/outputs/short/x", 1], "text": "see /v1/outputs/", "kept": "x" });
        root(&mut value, &Origin("https://h".into()));
        assert_eq!(value, json!({ "a/b": [url, "/v1/outputs/short/x", 1], "text": "see /v1/outputs/", "kept": "x" }));
    }
}
