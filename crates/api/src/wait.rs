//! Waiting for an end, as `Prefer: wait` asks. The answer is in time, whatever the prediction does.

use prediction::Prediction;
use tokio::time::Instant;

use crate::{App, options::Wait};

/// The ended prediction, or `accepted` as it was when the time is up. Clients take any status other than `starting` for
/// the end and would read a half-finished output as all of it, so what is running is still shown as starting.
pub async fn until_ended(app: &App, accepted: Prediction, wait: Wait, began: Instant) -> Prediction {
    if accepted.status.is_terminal() {
        return accepted;
    }
    match tokio::time::timeout_at(began + wait.duration(), ended(app, &accepted)).await {
        Ok(Some(prediction)) => prediction,
        // The prediction was accepted: a store that cannot be read at the moment does not change that.
        Ok(None) | Err(_) => Prediction::new(accepted.request),
    }
}

async fn ended(app: &App, accepted: &Prediction) -> Option<Prediction> {
    let id = &accepted.request.id;
    let mut reader = app.api.feed.follow(id, accepted.last_seq).await.ok()??;
    while reader.next().await.is_some() {}
    app.api.feed.snapshot(id).await.ok()?.filter(|prediction| prediction.status.is_terminal())
}
