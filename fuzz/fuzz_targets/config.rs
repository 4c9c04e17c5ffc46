//! Configs, and what is said of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    mirror_agent::fuzzing::config(input);
    mirror_node::fuzzing::config(input);
});
