//! Device, precision, pinned weights. Refuses to know models and HTTP APIs.
