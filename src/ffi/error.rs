//! Error codes of the C interface, and the text of the last error per thread.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, c_char};

/// The negative codes that every `partyline_*` function may return. The numbers are part of the ABI: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// An argument is NULL, garbage, out of range, or a handle that is not (or no longer) valid.
    Invalid = -1,
    /// No memory, also when the pool's limit is reached.
    NoMemory = -2,
    /// The call does not fit the object's state: running already, stopped, or used in a forked child.
    State = -3,
    /// An address cannot be used: in use, not of this host, no permission.
    Address = -4,
    /// The operating system refused; the text has its reason.
    Io = -5,
    /// The database cannot be reached or refused the statement.
    Database = -6,
    /// The tables are of a version that this library does not know.
    Schema = -7,
    /// An option is unknown or its value cannot be used.
    Config = -8,
    /// A documented bound is reached: try again later.
    Full = -9,
    /// What was asked for does not exist.
    NotFound = -10,
    /// A defect of this library, caught before it reached the caller.
    Panic = -11,
    /// The caller's buffer is too small; the size that is needed was written.
    TooSmall = -12,
}

/// A code with the sentence that a person reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    pub text: Cow<'static, str>,
}

impl Error {
    pub fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        Error { code, text: text.into() }
    }

    pub fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Invalid, text)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

thread_local! {
    /// Ends with a NUL; kept from error to error, so that a look-up that finds nothing costs no allocation.
    static LAST: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Remembers `function: text` as this thread's last error. A NUL inside is left out, so that nothing after it is lost.
pub fn set_last_error(function: &str, text: &str) {
    // The destructor of the thread-local may have run already (a call from another thread-exit destructor): then there
    // is nobody left who could ask.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            last.clear();
            last.extend_from_slice(function.as_bytes());
            last.extend_from_slice(b": ");
            last.extend(text.bytes().filter(|b| *b != 0));
            last.push(0);
        }
    });
}

/// The text of the last error on this thread, "" when there was none. Valid until the next failing call of this thread.
pub fn last_error() -> *const c_char {
    const NOTHING: &CStr = c"";
    LAST.try_with(|last| match last.try_borrow() {
        Ok(text) if !text.is_empty() => text.as_ptr().cast(),
        _ => NOTHING.as_ptr(),
    })
    .unwrap_or(NOTHING.as_ptr())
}
