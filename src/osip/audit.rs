//! What programs write themselves: timers, a transaction's fifo, its Via. Nothing tells the engine, so each timers call
//! looks at 64 transactions, round and round; of a list that is no longer than that, at all.
//!
//! | written | found after, with N listed |
//! |---|---|
//! | timers, state, a fifo that was exchanged | N / 64 timers calls |
//! | the Via, the Call-ID, the transaction's id | 16 times that: they lie behind five pointers, which likely are in no cache |
//!
//! A transaction that comes or goes meanwhile moves another one in the order, which may then be passed over until the next
//! round.

use core::sync::atomic::Ordering;

use super::glue;
use super::lane::{Lane, State};
use super::side::{IDS, KEYS, RUNNING, Side};

const AT_ONCE: usize = 64;
/// Of the transactions looked at, one in so many has its key read.
const KEYS_OF: usize = 16;
/// How far ahead memory is fetched: 64 transactions that are in no cache then cost little more than the first few.
const AHEAD: usize = 8;

/// How far the round has come.
#[derive(Default)]
pub struct Audit {
    at: usize,
    round: usize,
}

impl Lane {
    /// Whether one call looks at all of it.
    pub fn is_short(&self, state: &State) -> bool {
        state.members.len() <= AT_ONCE
    }

    /// # Safety
    /// Both mutexes are held.
    pub unsafe fn audit(&self, state: &mut State) {
        let count = state.members.len();
        if self.is_short(state) {
            for place in 0..count {
                // SAFETY: listed transactions are live.
                unsafe {
                    self.look(state, state.members[place]);
                    self.rekey(state, state.members[place]);
                }
            }
            return;
        }
        let from = if state.audit.at < count { state.audit.at } else { 0 };
        let place = |step: usize| if from + step < count { from + step } else { from + step - count };
        for step in 0..AT_ONCE + 3 * AHEAD {
            // SAFETY: as above; the side of a member is read one step after it was fetched.
            unsafe {
                if step < AT_ONCE {
                    glue::partyline_glue_fetch_side(state.members[place(step)].cast());
                }
                if (AHEAD..AT_ONCE + AHEAD).contains(&step) {
                    glue::partyline_glue_fetch((*state.members[place(step - AHEAD)]).tr);
                }
                if (2 * AHEAD..AT_ONCE + 2 * AHEAD).contains(&step) {
                    glue::partyline_glue_fetch_context((*state.members[place(step - 2 * AHEAD)]).tr);
                }
                if step >= 3 * AHEAD {
                    let place = place(step - 3 * AHEAD);
                    let side = state.members[place];
                    self.look(state, side);
                    if place % KEYS_OF == state.audit.round % KEYS_OF {
                        self.rekey(state, side);
                    }
                }
            }
        }
        if from + AT_ONCE >= count {
            state.audit.round += 1;
        }
        state.audit.at = place(AT_ONCE);
    }

    unsafe fn look(&self, state: &mut State, side: *mut Side) {
        // SAFETY: called by `audit`.
        unsafe {
            if (*side).is(RUNNING) {
                return;
            }
            self.read(state, side);
            let tr = (*side).tr;
            // The fifo that it was made with tells us itself.
            let made_with = (*side).fifo.load(Ordering::Relaxed);
            if glue::partyline_glue_fifo(tr) != made_with && glue::partyline_glue_pending(tr) > 0 {
                self.wake(state, side);
            }
        }
    }

    unsafe fn rekey(&self, state: &mut State, side: *mut Side) {
        // SAFETY: called by `audit`.
        unsafe {
            if (*side).is(RUNNING) {
                return;
            }
            let key = self.key_of((*side).tr);
            if key != (*side).hash[KEYS] {
                state.keys.remove(side);
                (*side).hash[KEYS] = key;
                state.keys.insert(side);
            }
            let id = glue::partyline_glue_id((*side).tr);
            if id != (*side).id {
                state.ids.remove(side);
                (*side).id = id;
                (*side).hash[IDS] = self.id_hash(id);
                state.ids.insert(side);
            }
        }
    }
}
