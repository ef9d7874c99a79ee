//! Digest authentication: an Authorization header's value against a registrar with one user.
#![no_main]

#[path = "../../tests/auth_exercise/mod.rs"]
mod auth_exercise;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    auth_exercise::exercise(input, &std::env::temp_dir());
});
