//! The API as a client meets it. One file per kind of promise.

mod create;
mod harness;
mod lists;
mod refusals;
mod streams;
