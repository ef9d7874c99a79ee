//! The view of a message, and everything in the room `sip` that reads.
#![no_main]

#[path = "../../tests/sip_exercise/mod.rs"]
mod sip_exercise;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    sip_exercise::exercise(input);
});
