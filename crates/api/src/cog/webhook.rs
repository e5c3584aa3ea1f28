//! Webhooks as Cog sends them: the whole state each time, in order; start, every output, logs at intervals, and the end, which
//! is repeated until it is taken or refused for good.
//!
//! The hosted API's webhooks are another crate's: they are signed, kept over restarts and throttled otherwise.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use egress::{Call, EgressError};
use prediction::{Event, Prediction, WebhookEvent};
use tokio::time::Instant;

use super::run::Run;
use super::{Face, body};

/// For one post.
const POST: Duration = Duration::from_secs(30);
/// After the first try at the end.
const RETRIES: u32 = 12;
const BACK_OFF: Duration = Duration::from_millis(100);
/// Doublings of the pause.
const DOUBLINGS: u32 = 10;
/// Outputs that may wait for a slow receiver. Of more, those that came first are not told by themselves: the next that is told
/// holds them too.
const BEHIND: usize = 64;

/// Carried from the request to every webhook.
const TRACES: [&str; 2] = ["traceparent", "tracestate"];

/// Where the webhooks of one prediction go.
pub struct Hook {
    url: String,
    /// None is all of them.
    events: Option<Vec<WebhookEvent>>,
    headers: Vec<(&'static str, String)>,
}

impl Hook {
    pub fn new(url: String, events: Option<Vec<WebhookEvent>>, request: &HeaderMap) -> Self {
        let traced = TRACES.into_iter().filter_map(|name| Some((name, request.get(name)?.to_str().ok()?.to_owned())));
        Self { url, events, headers: traced.collect() }
    }

    fn wants(&self, event: WebhookEvent) -> bool {
        self.events.as_ref().is_none_or(|events| events.contains(&event))
    }
}

pub fn send(face: &Arc<Face>, run: &Arc<Run>, mut hook: Hook) {
    let settings = &face.settings;
    hook.headers.push(("content-type", "application/json".into()));
    hook.headers.extend(settings.webhook_token.iter().map(|token| ("authorization", format!("Bearer {token}"))));
    hook.headers.extend(settings.user_agent.iter().map(|agent| ("user-agent", agent.clone())));
    let telling = face.runs.telling();
    let (face, run) = (face.clone(), run.clone());
    tokio::spawn(async move {
        follow(&face, &run, &hook).await;
        drop(telling);
    });
}

async fn follow(face: &Face, run: &Run, hook: &Hook) {
    let mut told = run.watch();
    let mut state = Prediction::new(told.borrow().prediction.request.clone());
    let (mut seen, mut news, mut not_before) = (0, false, Instant::now());
    loop {
        let events = told.borrow_and_update().events[seen..].to_vec();
        seen += events.len();
        let outputs = events.iter().filter(|event| matches!(event.event, Event::Output(_))).count();
        let mut passed_over = outputs.saturating_sub(BEHIND);
        for event in &events {
            let _ = state.apply(event);
            match event.event {
                Event::Started if hook.wants(WebhookEvent::Start) => post_once(face, run, hook, &state).await,
                Event::Output(_) if passed_over > 0 => passed_over -= 1,
                Event::Output(_) if hook.wants(WebhookEvent::Output) => {
                    news = false;
                    post_once(face, run, hook, &state).await;
                }
                Event::Log(_) => news |= hook.wants(WebhookEvent::Logs),
                Event::Ended(_) => return end(face, run, hook, &state).await,
                _ => {}
            }
        }
        if news && Instant::now() >= not_before {
            news = false;
            not_before = Instant::now() + face.settings.throttle;
            post_once(face, run, hook, &state).await;
        }
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(not_before), if news => {}
        }
    }
}

async fn end(face: &Face, run: &Run, hook: &Hook, state: &Prediction) {
    if !hook.wants(WebhookEvent::Completed) {
        return;
    }
    for tried in 0..=RETRIES {
        let why = match post(face, run, hook, state).await {
            Ok(429 | 500 | 502 | 503 | 504) => "the receiver asks for another try".to_owned(),
            Ok(200..=299) => return,
            Ok(status) => return tracing::warn!(id = run.id, status, "a webhook was refused"),
            Err(error @ (EgressError::NotAUrl | EgressError::Scheme(_) | EgressError::Refused { .. })) => {
                return tracing::warn!(id = run.id, %error, "a webhook cannot be sent");
            }
            Err(error) => error.to_string(),
        };
        if tried == RETRIES {
            return tracing::warn!(id = run.id, why, "a webhook was not taken; that was the last try");
        }
        tokio::time::sleep(BACK_OFF * 2u32.pow((tried + 1).min(DOUBLINGS))).await;
    }
}

async fn post_once(face: &Face, run: &Run, hook: &Hook, state: &Prediction) {
    if let Err(error) = post(face, run, hook, state).await {
        tracing::debug!(id = run.id, %error, "a webhook before the end was not taken");
    }
}

async fn post(face: &Face, run: &Run, hook: &Hook, state: &Prediction) -> Result<u16, EgressError> {
    // It runs, so there is something that runs it.
    let Some(engine) = face.engine.get() else { return Err(EgressError::NotAUrl) };
    let body = body::whole(&run.id, state).to_string().into_bytes();
    let call = Call { url: &hook.url, headers: &hook.headers, body, within: POST };
    Ok(engine.egress.post_within(call).await?.status)
}
