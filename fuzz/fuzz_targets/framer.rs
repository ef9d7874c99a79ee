//! The stream framer beside a plain reading of its rules. The input is the stream; its end says how it is cut.
#![no_main]

#[path = "../../tests/framer_exercise/mod.rs"]
mod framer_exercise;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    framer_exercise::exercise(input, &input[input.len().saturating_sub(8)..]);
});
