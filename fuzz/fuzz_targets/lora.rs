//! `cargo +nightly fuzz run lora`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::lora(bytes));
