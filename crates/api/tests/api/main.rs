//! The API as a client meets it. One file per kind of promise.

mod cog;
mod create;
mod file_outputs;
mod files;
mod harness;
mod lists;
mod refusals;
mod streams;
