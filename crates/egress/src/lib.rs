//! The only way out: post a webhook, ask a server how it stands. Limits and address rules live here, and what was checked is what is connected to:
//! names are resolved by a resolver that hands over allowed addresses only, and literals are checked before the call.
//!
//! Refuses to know why something is sent. Follows no redirect and no proxy from the environment: either would be a way
//! around the rules.

mod address;
mod client;

pub use address::{Class, Rules, check, classify};
pub use client::{Egress, EgressError};
