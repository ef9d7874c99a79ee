//! `osip_timers_*`: costs what is due. Whether a timer has expired is decided by osip2's own functions.

use core::cell::RefCell;
use core::ffi::c_int;

use super::glue::{self, Deadline, ICT, Osip};
use super::side::Side;
use super::stack;

const YEAR: i64 = 3600 * 24 * 365;

thread_local! {
    /// What is due, kept from call to call.
    static DUE: RefCell<Vec<*mut Side>> = const { RefCell::new(Vec::new()) };
}

/// # Safety
/// As `osip_timers_ict_execute` and its siblings.
pub unsafe fn execute(osip: *mut Osip, kind: c_int) {
    let lane = &stack::of(osip).lanes[kind as usize];
    if lane.is_empty() {
        return;
    }
    let public = lane.public();
    let mut due = DUE.with(|due| core::mem::take(&mut *due.borrow_mut()));
    due.clear();
    // SAFETY: the public mutex is held: what is listed stays listed, and alive.
    unsafe {
        {
            let mut state = lane.lock();
            lane.sync(&mut state);
            let now = Deadline::now();
            lane.audit(&mut state);
            state.due.until(now, &mut due);
        }
        due.sort_unstable_by_key(|side| (**side).seq);
        for side in &due {
            let tr = (**side).tr;
            // As in stock: only a client INVITE with an event waiting gets none for its timer.
            if kind == ICT && glue::partyline_glue_pending(tr) >= 1 {
                continue;
            }
            let event = glue::partyline_glue_timer_event(tr);
            if event.is_null() {
                let mut state = lane.lock();
                if !(**side).is(super::side::RUNNING) {
                    lane.read(&mut state, *side);
                }
            } else {
                super::fifo::add(glue::partyline_glue_fifo(tr), event.cast());
                let mut state = lane.lock();
                state.timers += 1;
                lane.wake(&mut state, *side);
            }
        }
    }
    drop(public);
    DUE.with(|kept| *kept.borrow_mut() = due);
}

/// # Safety
/// As `osip_timers_gettimeout`.
pub unsafe fn gettimeout(osip: *mut Osip, out: *mut libc::timeval) {
    let now = Deadline::now();
    let mut least = Deadline { sec: now.sec + YEAR, usec: now.usec };
    let stack = stack::of(osip);
    // SAFETY: the caller's promise.
    unsafe {
        let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
        for lane in stack.lanes.iter().filter(|lane| !lane.is_empty()) {
            let _public = lane.public();
            let mut state = lane.lock();
            lane.sync(&mut state);
            if lane.is_short(&state) {
                lane.audit(&mut state);
            }
            if lane.kind == ICT {
                while let Some((_, side)) = state.ready.first() {
                    if glue::partyline_glue_pending((*side).tr) >= 1 {
                        out.write(zero);
                        return;
                    }
                    lane.calm(&mut state, side);
                }
            }
            if let Some(deadline) = state.due.first() {
                least = least.min(deadline);
            }
            if now >= least {
                out.write(zero);
                return;
            }
        }
        least = least.min(stack.resends.first(now));
        if now >= least {
            out.write(zero);
            return;
        }
        let (mut sec, mut usec) = (least.sec - now.sec, least.usec - now.usec);
        if usec < 0 {
            (sec, usec) = (sec - 1, usec + 1_000_000);
        }
        if sec < 0 {
            (sec, usec) = (0, 0);
        } else if usec > 1_000_000 {
            (sec, usec) = (sec + 1, usec - 1_000_000);
        }
        out.write(libc::timeval { tv_sec: sec, tv_usec: usec });
    }
}
