//! One of the four transaction lists of an `osip_t`: who is in it, who has events, who has a deadline.
//!
//! The list itself is osip2's public one and changes only under osip2's public mutex for it. What is beside it changes
//! under the lane's own mutex, which is a leaf: it is taken inside the public one, and no callback runs under it.

use core::ffi::{CStr, c_char, c_int};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::audit::Audit;
use super::deadlines::Deadlines;
use super::glue::{self, Deadline, List, Node, Osip, Transaction};
use super::heap::{Heap, OUT};
use super::queue::Queue;
use super::side::{self, GHOST, GHOSTS, IDS, KEYS, LISTED, MEMBER, READY, RUNNING, Side, Table, UNSEEN};
use crate::sip::hash::KeyHasher;

/// In [`Side::at`] of the ready heap: the rest is an index into `later`.
const LATER: u32 = 1 << 31;

pub struct Lane {
    pub osip: AtomicPtr<Osip>,
    pub kind: c_int,
    /// The program has called `osip_list_*` on the public list.
    pub touched: AtomicBool,
    /// How many are in the list, for who does not hold the mutex.
    listed: AtomicI32,
    hasher: KeyHasher,
    state: Mutex<State>,
}

// SAFETY: the pointers in it are used under its mutex.
unsafe impl Sync for Lane {}
// SAFETY: as above.
unsafe impl Send for Lane {}

pub struct State {
    pub ready: Heap<u64, READY>,
    /// Had events while a call ran that had passed them or does not cover them: ready again when the call is over.
    later: Vec<*mut Side>,
    pub due: Deadlines,
    pub keys: Table<KEYS>,
    pub ids: Table<IDS>,
    ghosts: Vec<*mut Side>,
    pub next_seq: u64,
    pub calls: u32,
    head: *mut Node,
    tail: *mut Node,
    pub count: c_int,
    /// All of the list, in the order in which they came: what the audit goes through.
    pub members: Queue<(), MEMBER>,
    pub audit: Audit,
    pub executed: u64,
    pub created: u64,
    pub found: u64,
    pub timers: u64,
}

/// The public mutex of a lane, held.
pub struct Public(*mut Osip, c_int);

impl Drop for Public {
    fn drop(&mut self) {
        // SAFETY: locked by `Lane::public`.
        unsafe { glue::partyline_glue_unlock(self.0, self.1) };
    }
}

/// Where in the order of the list its turn is.
///
/// # Safety
/// The side is live, and the mutex of its lane is held.
unsafe fn place(side: *mut Side) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { if (*side).is(GHOST) { (*side).turn } else { (*side).seq } }
}

impl Lane {
    pub fn new(osip: *mut Osip, kind: c_int) -> Lane {
        Lane {
            osip: AtomicPtr::new(osip),
            kind,
            touched: AtomicBool::new(false),
            listed: AtomicI32::new(0),
            hasher: KeyHasher::new(),
            state: Mutex::new(State {
                ready: Heap::new(),
                later: Vec::new(),
                due: Deadlines::new(),
                keys: Table::new(),
                ids: Table::new(),
                ghosts: Vec::new(),
                next_seq: 1,
                calls: 0,
                head: null_mut(),
                tail: null_mut(),
                count: 0,
                members: Queue::new(),
                audit: Audit::default(),
                executed: 0,
                created: 0,
                found: 0,
                timers: 0,
            }),
        }
    }

    pub fn osip(&self) -> *mut Osip {
        self.osip.load(Ordering::Relaxed)
    }

    /// Whether nothing is listed, by our count and by the public one: then there is nothing to execute, no deadline and
    /// nothing to look at, and a program that has no client transactions does not pay eight locks in each turn for them.
    /// What another thread adds meanwhile might as well have come after the call.
    pub fn is_empty(&self) -> bool {
        // SAFETY: the osip_t of a lane in use is live; the count is read atomically.
        self.listed.load(Ordering::Acquire) == 0
            && !self.touched.load(Ordering::Acquire)
            && unsafe { glue::partyline_glue_list_count(self.list()) } == 0
    }

    fn count_to(&self, state: &mut State, count: c_int) {
        state.count = count;
        self.listed.store(count, Ordering::Release);
    }

    pub fn public(&self) -> Public {
        let osip = self.osip();
        // SAFETY: the osip_t of a lane in use is live.
        unsafe { glue::partyline_glue_lock(osip, self.kind) };
        Public(osip, self.kind)
    }

    pub fn list(&self) -> *mut List {
        // SAFETY: as above.
        unsafe { glue::partyline_glue_list(self.osip(), self.kind) }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// For the report, which must not block.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        self.state.try_lock()
    }

    /// The coarse key. Client transactions are matched by branch alone; server transactions by branch where it has the
    /// cookie of RFC 3261, else by the rules of RFC 2543, for which the Call-ID has to be equal.
    ///
    /// # Safety
    /// The strings are NULL or C strings.
    pub unsafe fn key(&self, branch: *const c_char, call: *const c_char) -> Option<u64> {
        let text = |at: *const c_char| {
            // SAFETY: the caller's promise.
            if at.is_null() { None } else { Some(unsafe { CStr::from_ptr(at) }.to_bytes()) }
        };
        let client = self.kind % 2 == 0;
        match text(branch) {
            Some(branch) if client || branch.starts_with(b"z9hG4bK") => Some(self.hasher.hash(branch)),
            _ if client => None,
            _ => Some(self.hasher.hash(text(call).unwrap_or(b"")) ^ 1),
        }
    }

    pub fn id_hash(&self, id: c_int) -> u64 {
        // Ids count up: the low bits alone are perfect, and neighbours lie beside each other. The table wants some of the
        // uppermost bits as well.
        let id = id as u32;
        u64::from(id) | u64::from(id.wrapping_mul(0x9e37_79b1) >> 25) << 57
    }

    /// # Safety
    /// `tr` is live.
    pub unsafe fn key_of(&self, tr: *mut Transaction) -> u64 {
        let (mut branch, mut call) = (core::ptr::null(), core::ptr::null());
        // SAFETY: the caller's promise.
        unsafe {
            glue::partyline_glue_transaction_key(tr, &mut branch, &mut call);
            // Without a branch nothing matches a client transaction: it is found by its id.
            self.key(branch, call).unwrap_or(0)
        }
    }

    /// Makes the lane agree with a list that the program may have changed with `osip_list_*`.
    ///
    /// # Safety
    /// The public mutex is held.
    pub unsafe fn sync(&self, state: &mut State) {
        let list = self.list();
        // SAFETY: the caller's promise.
        unsafe {
            if self.touched.load(Ordering::Acquire)
                || state.count != glue::partyline_glue_list_count(list)
                || state.head != glue::partyline_glue_list_head(list)
            {
                self.touched.store(false, Ordering::Relaxed);
                self.resync(state, list);
            }
        }
    }

    #[cold]
    unsafe fn resync(&self, state: &mut State, list: *mut List) {
        let before = state.keys.all();
        for side in &before {
            // SAFETY: members of a table are live.
            unsafe { (**side).flags |= UNSEEN };
        }
        let mut left = 0;
        // SAFETY: the public mutex is held; nodes of the chain were made by osip2 or by us, with osip2's allocator.
        unsafe {
            let mut node = glue::partyline_glue_list_take(list, &mut left);
            (state.head, state.tail) = (null_mut(), null_mut());
            self.count_to(state, 0);
            let mut elements = Vec::new();
            while !node.is_null() && left > 0 {
                let next = glue::partyline_glue_node_next(node);
                elements.push(glue::partyline_glue_node_element(node));
                glue::partyline_release(node.cast());
                (node, left) = (next, left - 1);
            }
            for tr in elements {
                let known = side::find(tr).filter(|side| (**side).is(UNSEEN));
                match known {
                    Some(side) => {
                        (*side).flags &= !UNSEEN;
                        self.append(state, side);
                    }
                    None => self.enter(state, tr, side::find(tr)),
                }
            }
        }
        for side in before {
            // SAFETY: as above; its node went with the chain.
            unsafe {
                if (*side).is(UNSEEN) {
                    (*side).flags &= !UNSEEN;
                    (*side).node = null_mut();
                    self.leave(state, side);
                } else if (*side).at[READY] != OUT && (*side).at[READY] & LATER == 0 {
                    state.ready.set(side, place(side));
                }
            }
        }
    }

    /// At the end of the public list.
    unsafe fn append(&self, state: &mut State, side: *mut Side) {
        let list = self.list();
        // SAFETY: the public mutex is held; the tail is a node of ours.
        unsafe {
            let node = glue::partyline_glue_list_append(list, state.tail, (*side).tr);
            (*side).node = node;
            (*side).seq = state.next_seq;
            state.next_seq += 1;
            if !node.is_null() {
                state.tail = node;
                if state.head.is_null() {
                    state.head = node;
                }
                let count = state.count + 1;
                self.count_to(state, count);
            }
        }
    }

    unsafe fn enter(&self, state: &mut State, tr: *mut Transaction, known: Option<*mut Side>) {
        // SAFETY: the transaction is live and the public mutex is held.
        unsafe {
            let side = known.unwrap_or_else(|| side::adopt(tr));
            if (*side).is(LISTED) {
                return;
            }
            (*side).tr = tr;
            (*side).id = glue::partyline_glue_id(tr);
            (*side).hash = [self.key_of(tr), self.id_hash((*side).id)];
            let own = core::ptr::from_ref(self).cast_mut();
            let kept = if (*side).lane.load(Ordering::Relaxed) == own { RUNNING | GHOST } else { RUNNING };
            (*side).flags = ((*side).flags & kept) | LISTED;
            (*side).lane.store(own, Ordering::Release);
            self.append(state, side);
            state.keys.insert(side);
            state.ids.insert(side);
            state.members.push(side, ());
            state.created += 1;
            self.read(state, side);
            if glue::partyline_glue_pending(tr) > 0 {
                self.wake(state, side);
            }
        }
    }

    /// Adds a transaction at the end of the list. One that is in a list already stays where it is.
    ///
    /// # Safety
    /// `tr` is live; the public mutex is held.
    pub unsafe fn add(&self, tr: *mut Transaction) {
        let mut state = self.lock();
        // SAFETY: the caller's promise.
        unsafe {
            self.sync(&mut state);
            self.enter(&mut state, tr, side::find(tr));
        }
    }

    /// Takes a transaction off the list; false if it is not in it.
    ///
    /// # Safety
    /// As [`Lane::add`].
    pub unsafe fn remove(&self, tr: *mut Transaction) -> bool {
        let mut state = self.lock();
        // SAFETY: the caller's promise.
        unsafe {
            self.sync(&mut state);
            let Some(side) = side::find(tr) else { return false };
            if !(*side).is(LISTED) || (*side).lane.load(Ordering::Relaxed) != core::ptr::from_ref(self).cast_mut() {
                return false;
            }
            let list = self.list();
            let node = (*side).node;
            if !node.is_null() {
                if state.tail == node {
                    state.tail = glue::partyline_glue_node_prev(node);
                }
                glue::partyline_glue_list_unlink(list, node);
                state.head = glue::partyline_glue_list_head(list);
                let count = state.count - 1;
                self.count_to(&mut state, count);
                (*side).node = null_mut();
            }
            self.leave(&mut state, side);
        }
        true
    }

    /// Out of the tables. While one call runs, what it has in its snapshot keeps its turn.
    unsafe fn leave(&self, state: &mut State, side: *mut Side) {
        // SAFETY: the side is listed in this lane, whose mutex is held.
        unsafe {
            state.keys.remove(side);
            state.ids.remove(side);
            state.due.remove(side);
            state.members.remove(side);
            (*side).flags &= !LISTED;
            if (*side).is(GHOST) {
                // Put back and taken out again: its turn is still the first one.
            } else if state.calls == 1 && !(*side).is(RUNNING) {
                (*side).flags |= GHOST;
                (*side).turn = (*side).seq;
                (*side).at[GHOSTS] = state.ghosts.len() as u32;
                state.ghosts.push(side);
            } else {
                self.calm(state, side);
                if !(*side).is(RUNNING) {
                    (*side).lane.store(null_mut(), Ordering::Release);
                }
            }
        }
    }

    /// Events have arrived. A transaction that runs has its events looked at by who runs it.
    ///
    /// # Safety
    /// The side is live and in this lane, whose mutex is held.
    pub unsafe fn wake(&self, state: &mut State, side: *mut Side) {
        // SAFETY: the caller's promise.
        unsafe {
            if (*side).at[READY] == OUT && !(*side).is(RUNNING) && (*side).is(LISTED | GHOST) {
                state.ready.set(side, place(side));
            }
        }
    }

    /// Not ready any more.
    ///
    /// # Safety
    /// As [`Lane::wake`].
    pub unsafe fn calm(&self, state: &mut State, side: *mut Side) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = (*side).at[READY];
            if at != OUT && at & LATER != 0 {
                let at = (at & !LATER) as usize;
                (*side).at[READY] = OUT;
                state.later.swap_remove(at);
                if let Some(moved) = state.later.get(at) {
                    (**moved).at[READY] = at as u32 | LATER;
                }
            } else {
                state.ready.remove(side);
            }
        }
    }

    /// Out of the ready heap until the call is over.
    ///
    /// # Safety
    /// As [`Lane::wake`]; the side is in the ready heap.
    pub unsafe fn postpone(&self, state: &mut State, side: *mut Side) {
        // SAFETY: the caller's promise.
        unsafe {
            state.ready.remove(side);
            (*side).at[READY] = state.later.len() as u32 | LATER;
            state.later.push(side);
        }
    }

    /// The end of a call: what was postponed is ready again, and ghosts have had their turn.
    ///
    /// # Safety
    /// The lane's mutex is held.
    pub unsafe fn settle(&self, state: &mut State) {
        // SAFETY: members are live.
        unsafe {
            while let Some(side) = state.later.pop() {
                (*side).at[READY] = OUT;
                self.wake(state, side);
            }
            if state.calls == 0 {
                while let Some(side) = state.ghosts.pop() {
                    self.exorcise(state, side);
                }
            }
        }
    }

    /// # Safety
    /// As [`Lane::wake`].
    unsafe fn exorcise(&self, state: &mut State, side: *mut Side) {
        // SAFETY: the caller's promise.
        unsafe {
            if (*side).is(GHOST) && (*side).lane.load(Ordering::Relaxed) == core::ptr::from_ref(self).cast_mut() {
                (*side).flags &= !GHOST;
                (*side).at[GHOSTS] = OUT;
                self.calm(state, side);
                if (*side).is(LISTED) {
                    if glue::partyline_glue_pending((*side).tr) > 0 {
                        self.wake(state, side);
                    }
                } else if !(*side).is(RUNNING) {
                    (*side).lane.store(null_mut(), Ordering::Release);
                }
            }
        }
    }

    /// The transaction is about to be freed: nothing here may remember it.
    ///
    /// # Safety
    /// As [`Lane::wake`]; it is not listed.
    pub unsafe fn bury(&self, state: &mut State, side: *mut Side) {
        // SAFETY: the caller's promise.
        unsafe {
            if (*side).is(GHOST) {
                let at = (*side).at[GHOSTS] as usize;
                if state.ghosts.get(at) == Some(&side) {
                    state.ghosts.swap_remove(at);
                    if let Some(moved) = state.ghosts.get(at) {
                        (**moved).at[GHOSTS] = at as u32;
                    }
                }
                self.exorcise(state, side);
            }
            self.calm(state, side);
            state.due.remove(side);
        }
    }

    /// Reads the deadline again.
    ///
    /// # Safety
    /// As [`Lane::wake`]; the transaction is live.
    pub unsafe fn read(&self, state: &mut State, side: *mut Side) {
        // SAFETY: the caller's promise.
        unsafe {
            if !(*side).is(LISTED) {
                return;
            }
            let mut deadline = Deadline::NEVER;
            glue::partyline_glue_deadline((*side).tr, &mut deadline);
            if deadline == Deadline::NEVER {
                state.due.remove(side);
            } else {
                state.due.set(side, deadline);
            }
        }
    }

    /// Transactions with this key or id, in list order.
    pub fn candidates(&self, state: &State, key: Option<u64>, id: c_int, out: &mut Vec<(u64, *mut Transaction)>) {
        let mut take = |side: *mut Side| {
            // SAFETY: members of a table are live, and so are listed transactions.
            unsafe { out.push(((*side).seq, (*side).tr)) }
        };
        match key {
            Some(key) => state.keys.each(key, &mut take),
            None => state.ids.each(self.id_hash(id), &mut take),
        }
        if out.len() > 1 {
            out.sort_unstable_by_key(|(seq, _)| *seq);
        }
    }

    /// The osip_t is going: nothing here may be used through it any more.
    pub fn close(&self) {
        let mut state = self.lock();
        for side in state.keys.all() {
            // SAFETY: members are live.
            unsafe {
                self.leave(&mut state, side);
                (*side).node = null_mut();
                self.bury(&mut state, side);
                (*side).lane.store(null_mut(), Ordering::Release);
            }
        }
        (state.head, state.tail) = (null_mut(), null_mut());
        self.count_to(&mut state, 0);
    }
}
