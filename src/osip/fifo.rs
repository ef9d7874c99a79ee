//! `osip_fifo_*`. The fifo of a transaction knows its owner, so that an event added with `osip_fifo_add` itself counts.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::Ordering;

use super::glue::{self, Fifo};
use super::side::Side;
use super::stack;

/// Of [`glue::partyline_fifo_put`]: the fifo of a 3.x holds 1,000.
const FULL: c_int = 2;

/// Adds, and tells the owner; returns the owner.
///
/// # Safety
/// As `osip_fifo_add`.
pub unsafe fn put(fifo: *mut Fifo, element: *mut c_void, front: bool) -> *mut Side {
    // SAFETY: the caller's promise.
    unsafe { put_or_say(fifo, element, front).0 }
}

unsafe fn put_or_say(fifo: *mut Fifo, element: *mut c_void, front: bool) -> (*mut Side, c_int) {
    let mut failed = 0;
    // SAFETY: the caller's promise; an owner is a side.
    unsafe {
        let owner: *mut Side = glue::partyline_fifo_put(fifo, element, front.into(), &mut failed).cast();
        if !owner.is_null() {
            stack::wake(owner);
        }
        (owner, if failed == FULL { glue::UNDEFINED_ERROR } else { glue::SUCCESS })
    }
}

/// # Safety
/// As `osip_fifo_add`.
pub unsafe fn add(fifo: *mut Fifo, element: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { put_or_say(fifo, element, false).1 }
}

/// # Safety
/// As `osip_fifo_insert`.
pub unsafe fn insert(fifo: *mut Fifo, element: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { put_or_say(fifo, element, true).1 }
}

/// # Safety
/// As `osip_fifo_init`.
pub unsafe fn init(fifo: *mut Fifo) {
    // SAFETY: the caller's promise.
    unsafe { glue::partyline_fifo_setup(fifo, null_mut()) };
}

/// # Safety
/// As `osip_fifo_free`.
pub unsafe fn free(fifo: *mut Fifo) {
    if !fifo.is_null() {
        // SAFETY: the caller's promise; an owner is a side, which is never unmapped.
        unsafe {
            let owner: *mut Side = glue::partyline_fifo_owner(fifo).cast();
            if !owner.is_null() {
                // The next one may lie at the same address, and tell nobody.
                (*owner).fifo.store(null_mut(), Ordering::Relaxed);
            }
            glue::partyline_fifo_drop(fifo);
        }
    }
}
