//! Replicate routes, SSE, errors. Refuses to know how a prediction runs.
