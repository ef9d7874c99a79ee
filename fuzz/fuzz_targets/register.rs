//! REGISTER handling: reading, the rules, the cache, the answer.
#![no_main]

#[path = "../../tests/register_exercise/mod.rs"]
mod register_exercise;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    register_exercise::exercise(input);
});
