//! Frames of both directions through the reader of HTTP/2.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_agent::fuzzing::http2(input));
