//! Rows, events, leases, outbox. Refuses to know HTTP, models and workers.
