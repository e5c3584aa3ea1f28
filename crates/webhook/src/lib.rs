//! Outbox to signed POST, with retries; and what happens on the way (start, output, logs) read from the feed.
//!
//! Refuses to know who makes predictions and how one is rendered: the bytes come from a function it is given.

mod conduct;
mod deliver;
mod follow;
mod sign;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use egress::{Egress, Rules};
use prediction::Prediction;
use store::feed::Feed;
use store::{Store, system_clock};
use tokio::task::JoinHandle;

use crate::conduct::Conductor;
use crate::deliver::Desk;

/// Makes the body of a webhook: a prediction as GET answers it, in the form that receivers are given files.
pub type Render = Arc<dyn Fn(&Prediction) -> Vec<u8> + Send + Sync>;

/// Delivers until dropped. What is on the way then is repeated by the next life.
pub struct Webhooks {
    conductor: JoinHandle<()>,
}

impl Webhooks {
    /// Must be called before predictions are opened in the feed, so that none goes by unseen.
    pub fn start(store: Arc<dyn Store>, feed: Feed, egress: Egress, render: Render) -> Self {
        let opened = feed.opened();
        let desk = Arc::new(Desk::new(store, feed, Arc::new(egress), render, system_clock()));
        Self { conductor: tokio::spawn(Conductor::new(desk).run(opened)) }
    }
}

impl Drop for Webhooks {
    fn drop(&mut self) {
        self.conductor.abort();
    }
}

/// Whether a webhook URL may be accepted; the error is a sentence for the caller.
pub fn check_url(url: &str, rules: &Rules) -> Result<(), String> {
    egress::check(url, rules).map(drop).map_err(|error| error.to_string())
}
