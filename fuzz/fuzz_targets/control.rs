//! What taps and agents say to each other.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_user::fuzzing::control(input));
