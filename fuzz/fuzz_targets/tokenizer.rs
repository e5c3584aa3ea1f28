//! `cargo +nightly fuzz run tokenizer`
#![no_main]

libfuzzer_sys::fuzz_target!(
    // A panic of the reader that is caught is a refusal: libFuzzer's hook, which ends the process at once, goes.
    init: drop(std::panic::take_hook()),
    |bytes: &[u8]| fuzz::tokenizer(bytes)
);
