//! What a receiver hears before the end: start at once, output and logs together at most every 500 ms. Never repeated.
//! State between two of them is not lost: the next carries it, and so does completed.

use std::sync::Arc;

use prediction::{Event, Prediction, Request, WebhookEvent};
use tokio::time::{Duration, Instant};

use crate::deliver::{Desk, receiver};

const THROTTLE: Duration = Duration::from_millis(500);

/// Follows one prediction to its end. When this returns, everything before `completed` has been sent.
pub async fn follow(desk: Arc<Desk>, request: Request) {
    let Some(url) = request.webhook.clone() else { return };
    let id = request.id.clone();
    let mut reader = match desk.feed.follow(&id, 0).await {
        Ok(Some(reader)) => reader,
        Ok(None) => return,
        Err(error) => return tracing::warn!(%id, %error, "webhooks before the end are left out"),
    };
    // Folded here and not asked of the feed: the body is the state at this event, however far the run has come.
    let mut state = Prediction::new(request);
    let (mut news, mut not_before) = (false, Instant::now());
    loop {
        tokio::select! {
            // What has happened already goes into the same webhook.
            biased;
            event = reader.next() => {
                let Some(event) = event else { break };
                let _ = state.apply(&event);
                match event.event {
                    Event::Started if state.request.wants(WebhookEvent::Start) => tell(&desk, &state, &url).await,
                    Event::Output(_) => news |= state.request.wants(WebhookEvent::Output),
                    Event::Log(_) => news |= state.request.wants(WebhookEvent::Logs),
                    Event::Started | Event::Metric { .. } | Event::Ended(_) => {}
                }
                if state.status.is_terminal() {
                    break;
                }
            }
            () = tokio::time::sleep_until(not_before), if news => {
                news = false;
                not_before = Instant::now() + THROTTLE;
                tell(&desk, &state, &url).await;
            }
        }
    }
    if news && !state.request.wants(WebhookEvent::Completed) {
        tokio::time::sleep_until(not_before).await;
        tell(&desk, &state, &url).await;
    }
}

async fn tell(desk: &Desk, state: &Prediction, url: &str) {
    if let Err(why) = desk.send(state, url, &Desk::new_message()).await {
        tracing::debug!(id = %state.request.id, to = receiver(url), why, "a webhook before the end was not taken");
    }
}
