//! The only way out: post a webhook, fetch a file, ask a server how it stands. Limits and address rules live here, and what
//! was checked is what is connected to: names are resolved by a resolver that hands over allowed addresses only, and
//! literals are checked before the call. `data:` URIs, which need no way out, are read here too, so that every file that is
//! named comes one way in.
//!
//! Refuses to know why something is sent or fetched. Uses no proxy from the environment, and a redirect is a new URL that
//! is checked like the first (a post follows none): either would be a way around the rules.

mod address;
mod call;
mod client;
mod data;
mod fetch;

pub use address::{Class, Rules, check, classify};
pub use call::{Answered, Call};
pub use client::{Egress, EgressError};
pub use data::{Data, data, is_data};
pub use fetch::{FetchLimits, Fetched};
