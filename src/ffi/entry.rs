//! The guard that every exported function opens with.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Code, Error, set_last_error};

/// Runs the body of an exported function that returns a code: 0 or a positive value as the body says, a negative
/// [`Code`] for an error, whose text becomes `partyline_last_error()`. A panic becomes [`Code::Panic`].
///
/// `AssertUnwindSafe` is sound here: parking_lot locks are released on unwind, and state behind them is changed only
/// after what can panic; what a panic leaves half done belongs to the one call that failed.
pub fn entry(name: &'static str, body: impl FnOnce() -> Result<c_int, Error>) -> c_int {
    match guarded(body) {
        Ok(value) => value,
        Err(error) => {
            set_last_error(name, &error.text);
            error.code as c_int
        }
    }
}

/// The same for a function that returns a value instead of a code: `failed` is returned on an error.
pub fn entry_value<T>(name: &'static str, failed: T, body: impl FnOnce() -> Result<T, Error>) -> T {
    match guarded(body) {
        Ok(value) => value,
        Err(error) => {
            set_last_error(name, &error.text);
            failed
        }
    }
}

fn guarded<T>(body: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(panic) => {
            let what = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no text");
            Err(Error::new(Code::Panic, format!("a defect of partyline was caught: {what}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: last_error returns a NUL-terminated text that lives until this thread's next error.
        unsafe { CStr::from_ptr(super::super::last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn an_error_gives_its_code_and_leaves_its_text() {
        let code = entry("f", || Err(Error::new(Code::Full, "the\0 queue is full")));
        assert_eq!((code, last().as_str()), (-9, "f: the queue is full"));
    }

    #[test]
    fn a_panic_becomes_a_code() {
        let code = entry("f", || panic!("ouch {}", 1));
        assert_eq!(code, -11);
        assert!(last().contains("ouch 1"), "{}", last());
    }
}
