//! One function changes a prediction: `Prediction::apply`. Knows no clock and no storage: times come with the events.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Event, Id, Map, Numbered, Outcome, Output, Timestamp};

/// What was asked for. Never changes after it was accepted, save that its input may be removed by the retention sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub id: Id,
    /// `owner/name` as the caller wrote it.
    pub model: String,
    /// The version id as the caller wrote it (an alias is echoed), else the digest.
    pub version: String,
    /// The served name whose loaded model runs it, e.g. `smollm2`.
    pub target: String,
    /// As the caller gave it: defaults are not filled in.
    pub input: Map,
    /// Used by the model when the input names no seed.
    pub seed: u64,
    pub created_at: Timestamp,
    /// From `Cancel-After`: reached before the start it is aborted, while running it is canceled.
    pub deadline: Option<Timestamp>,
    pub webhook: Option<String>,
    /// `None` is the default filter (output and completed); an empty list is no events.
    pub webhook_events_filter: Option<Vec<WebhookEvent>>,
    /// Scheme and host that the caller used, no trailing slash: absolute URLs are rooted here.
    pub origin: String,
    /// The unguessable path element of the stream URL.
    pub stream_key: String,
    /// Whether the caller holds an SSE-able model: decides on `urls.stream`.
    pub streams: bool,
}

impl Request {
    pub fn wants(&self, event: WebhookEvent) -> bool {
        self.webhook.is_some()
            && match &self.webhook_events_filter {
                None => matches!(event, WebhookEvent::Output | WebhookEvent::Completed),
                Some(filter) => filter.contains(&event),
            }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookEvent {
    Start,
    Output,
    Logs,
    Completed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Starting,
    Processing,
    Succeeded,
    Failed,
    Canceled,
    Aborted,
}

impl Status {
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Starting | Self::Processing)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Processing => "processing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Aborted => "aborted",
        }
    }
}

/// A prediction as it stands after its events so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    pub request: Request,
    pub status: Status,
    pub output: Option<Value>,
    pub logs: String,
    pub error: Option<String>,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    /// What the model reported, and `predict_time` and `total_time` (seconds) once it has ended.
    pub metrics: Map,
    /// The number of the last event applied; 0 before the first.
    pub last_seq: u64,
    /// The retention sweep has emptied input, output and logs.
    pub data_removed: bool,
}

/// What `apply` did. A late event is not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Transition {
    Applied,
    /// The prediction had ended, or the number was seen already: nothing changed.
    TooLate,
}

impl Prediction {
    pub fn new(request: Request) -> Self {
        Self {
            request,
            status: Status::Starting,
            output: None,
            logs: String::new(),
            error: None,
            started_at: None,
            completed_at: None,
            metrics: Map::new(),
            last_seq: 0,
            data_removed: false,
        }
    }

    /// Folds one event in. Numbers at or below `last_seq` are repeats after a replay and change nothing.
    pub fn apply(&mut self, numbered: &Numbered) -> Transition {
        if self.status.is_terminal() || numbered.seq <= self.last_seq {
            return Transition::TooLate;
        }
        self.last_seq = numbered.seq;
        match &numbered.event {
            Event::Started => self.start(numbered.at),
            Event::Output(output) => {
                self.start(numbered.at);
                self.put(output);
            }
            // Logs alone do not start it: what it waits for is said there too.
            Event::Log(text) => self.logs.push_str(text),
            Event::Metric { name, value } => {
                self.metrics.insert(name.clone(), value.clone());
            }
            Event::Ended(outcome) => self.end(outcome, numbered.at),
        }
        Transition::Applied
    }

    fn start(&mut self, at: Timestamp) {
        if self.status == Status::Starting {
            self.status = Status::Processing;
            self.started_at = Some(at);
        }
    }

    fn put(&mut self, output: &Output) {
        match output {
            Output::Whole(value) => self.output = Some(value.clone()),
            Output::Item(value) => match &mut self.output {
                Some(Value::Array(items)) => items.push(value.clone()),
                _ => self.output = Some(Value::Array(vec![value.clone()])),
            },
        }
    }

    fn end(&mut self, outcome: &Outcome, at: Timestamp) {
        (self.status, self.error) = match outcome {
            Outcome::Succeeded => (Status::Succeeded, None),
            Outcome::Failed { error } => (Status::Failed, Some(error.clone())),
            Outcome::Canceled => (Status::Canceled, None),
            Outcome::Aborted => (Status::Aborted, None),
        };
        self.completed_at = Some(at);
        let predict = self.started_at.map_or(0.0, |started| at.seconds_since(started));
        self.metrics.insert("predict_time".into(), predict.into());
        self.metrics.insert("total_time".into(), at.seconds_since(self.request.created_at).into());
    }

    /// What the retention sweep leaves: the fact that it happened, and how it ended.
    pub fn remove_data(&mut self) {
        self.request.input = Map::new();
        self.output = None;
        self.logs.clear();
        self.data_removed = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn request() -> Request {
        Request {
            id: Id::from("p1"),
            model: "pinion/echo".into(),
            version: "v".into(),
            target: "echo".into(),
            input: Map::new(),
            seed: 7,
            created_at: Timestamp(0),
            deadline: None,
            webhook: None,
            webhook_events_filter: None,
            origin: "http://127.0.0.1:5000".into(),
            stream_key: "k".into(),
            streams: true,
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Started),
            "[a-z]{0,4}".prop_map(|text| Event::Output(Output::text(text))),
            "[a-z]{0,4}".prop_map(|text| Event::Output(Output::Whole(Value::String(text)))),
            "[a-z\n]{0,4}".prop_map(Event::Log),
            (any::<u32>()).prop_map(|n| Event::Metric { name: "n".into(), value: n.into() }),
            Just(Event::Ended(Outcome::Succeeded)),
            Just(Event::Ended(Outcome::Failed { error: "boom".into() })),
            Just(Event::Ended(Outcome::Canceled)),
            Just(Event::Ended(Outcome::Aborted)),
        ]
    }

    fn number(events: Vec<Event>) -> Vec<Numbered> {
        let at = |i: usize| Timestamp(i as i64 * 1000);
        events.into_iter().enumerate().map(|(i, event)| Numbered { seq: i as u64 + 1, at: at(i), event }).collect()
    }

    fn fold<'a>(events: impl IntoIterator<Item = &'a Numbered>) -> Prediction {
        let mut prediction = Prediction::new(request());
        for event in events {
            let _ = prediction.apply(event);
        }
        prediction
    }

    proptest! {
        #[test]
        fn a_replayed_prefix_changes_nothing(events in prop::collection::vec(any_event(), 0..24), cut in 0usize..24) {
            let events = number(events);
            let cut = cut.min(events.len());
            let twice = events[..cut].iter().chain(&events);
            prop_assert_eq!(fold(&events), fold(twice));
        }

        #[test]
        fn nothing_follows_the_end(events in prop::collection::vec(any_event(), 0..24)) {
            let events = number(events);
            let first_end = events.iter().position(|e| matches!(e.event, Event::Ended(_)));
            let whole = fold(&events);
            prop_assert_eq!(whole.status.is_terminal(), first_end.is_some());
            prop_assert_eq!(whole.completed_at.is_some(), first_end.is_some());
            if let Some(end) = first_end {
                prop_assert_eq!(&whole, &fold(&events[..=end]));
            }
        }

        #[test]
        fn an_error_stands_exactly_on_failed(events in prop::collection::vec(any_event(), 0..24)) {
            let prediction = fold(&number(events));
            prop_assert_eq!(prediction.error.is_some(), prediction.status == Status::Failed);
            prop_assert_eq!(prediction.metrics.contains_key("predict_time"), prediction.status.is_terminal());
        }
    }

    #[test]
    fn output_grows_and_marks_the_start() {
        let events = number(vec![
            Event::Log("loading\n".into()),
            Event::Output(Output::text("a")),
            Event::Output(Output::text("b")),
        ]);
        let waiting = fold(&events[..1]);
        assert_eq!((waiting.status, waiting.started_at), (Status::Starting, None));
        let running = fold(&events);
        assert_eq!(running.status, Status::Processing);
        assert_eq!(running.started_at, Some(Timestamp(1000)));
        assert_eq!(running.output, Some(serde_json::json!(["a", "b"])));
        assert_eq!(running.logs, "loading\n");
    }

    #[test]
    fn the_default_webhook_filter_is_output_and_completed() {
        let mut asked = request();
        assert!(!asked.wants(WebhookEvent::Completed), "no webhook, no events");
        asked.webhook = Some("http://127.0.0.1:1/".into());
        assert!(asked.wants(WebhookEvent::Output) && asked.wants(WebhookEvent::Completed));
        assert!(!asked.wants(WebhookEvent::Start) && !asked.wants(WebhookEvent::Logs));
        asked.webhook_events_filter = Some(vec![]);
        assert!(!asked.wants(WebhookEvent::Completed));
    }
}
