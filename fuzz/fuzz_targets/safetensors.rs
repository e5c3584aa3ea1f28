//! `cargo +nightly fuzz run safetensors`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::safetensors(bytes));
