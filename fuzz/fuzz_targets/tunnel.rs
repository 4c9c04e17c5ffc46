//! A datagram through the tunnel decoder.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_agent::fuzzing::tunnel(input));
