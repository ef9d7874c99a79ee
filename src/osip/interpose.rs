//! `free` and its kin, in `libpartyline.so` only: on stock osip2 a program may free with libc what osip2 allocated, and
//! programs do. Two comparisons tell whose block it is; what is not ours goes to the next definition, so another
//! allocator that is preloaded behind us keeps working. `PARTYLINE_FREE=off` passes everything on.
//!
//! # Contract
//! Pointers as for libc's functions of these names.

use core::ffi::c_void;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::pool::{self, next, os};

/// 0 until the environment has been read; 1 on, 2 off.
static STATE: AtomicU8 = AtomicU8::new(0);

pub fn on() -> bool {
    match STATE.load(Ordering::Relaxed) {
        0 => {
            let on = os::env(c"PARTYLINE_FREE") != Some(b"off");
            STATE.store(if on { 1 } else { 2 }, Ordering::Relaxed);
            on
        }
        state => state == 1,
    }
}

#[inline(always)]
fn ours(block: *mut c_void) -> bool {
    pool::offset_of(block as usize).is_some() && on()
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { if ours(block) { pool::free(block.cast()) } else { next::free(block.cast()) } }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { if ours(block) { pool::realloc(block.cast(), size) } else { next::realloc(block.cast(), size) }.cast() }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's promise.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => {
            // SAFETY: errno is this thread's.
            unsafe { *libc::__errno_location() = libc::ENOMEM };
            core::ptr::null_mut()
        }
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise.
    unsafe { if ours(block) { pool::usable_size(block.cast()) } else { next::usable_size(block.cast()) } }
}
