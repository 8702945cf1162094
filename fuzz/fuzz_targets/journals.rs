#![no_main]
//! See `handfast_fuzz`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| handfast_fuzz::run("journals", data));
