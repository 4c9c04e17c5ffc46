//! A frame through the parser that kernel and agent share.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_agent::fuzzing::packet(input));
