//! One folder per model. Refuses to know HTTP, store, dispatch and each other.
