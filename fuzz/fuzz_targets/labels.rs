//! Files of labels.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_agent::fuzzing::labels(input));
