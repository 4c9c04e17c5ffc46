//! Segments of both directions through the table of exchanges.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_agent::fuzzing::http(input));
