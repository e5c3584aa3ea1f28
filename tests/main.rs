//! What crosses a border, in one binary: the program as users start it, the official clients, `kill -9`, the floors.

mod api_faults;
mod cli;
mod crash;
mod files;
mod stops;
mod support;
mod tidy;
mod tutorial;
mod worker_process;
