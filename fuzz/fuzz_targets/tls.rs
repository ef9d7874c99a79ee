//! A TLS listener: bytes instead of a hello, and sessions cut and changed on their way.
#![no_main]

#[path = "../../tests/tls_exercise/mod.rs"]
mod tls_exercise;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tls_exercise::exercise(input);
});
