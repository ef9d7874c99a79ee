//! `osip_*_execute`: the transactions that have events, in list order, each drained before the next.
//!
//! The call covers what is in the list when it begins. An event that arrives for one further down the list runs in
//! this call, for one before it in the next call. Two threads never run one transaction at the same time: who finds it
//! running leaves its events to the other. The loop itself stands in C, see `glue_engine.c`.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::Ordering;

use super::glue::{self, Event, Osip, Step};
use super::lane::Lane;
use super::side::{RUNNING, Side};
use super::{stack, transaction};
use crate::ffi;

struct Call {
    lane: &'static Lane,
    /// Transactions from here on are newer than the call.
    bound: u64,
    cursor: u64,
    current: *mut Side,
    executed: u64,
}

/// A callback may unwind through this frame (`pthread_exit`, cancellation): nothing in it has a destructor, and no
/// `catch_unwind`, which would end the process, lies around the loop.
///
/// # Safety
/// As `osip_ict_execute` and its siblings.
pub unsafe fn execute(osip: *mut Osip, kind: c_int) -> c_int {
    let begun = ffi::entry_value("osip_execute", None, || {
        let lane = &stack::of(osip).lanes[kind as usize];
        Ok(begin(lane).map(|bound| Call { lane, bound, cursor: 0, current: null_mut(), executed: 0 }))
    });
    let Some(mut call) = begun else { return glue::SUCCESS };
    // SAFETY: the call outlives the loop; no lock is held.
    unsafe { glue::partyline_glue_execute((&raw mut call).cast(), next, leave) };
    glue::SUCCESS
}

fn begin(lane: &Lane) -> Option<u64> {
    if lane.is_empty() {
        return None;
    }
    let _public = lane.public();
    let mut state = lane.lock();
    // SAFETY: both mutexes are held.
    unsafe { lane.sync(&mut state) };
    state.ready.first()?;
    state.calls += 1;
    Some(state.next_seq)
}

/// The next event of the call, or 0. Called by the loop in C.
///
/// # Safety
/// `call` is the loop's call, `step` writable.
unsafe extern "C" fn next(call: *mut c_void, step: *mut Step) -> c_int {
    // SAFETY: the caller's promise.
    ffi::entry_value("osip_execute", 0, || unsafe { Ok(advance(&mut *call.cast::<Call>(), step)) })
}

unsafe fn advance(call: &mut Call, step: *mut Step) -> c_int {
    // SAFETY: the caller's promise; a running transaction is freed by nobody else.
    unsafe {
        loop {
            if !call.current.is_null() {
                if !(*call.current).freed.load(Ordering::Acquire) {
                    let tr = (*call.current).tr;
                    let event = glue::partyline_glue_next_event(tr);
                    if !event.is_null() {
                        call.executed += 1;
                        step.write(Step { transaction: tr, event });
                        return 1;
                    }
                }
                let tr = (*call.current).tr;
                if let Some(event) = done(call) {
                    call.executed += 1;
                    step.write(Step { transaction: tr, event });
                    return 1;
                }
            }
            if !pick(call) {
                return 0;
            }
        }
    }
}

/// The current transaction has no more events; if one has come in meanwhile, that one. A fifo that counts events and gives
/// none (its semaphore could not be made, or the program took from it by hand) is empty here, as in stock.
unsafe fn done(call: &mut Call) -> Option<*mut Event> {
    let side = call.current;
    let lane = call.lane;
    let mut state = lane.lock();
    // SAFETY: it runs in this call.
    unsafe {
        let freed = (*side).freed.load(Ordering::Acquire);
        if !freed && glue::partyline_glue_pending((*side).tr) > 0 {
            let event = glue::partyline_glue_next_event((*side).tr);
            if !event.is_null() {
                return Some(event);
            }
        }
        (*side).flags &= !RUNNING;
        call.current = null_mut();
        if freed {
            lane.bury(&mut state, side);
            (*side).lane.store(null_mut(), Ordering::Release);
            drop(state);
            transaction::dispose((*side).tr);
            return None;
        }
        if (*side).is(super::side::LISTED) {
            lane.read(&mut state, side);
        } else if !(*side).is(super::side::GHOST) {
            (*side).lane.store(null_mut(), Ordering::Release);
        }
    }
    None
}

unsafe fn pick(call: &mut Call) -> bool {
    let lane = call.lane;
    let mut state = lane.lock();
    loop {
        let Some((seq, side)) = state.ready.first() else { return false };
        if seq >= call.bound {
            return false;
        }
        // SAFETY: members of the heap are live and in this lane.
        unsafe {
            if seq < call.cursor || (*side).is(RUNNING) {
                lane.postpone(&mut state, side);
                continue;
            }
            state.ready.remove(side);
            (*side).flags |= RUNNING;
            call.cursor = seq + 1;
            call.current = side;
        }
        return true;
    }
}

/// The end of the call, also when a callback has left it by `pthread_exit` or cancellation: then the transaction that
/// ran is free for other threads, and what it has left in its fifo is ready.
///
/// # Safety
/// As [`next`].
unsafe extern "C" fn leave(call: *mut c_void) {
    ffi::entry_value("osip_execute", (), || {
        // SAFETY: the caller's promise.
        unsafe { end(&mut *call.cast::<Call>()) };
        Ok(())
    })
}

unsafe fn end(call: &mut Call) {
    // SAFETY: the caller's promise.
    unsafe {
        let left = call.current;
        let mut gone = null_mut();
        let mut state = call.lane.lock();
        if !left.is_null() {
            (*left).flags &= !RUNNING;
            if (*left).freed.load(Ordering::Acquire) {
                call.lane.bury(&mut state, left);
                (*left).lane.store(null_mut(), Ordering::Release);
                gone = (*left).tr;
            } else {
                call.lane.read(&mut state, left);
                if glue::partyline_glue_pending((*left).tr) > 0 {
                    call.lane.wake(&mut state, left);
                }
            }
        }
        state.executed += call.executed;
        state.calls -= 1;
        call.lane.settle(&mut state);
        drop(state);
        if !gone.is_null() {
            transaction::dispose(gone);
        }
    }
}
