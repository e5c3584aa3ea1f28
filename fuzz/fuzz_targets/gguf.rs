//! `cargo +nightly fuzz run gguf`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::gguf(bytes));
