//! Dispatch against a worker that the test plays itself, frame by frame. Time is tokio's, paused; `injected` alone has real
//! workers and real time.

mod devices;
mod ends;
mod faults;
mod injected;
mod lives;
mod player;
mod puppet;
mod residency;
mod runs;
mod slow_store;
mod stages;
