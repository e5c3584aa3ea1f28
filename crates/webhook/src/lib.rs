//! Outbox to signed POST. Refuses to know who makes predictions.
