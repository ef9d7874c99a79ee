//! What programs write themselves: timers, a transaction's fifo, its Via. Nothing tells the engine, so each timers call
//! looks at 64 transactions, round and round; of a list that is no longer than that, at all.
//!
//! | written | found after, with N listed |
//! |---|---|
//! | timers, state, a fifo that was exchanged | N / 64 timers calls |
//! | the Via, the Call-ID, the transaction's id | 16 times that: they lie behind five pointers, which likely are in no cache |
//!
//! Where a call comes to the end of the list it looks at what is left of it only.

use core::ptr::null_mut;
use core::sync::atomic::Ordering;

use super::glue;
use super::lane::{Lane, State};
use super::side::{IDS, KEYS, MEMBER, RUNNING, Side};

const AT_ONCE: usize = 64;
/// Of the transactions looked at, one in so many has its key read.
const KEYS_OF: usize = 16;
/// How far ahead memory is fetched: 64 transactions that are in no cache then cost little more than the first few.
const AHEAD: usize = 8;

/// How far the round has come.
#[derive(Default)]
pub struct Audit {
    at: u32,
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
        let (mut turn, mut count) = ([null_mut::<Side>(); AT_ONCE], 0);
        let short = self.is_short(state);
        let from = if short { state.members.start() } else { state.audit.at };
        for (slot, ((), side)) in turn.iter_mut().zip(state.members.from(from)) {
            *slot = side;
            count += 1;
        }
        let turn = &turn[..count];
        // SAFETY: listed transactions are live; the side of a member is read one step after it was fetched.
        unsafe {
            if short {
                for side in turn {
                    self.look(state, *side);
                    self.rekey(state, *side);
                }
                return;
            }
            for step in 0..count + 3 * AHEAD {
                let at = |ago: usize| step.checked_sub(ago).and_then(|n| turn.get(n)).copied();
                if let Some(side) = at(0) {
                    glue::partyline_glue_fetch_side(side.cast());
                }
                if let Some(side) = at(AHEAD) {
                    glue::partyline_glue_fetch((*side).tr);
                }
                if let Some(side) = at(2 * AHEAD) {
                    glue::partyline_glue_fetch_context((*side).tr);
                }
                if let Some(side) = at(3 * AHEAD) {
                    self.look(state, side);
                    if (*side).at[MEMBER] as usize % KEYS_OF == state.audit.round % KEYS_OF {
                        self.rekey(state, side);
                    }
                }
            }
            // Past the last one it begins with the first again.
            let last = turn[count - 1];
            state.audit.at = (*last).at[MEMBER].wrapping_add(1);
            if state.members.last().is_some_and(|(_, side)| side == last) {
                state.audit.round += 1;
            }
        }
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
