//! The hosted service's HTTP API, as unchanged clients meet it: predictions, streams, files, models, errors. In `cog`, that of
//! a Cog container on the same path of a prediction.
//!
//! Understands a request, asks the store, the feed or dispatch, and answers in the recorded shapes. Refuses to know
//! how a model runs, where rows are kept and how a webhook is sent.

mod auth;
mod body;
mod catalog;
pub mod cog;
mod content;
mod document;
mod envelope;
mod errors;
mod files;
mod home;
mod models;
mod options;
mod origin;
mod page;
mod predictions;
mod present;
mod render;
mod routes;
mod sse;
mod status;
mod stream;
mod upload;
mod wait;

use std::{collections::BTreeMap, sync::Arc};

use dispatch::Dispatch;
use prediction::Timestamp;
use schema::{ModelSchema, config::Account};
use store::{Store, feed::Feed};

use auth::Gate;
use catalog::Catalog;
pub use files::{FILES_SECRET, FileService};
pub use origin::OverTls;
pub use render::{body, render};

/// Everything a handler may use.
pub struct Api {
    pub store: Arc<dyn Store>,
    pub feed: Feed,
    pub dispatch: Dispatch,
    pub served: Vec<Served>,
    pub account: Account,
    pub auth: Auth,
    /// Which webhook URLs are accepted at all; delivery checks again.
    pub webhook_rules: egress::Rules,
    /// Of one JSON request body; a larger one is a 413.
    pub body_bytes: u64,
    pub files: FileService,
}

/// One model with its weights, under one or several names.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// The short name that predictions are dispatched to.
    pub target: String,
    /// `owner/name`; the first is the one a bare version id means. Never empty.
    pub names: Vec<String>,
    pub description: String,
    /// 64 hexadecimal digits.
    pub version: String,
    /// Hosted version ids that somebody's code pins, each with the name that it belongs to.
    pub aliases: BTreeMap<String, String>,
    pub schema: ModelSchema,
    pub created_at: Timestamp,
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Anybody, with any token or none, as long as no token was made: for a server that only this machine can reach.
    OpenUntilToken,
    /// Whoever holds a token that the store knows.
    Required,
}

/// What handlers share.
struct App {
    api: Api,
    catalog: Catalog,
    gate: Gate,
}

/// The whole API: under `/v1`, under `/v1/v1` and without a prefix.
pub fn router(api: Api) -> axum::Router {
    let catalog = Catalog::new(api.served.clone());
    routes::router(Arc::new(App { api, catalog, gate: Gate::default() }))
}
