#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blackhole_fuzz::token(data));
