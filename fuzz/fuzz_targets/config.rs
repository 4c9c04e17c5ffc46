//! Configs, and what is said of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mirror_user::fuzzing::config(input));
