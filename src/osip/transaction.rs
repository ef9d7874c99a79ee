//! A transaction's life: made, given events, freed.

use core::ffi::c_int;
use core::ptr::null_mut;
use core::sync::atomic::Ordering;

use super::glue::{self, Event, Message, Osip, Transaction};
use super::side::{self, LISTED, RUNNING, Side};
use super::{memory, slab, stack};

/// Zeroed memory with a side. Where the pool is not in use (a checker is, or the program has its own allocators) each
/// transaction is a block of its own.
fn alloc() -> Option<(*mut Transaction, *mut Side)> {
    if memory::installed() {
        if let Some(slot) = slab::alloc() {
            return Some(slot);
        }
    }
    // SAFETY: the block is as long as is written.
    unsafe {
        let tr = glue::partyline_alloc(glue::partyline_glue_transaction_size);
        if tr.is_null() {
            return None;
        }
        core::ptr::write_bytes(tr.cast::<u8>(), 0, glue::partyline_glue_transaction_size);
        let tr = tr.cast::<Transaction>();
        Some((tr, side::adopt(tr)))
    }
}

/// # Safety
/// As `osip_transaction_init`.
pub unsafe fn init(out: *mut *mut Transaction, kind: c_int, osip: *mut Osip, request: *mut Message) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        *out = null_mut();
        if glue::partyline_glue_has_call_id(request) == 0 {
            return glue::bad_parameter();
        }
        let Some((tr, side)) = alloc() else { return glue::no_memory() };
        let code = glue::partyline_glue_transaction_init(tr, kind, osip, request, side.cast());
        if code != glue::SUCCESS {
            dispose(tr);
            return code;
        }
        (*side).fifo.store(glue::partyline_glue_fifo(tr), Ordering::Relaxed);
        stack::add(osip, tr, if (0..3).contains(&kind) { kind } else { 3 });
        *out = tr;
    }
    glue::SUCCESS
}

/// # Safety
/// As `osip_create_transaction`.
pub unsafe fn create(osip: *mut Osip, event: *mut Event) -> *mut Transaction {
    let (mut request, mut tr) = (null_mut(), null_mut());
    // SAFETY: the caller's promise.
    unsafe {
        let kind = glue::partyline_glue_event_starts(event, &mut request);
        if kind < 0 || init(&mut tr, kind, osip, request) != glue::SUCCESS {
            return null_mut();
        }
        glue::partyline_glue_event_set_id(event, glue::partyline_glue_id(tr));
    }
    tr
}

/// # Safety
/// As `osip_transaction_add_event`.
pub unsafe fn add_event(tr: *mut Transaction, event: *mut Event) -> c_int {
    if tr.is_null() || event.is_null() || side::is_gone(tr) {
        return glue::bad_parameter();
    }
    // SAFETY: the caller's promise.
    unsafe {
        glue::partyline_glue_event_set_id(event, glue::partyline_glue_id(tr));
        let owner = super::fifo::put(glue::partyline_glue_fifo(tr), event.cast(), false);
        // A fifo that the program put in its place does not know whose it is.
        match side::find(tr) {
            Some(side) if owner != side => stack::wake(side),
            _ => {}
        }
    }
    glue::SUCCESS
}

/// # Safety
/// As `osip_transaction_free`.
pub unsafe fn free(tr: *mut Transaction) -> c_int {
    if tr.is_null() || side::is_gone(tr) {
        return glue::bad_parameter();
    }
    // SAFETY: the caller's promise.
    unsafe {
        stack::remove_any(glue::partyline_glue_config(tr), tr);
        free2(tr)
    }
}

/// # Safety
/// As `osip_transaction_free2`.
pub unsafe fn free2(tr: *mut Transaction) -> c_int {
    if tr.is_null() || side::is_gone(tr) {
        return glue::bad_parameter();
    }
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(side) = side::find(tr) {
            let lane = (*side).lane.load(Ordering::Acquire);
            if !lane.is_null() {
                if (*side).is(LISTED) {
                    // Stock would leave a dangling element in the list.
                    let _public = (*lane).public();
                    (*lane).remove(tr);
                }
                let mut state = (*lane).lock();
                if (*side).is(RUNNING) {
                    // From its own callback: the state machine still reads it.
                    (*side).freed.store(true, Ordering::Release);
                    return glue::SUCCESS;
                }
                (*lane).bury(&mut state, side);
                (*side).lane.store(null_mut(), Ordering::Release);
            }
        }
        dispose(tr);
    }
    glue::SUCCESS
}

/// Frees what is in no lane.
///
/// # Safety
/// Nobody uses the transaction any more.
pub unsafe fn dispose(tr: *mut Transaction) {
    // SAFETY: the caller's promise.
    unsafe {
        glue::partyline_glue_transaction_clear(tr);
        if !slab::free(tr) {
            if let Some(side) = side::find(tr) {
                side::forget(tr, side);
            }
            glue::partyline_release(tr.cast());
        }
    }
}
