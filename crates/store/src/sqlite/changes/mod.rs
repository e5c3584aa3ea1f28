//! What can be done to rows: one struct each, applied by the writer inside its transaction.

pub(super) mod append;
pub(super) mod create;
pub(super) mod files;
pub(super) mod leases;
pub(super) mod outbox;
pub(super) mod runs;
pub(super) mod sweep;
pub(super) mod tokens;
