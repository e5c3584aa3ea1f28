//! What crosses a border, in one binary: the program as users start it, the official clients, `kill -9`, the floors.

// Named in the modules as `crate::support` and `crate::processes`.
extern crate support;
use support::processes;

mod api_faults;
mod cli;
mod cog;
mod crash;
mod deploy;
mod devices;
mod files;
mod hearing;
mod hostile;
mod hub;
mod images;
mod init;
mod memory;
mod models;
mod ps;
mod rerun;
mod residency;
mod stops;
mod synth;
mod tidy;
mod tutorial;
mod weights;
mod worker_process;
