//! Dispatch against a worker that the test plays itself, frame by frame. Time is tokio's, paused.

mod ends;
mod faults;
mod inputs;
mod lives;
mod puppet;
mod runs;
mod slow_store;
