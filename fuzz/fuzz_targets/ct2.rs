//! `cargo +nightly fuzz run ct2`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::ct2(bytes));
