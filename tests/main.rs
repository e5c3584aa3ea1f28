//! What crosses a border, in one binary: the program as users start it, the official clients, `kill -9`, the floors.

mod api_faults;
mod cli;
mod cog;
mod crash;
mod devices;
mod files;
mod models;
mod processes;
mod ps;
mod residency;
mod stops;
mod support;
mod synth;
mod tidy;
mod tutorial;
mod worker_process;
