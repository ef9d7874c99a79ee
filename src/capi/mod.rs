//! The `partyline_*` functions, and nothing else. Each body runs inside [`crate::ffi::entry`]; what it does stands in the
//! rooms above. The comments become `include/partyline.h`.
//!
//! # Safety
//! One contract for the whole room: a pointer argument is NULL, or points to what the function's comment says, for as
//! long as the comment says. Handles are looked up, so any bit pattern is safe for them.
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

mod clock;
pub(crate) mod engine;
mod message;
mod module;
mod plugin;
mod pool;
pub(crate) mod registrar;
mod stats;
mod stream;

use std::ffi::{c_char, c_int};

use crate::ffi::{self, Code};

/// Done.
pub const PARTYLINE_OK: c_int = 0;
/// An argument is NULL, garbage, out of range, or a handle that is not (or no longer) valid.
pub const PARTYLINE_EINVAL: c_int = -1;
/// No memory, also when the pool's limit is reached.
pub const PARTYLINE_ENOMEM: c_int = -2;
/// The call does not fit the object's state: running already, stopped, or used in a forked child.
pub const PARTYLINE_ESTATE: c_int = -3;
/// An address cannot be used: in use, not of this host, no permission.
pub const PARTYLINE_EADDR: c_int = -4;
/// The operating system refused; the text has its reason.
pub const PARTYLINE_EIO: c_int = -5;
/// The database cannot be reached or refused the statement.
pub const PARTYLINE_EDB: c_int = -6;
/// The tables are of a version that this library does not know.
pub const PARTYLINE_ESCHEMA: c_int = -7;
/// An option is unknown or its value cannot be used.
pub const PARTYLINE_ECONFIG: c_int = -8;
/// A documented bound is reached: try again later.
pub const PARTYLINE_EFULL: c_int = -9;
/// What was asked for does not exist.
pub const PARTYLINE_ENOTFOUND: c_int = -10;
/// A defect of this library, caught before it reached the caller. Please report its text.
pub const PARTYLINE_EPANIC: c_int = -11;
/// The buffer is too small; the size that is needed was written to the length's out-parameter.
pub const PARTYLINE_ETOOSMALL: c_int = -12;

// The constants above are what C sees of ffi::Code: a number that drifted would not compile.
const _: () = {
    assert!(PARTYLINE_EINVAL == Code::Invalid as c_int && PARTYLINE_ENOMEM == Code::NoMemory as c_int);
    assert!(PARTYLINE_ESTATE == Code::State as c_int && PARTYLINE_EADDR == Code::Address as c_int);
    assert!(PARTYLINE_EIO == Code::Io as c_int && PARTYLINE_EDB == Code::Database as c_int);
    assert!(PARTYLINE_ESCHEMA == Code::Schema as c_int && PARTYLINE_ECONFIG == Code::Config as c_int);
    assert!(PARTYLINE_EFULL == Code::Full as c_int && PARTYLINE_ENOTFOUND == Code::NotFound as c_int);
    assert!(PARTYLINE_EPANIC == Code::Panic as c_int && PARTYLINE_ETOOSMALL == Code::TooSmall as c_int);
};

/// The library's version, "major.minor.patch". A static string.
#[unsafe(no_mangle)]
pub extern "C" fn partyline_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The sentence that belongs to the last error on the calling thread, "" if there was none. It stays valid until the
/// next failing call of this thread; do not free it. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn partyline_last_error() -> *const c_char {
    ffi::last_error()
}

/// The name of a code, such as "PARTYLINE_EINVAL"; "unknown code" for any other number. A static string.
#[unsafe(no_mangle)]
pub extern "C" fn partyline_strerror(code: c_int) -> *const c_char {
    let name = match code {
        PARTYLINE_OK => c"PARTYLINE_OK",
        PARTYLINE_EINVAL => c"PARTYLINE_EINVAL",
        PARTYLINE_ENOMEM => c"PARTYLINE_ENOMEM",
        PARTYLINE_ESTATE => c"PARTYLINE_ESTATE",
        PARTYLINE_EADDR => c"PARTYLINE_EADDR",
        PARTYLINE_EIO => c"PARTYLINE_EIO",
        PARTYLINE_EDB => c"PARTYLINE_EDB",
        PARTYLINE_ESCHEMA => c"PARTYLINE_ESCHEMA",
        PARTYLINE_ECONFIG => c"PARTYLINE_ECONFIG",
        PARTYLINE_EFULL => c"PARTYLINE_EFULL",
        PARTYLINE_ENOTFOUND => c"PARTYLINE_ENOTFOUND",
        PARTYLINE_EPANIC => c"PARTYLINE_EPANIC",
        PARTYLINE_ETOOSMALL => c"PARTYLINE_ETOOSMALL",
        _ => c"unknown code",
    };
    name.as_ptr()
}

/// Writes `text` and a NUL into the caller's buffer, or says how large it has to be.
///
/// # Safety
/// `buffer` is NULL or points to `capacity` writable bytes; `length` is NULL or points to a writable size_t.
unsafe fn copy_out(text: &[u8], buffer: *mut c_char, capacity: usize, length: *mut usize) -> Result<c_int, ffi::Error> {
    let needed = text.len() + 1;
    if !length.is_null() {
        // SAFETY: not NULL; the caller's contract.
        unsafe { length.write(if needed <= capacity { text.len() } else { needed }) };
    }
    if needed > capacity || buffer.is_null() {
        return Err(ffi::Error::new(
            Code::TooSmall,
            format!("the buffer holds {capacity} bytes, {needed} are needed (with the NUL at the end)"),
        ));
    }
    // SAFETY: the buffer is not NULL and holds at least `needed` bytes, by the check above and the caller's contract;
    // a Rust slice never overlaps memory that C may write during the call.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(PARTYLINE_OK)
}
