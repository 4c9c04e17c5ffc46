//! Streams of events, JSON lines and JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_agent::fuzzing::events(input));
