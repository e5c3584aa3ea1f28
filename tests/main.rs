//! What crosses a border, in one binary: the program as users start it, the official clients, `kill -9`, the floors.

mod api_faults;
mod cli;
mod crash;
mod devices;
mod files;
mod hostile;
mod hub;
mod init;
mod memory;
mod models;
mod processes;
mod ps;
mod rerun;
mod residency;
mod stops;
mod support;
mod synth;
mod tidy;
mod tutorial;
mod weights;
mod worker_process;
