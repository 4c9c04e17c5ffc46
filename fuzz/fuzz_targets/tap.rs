//! A tap's connections through the decoder and into order.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_agent::fuzzing::tap(input));
