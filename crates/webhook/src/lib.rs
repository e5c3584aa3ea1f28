//! Outbox to signed POST, with retries; and what happens on the way (start, output, logs) read from the feed.
//!
//! Refuses to know who makes predictions and how one is rendered: the bytes come from a function it is given.

use std::sync::Arc;

use egress::{Egress, Rules};
use prediction::Prediction;
use store::Store;
use store::feed::Feed;

/// Makes the body of a webhook: the bytes that GET would answer.
pub type Render = Arc<dyn Fn(&Prediction) -> Vec<u8> + Send + Sync>;

/// Delivers until dropped.
pub struct Webhooks {}

impl Webhooks {
    pub fn start(store: Arc<dyn Store>, feed: Feed, egress: Egress, render: Render) -> Self {
        todo!()
    }
}

/// Whether a webhook URL may be accepted; the error is a sentence for the caller.
pub fn check_url(url: &str, rules: &Rules) -> Result<(), String> {
    egress::check(url, rules).map(drop).map_err(|error| error.to_string())
}
