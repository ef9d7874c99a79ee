//! Borrowed C arguments: strings, byte ranges and out-parameters. What is NULL is an error; what is not NULL has to point
//! where the header says, which no library can check.

use std::ffi::{CStr, c_char};

use super::Error;

/// A NUL-terminated argument as UTF-8.
///
/// # Safety
/// `pointer` is NULL or points to a NUL-terminated string that stays unchanged during the call.
pub unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a str, Error> {
    if pointer.is_null() {
        return Err(Error::invalid(format!("{what} is NULL")));
    }
    // SAFETY: not NULL; the rest is this function's own contract.
    let raw = unsafe { CStr::from_ptr(pointer) };
    raw.to_str().map_err(|_| Error::invalid(format!("{what} is not UTF-8: \"{}\"", raw.to_bytes().escape_ascii())))
}

/// A byte range; `NULL, 0` is the empty one.
///
/// # Safety
/// `pointer` is NULL or points to `length` readable bytes that stay unchanged during the call.
pub unsafe fn bytes<'a>(pointer: *const u8, length: usize, what: &str) -> Result<&'a [u8], Error> {
    match (pointer.is_null(), length) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Error::invalid(format!("{what} is NULL with a length of {length}"))),
        (false, _) if length > isize::MAX as usize => Err(Error::invalid(format!("{what} has a length of {length}"))),
        // SAFETY: not NULL, a length that a slice may have; the rest is this function's own contract.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(pointer, length) }),
    }
}

/// An out-parameter that must be given.
///
/// # Safety
/// `pointer` is NULL or points to a `T` that nobody else uses during the call. What it held is not read or dropped.
pub unsafe fn out<'a, T>(pointer: *mut T, what: &str) -> Result<&'a mut std::mem::MaybeUninit<T>, Error> {
    // SAFETY: MaybeUninit<T> has the layout of T and may be uninitialised; the rest is this function's own contract.
    unsafe { pointer.cast::<std::mem::MaybeUninit<T>>().as_mut() }
        .ok_or_else(|| Error::invalid(format!("{what} is NULL")))
}
