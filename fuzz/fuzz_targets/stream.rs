//! Segments of one direction through reassembly.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_agent::fuzzing::stream(input));
