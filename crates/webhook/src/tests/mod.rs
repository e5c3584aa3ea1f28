//! Webhooks as a receiver sees them. Time is tokio's, paused, and the receiver a stand-in; `wire` has a real one.

mod bench;
mod order;
mod retries;
mod wire;
