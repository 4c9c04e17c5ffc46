//! Segments of one direction through reassembly.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_user::fuzzing::stream(input));
