//! `cargo +nightly fuzz run trained`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::trained(bytes));
