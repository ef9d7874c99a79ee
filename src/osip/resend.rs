//! Retransmissions of 200 and ACK: `osip_start_*`, `osip_stop_*` and `osip_retransmissions_execute` cost what is due, or
//! what is asked for, and not what is alive.
//!
//! The list in the `osip_t` is public and changes under its public mutex only; the newest is at its head, as in osip2. What
//! is beside it changes under a mutex that is a leaf. The program's send callback runs under neither, so it may start and
//! stop retransmissions and may leave by `pthread_exit`; one that is stopped while it is being sent is freed after that.
//!
//! | asked for by | found by |
//! |---|---|
//! | time | the set ordered by deadline |
//! | an ACK | the Call-ID up to its `@`, then osip2's own predicate |
//! | a dialog | its address |

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::{Mutex, MutexGuard};

use super::glue::{self, Deadline, Dialog, IXT, Ixt, List, Message, Node, Osip, Resend};
use super::stack;
use crate::ffi;
use crate::sip::hash::KeyHasher;

/// How many one call looks at for what the program wrote itself.
const AUDIT: usize = 64;

struct Entry {
    ixt: *mut Ixt,
    node: *mut Node,
    dialog: usize,
    call: Option<u64>,
    due: Deadline,
    /// Its message is with the send callback.
    busy: bool,
    /// Off the list; freed when it is not busy any more.
    gone: bool,
}

/// Entries are known by a number that grows towards the head of the list.
struct State {
    entries: BTreeMap<u64, Entry>,
    due: BTreeSet<(Deadline, u64)>,
    /// Found due by a call that goes through them from the head.
    ready: BTreeSet<u64>,
    dialogs: BTreeSet<(usize, u64)>,
    calls: BTreeSet<(u64, u64)>,
    next: u64,
    head: *mut Node,
    count: c_int,
    audit: u64,
    created: u64,
    stopped: u64,
    sent: u64,
}

pub struct Resends {
    pub osip: AtomicPtr<Osip>,
    /// The program has called `osip_list_*` on the public list.
    pub touched: AtomicBool,
    hasher: KeyHasher,
    state: Mutex<State>,
}

// SAFETY: the pointers in it are used under its mutex.
unsafe impl Sync for Resends {}
// SAFETY: as above.
unsafe impl Send for Resends {}

/// The public mutex of the list, held.
struct Public(*mut Osip);

impl Drop for Public {
    fn drop(&mut self) {
        // SAFETY: locked by `Resends::public`.
        unsafe { glue::partyline_glue_unlock(self.0, IXT) };
    }
}

impl Resends {
    pub fn new(osip: *mut Osip) -> Resends {
        Resends {
            osip: AtomicPtr::new(osip),
            touched: AtomicBool::new(false),
            hasher: KeyHasher::new(),
            state: Mutex::new(State {
                entries: BTreeMap::new(),
                due: BTreeSet::new(),
                ready: BTreeSet::new(),
                dialogs: BTreeSet::new(),
                calls: BTreeSet::new(),
                next: 1,
                head: null_mut(),
                count: 0,
                audit: 0,
                created: 0,
                stopped: 0,
                sent: 0,
            }),
        }
    }

    fn osip(&self) -> *mut Osip {
        self.osip.load(Ordering::Relaxed)
    }

    pub fn list(&self) -> *mut List {
        // SAFETY: the osip_t of a stack in use is live.
        unsafe { glue::partyline_glue_list(self.osip(), IXT) }
    }

    fn public(&self) -> Public {
        let osip = self.osip();
        // SAFETY: as above.
        unsafe { glue::partyline_glue_lock(osip, IXT) };
        Public(osip)
    }

    /// The state, in agreement with the public list, whose mutex is held.
    fn lock(&self, _held: &Public) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let list = self.list();
        // SAFETY: the public mutex is held.
        unsafe {
            let changed = self.touched.swap(false, Ordering::Acquire)
                || state.count != glue::partyline_glue_list_count(list)
                || state.head != glue::partyline_glue_list_head(list);
            if changed {
                self.resync(&mut state, list);
            }
        }
        state
    }

    /// Of a Call-ID as text: the coarse key.
    ///
    /// # Safety
    /// NULL or a C string.
    unsafe fn key(&self, call: *const c_char) -> Option<u64> {
        if call.is_null() {
            return None;
        }
        // SAFETY: the caller's promise.
        let call = unsafe { CStr::from_ptr(call) }.to_bytes();
        Some(self.hasher.hash(call.split(|byte| *byte == b'@').next().unwrap_or(call)))
    }

    /// Enters what has become the head of the list.
    ///
    /// # Safety
    /// `ixt` is live; the public mutex is held.
    unsafe fn enter(&self, state: &mut State, ixt: *mut Ixt, node: *mut Node) {
        let (mut dialog, mut due, mut counter) = (null_mut(), Deadline::NEVER, 0);
        // SAFETY: the caller's promise; the dialog of a retransmission lives as long as that.
        let call = unsafe {
            glue::partyline_glue_ixt_read(ixt, &mut dialog, &mut due, &mut counter);
            self.key(glue::partyline_glue_dialog_call(dialog))
        };
        let number = state.next;
        state.next += 1;
        let dialog = dialog as usize;
        state.due.insert((due, number));
        state.dialogs.insert((dialog, number));
        if let Some(call) = call {
            state.calls.insert((call, number));
        }
        state.entries.insert(number, Entry { ixt, node, dialog, call, due, busy: false, gone: false });
        state.head = node;
        state.count += 1;
    }

    #[cold]
    unsafe fn resync(&self, state: &mut State, list: *mut List) {
        let mut before: HashMap<*mut Ixt, u64> = HashMap::new();
        for (number, entry) in state.entries.iter().filter(|(_, entry)| !entry.gone) {
            before.insert(entry.ixt, *number);
        }
        let mut left = 0;
        let mut elements = Vec::new();
        // SAFETY: the public mutex is held; nodes of the chain were made by osip2 or by us, with osip2's allocator.
        unsafe {
            let mut node = glue::partyline_glue_list_take(list, &mut left);
            while !node.is_null() && left > 0 {
                let next = glue::partyline_glue_node_next(node);
                elements.push(glue::partyline_glue_node_element(node).cast::<Ixt>());
                glue::partyline_release(node.cast());
                (node, left) = (next, left - 1);
            }
        }
        (state.head, state.count) = (null_mut(), 0);
        let mut busy = HashMap::new();
        for (ixt, number) in before {
            if let Some(entry) = state.forget(number) {
                if entry.busy {
                    busy.insert(ixt, (number, entry));
                }
            }
        }
        for ixt in elements.into_iter().rev() {
            // SAFETY: as above.
            unsafe {
                let node = glue::partyline_glue_list_prepend(list, ixt.cast());
                if node.is_null() {
                    continue;
                }
                match busy.remove(&ixt) {
                    // It keeps its number, which the call that sends it knows: its place may be a little off.
                    Some((number, mut entry)) => {
                        entry.node = node;
                        (state.head, state.count) = (node, state.count + 1);
                        state.dialogs.insert((entry.dialog, number));
                        state.calls.extend(entry.call.map(|call| (call, number)));
                        state.due.insert((entry.due, number));
                        state.entries.insert(number, entry);
                    }
                    None => self.enter(state, ixt, node),
                }
            }
        }
        // What the program has taken off is its own; one that is being sent is only forgotten.
    }

    /// Takes one off the list and frees it, now or when it has been sent.
    ///
    /// # Safety
    /// The public mutex is held.
    unsafe fn remove(&self, state: &mut State, number: u64) {
        let Some(entry) = state.forget(number) else { return };
        let list = self.list();
        // SAFETY: the caller's promise; the node is ours.
        unsafe {
            glue::partyline_glue_list_unlink(list, entry.node);
            state.head = glue::partyline_glue_list_head(list);
            state.count -= 1;
            if entry.busy {
                state.entries.insert(number, Entry { gone: true, ..entry });
            } else {
                glue::partyline_glue_ixt_free(entry.ixt);
            }
        }
    }

    /// What a program may have written itself: the time, and a counter of 0.
    ///
    /// # Safety
    /// The public mutex is held.
    unsafe fn audit(&self, state: &mut State) {
        let from = state.audit;
        let mut numbers: Vec<u64> = state.entries.range(..from).rev().take(AUDIT).map(|(number, _)| *number).collect();
        if numbers.len() < AUDIT {
            let rest = AUDIT - numbers.len();
            numbers.extend(state.entries.range(from..).rev().take(rest).map(|(number, _)| *number));
        }
        state.audit = numbers.last().copied().unwrap_or(0);
        for number in numbers {
            let Some(entry) = state.entries.get(&number) else { continue };
            if entry.busy || entry.gone {
                continue;
            }
            let (mut dialog, mut due, mut counter) = (null_mut(), Deadline::NEVER, 0);
            // SAFETY: a listed retransmission is live.
            unsafe { glue::partyline_glue_ixt_read(entry.ixt, &mut dialog, &mut due, &mut counter) };
            state.reschedule(number, due);
            if counter == 0 {
                // SAFETY: the caller's promise.
                unsafe { self.remove(state, number) };
            }
        }
    }

    /// The first deadline; one that has passed where a call has not come to its end.
    pub fn first(&self, now: Deadline) -> Deadline {
        let public = self.public();
        let mut state = self.lock(&public);
        if state.entries.len() <= AUDIT {
            // SAFETY: the public mutex is held.
            unsafe { self.audit(&mut state) };
        }
        if !state.ready.is_empty() {
            return now;
        }
        state.due.first().map_or(Deadline::NEVER, |(due, _)| *due)
    }

    pub fn close(&self) {
        let mut state = self.state.lock();
        for number in state.entries.keys().copied().collect::<Vec<_>>() {
            state.forget(number);
        }
        (state.head, state.count) = (null_mut(), 0);
    }

    /// Created, stopped, sent, alive; for the report, which must not block.
    pub fn counts(&self) -> Option<[u64; 4]> {
        let state = self.state.try_lock()?;
        Some([state.created, state.stopped, state.sent, state.count as u64])
    }
}

impl State {
    /// Out of all tables.
    fn forget(&mut self, number: u64) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        self.due.remove(&(entry.due, number));
        self.ready.remove(&number);
        self.dialogs.remove(&(entry.dialog, number));
        if let Some(call) = entry.call {
            self.calls.remove(&(call, number));
        }
        Some(entry)
    }

    fn reschedule(&mut self, number: u64, due: Deadline) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if entry.due != due {
            self.due.remove(&(entry.due, number));
            entry.due = due;
            self.due.insert((due, number));
        }
    }
}

unsafe fn start(osip: *mut Osip, ixt: *mut Ixt) {
    if ixt.is_null() {
        return;
    }
    let resends = &stack::of(osip).resends;
    let public = resends.public();
    let mut state = resends.lock(&public);
    // SAFETY: just made; the public mutex is held.
    unsafe {
        let node = glue::partyline_glue_list_prepend(resends.list(), ixt.cast());
        if node.is_null() {
            glue::partyline_glue_ixt_free(ixt);
        } else {
            resends.enter(&mut state, ixt, node);
            state.created += 1;
        }
    }
}

/// # Safety
/// As `osip_start_200ok_retransmissions`.
pub unsafe fn start_200(osip: *mut Osip, dialog: *mut Dialog, answer: *mut Message, sock: c_int) {
    // SAFETY: the caller's promise.
    unsafe { start(osip, glue::partyline_glue_ixt_new(dialog, answer, 0, core::ptr::null(), 0, sock)) }
}

/// # Safety
/// As `osip_start_ack_retransmissions`.
pub unsafe fn start_ack(
    osip: *mut Osip,
    dialog: *mut Dialog,
    ack: *mut Message,
    dest: *const c_char,
    port: c_int,
    sock: c_int,
) {
    // SAFETY: the caller's promise.
    unsafe { start(osip, glue::partyline_glue_ixt_new(dialog, ack, 1, dest, port, sock)) }
}

/// # Safety
/// As `osip_stop_200ok_retransmissions`.
pub unsafe fn stop_200(osip: *mut Osip, ack: *mut Message) -> *mut Dialog {
    let resends = &stack::of(osip).resends;
    // SAFETY: the caller's promise.
    let Some(key) = (unsafe { resends.key(glue::partyline_glue_message_call(ack)) }) else { return null_mut() };
    let public = resends.public();
    let mut state = resends.lock(&public);
    // SAFETY: the caller's promise; listed retransmissions are live, and the public mutex is held, as in stock.
    unsafe {
        let answers = |number: &u64| glue::partyline_glue_ixt_answered(state.entries[number].ixt, ack) != 0;
        let found = state.calls.range((key, 0)..=(key, u64::MAX)).rev().map(|(_, number)| *number).find(answers);
        let Some(number) = found else { return null_mut() };
        let dialog = state.entries[&number].dialog as *mut Dialog;
        resends.remove(&mut state, number);
        state.stopped += 1;
        dialog
    }
}

/// # Safety
/// As `osip_stop_retransmissions_from_dialog`.
pub unsafe fn stop_dialog(osip: *mut Osip, dialog: *mut Dialog) {
    let resends = &stack::of(osip).resends;
    let public = resends.public();
    let mut state = resends.lock(&public);
    let of_dialog = (dialog as usize, 0)..=(dialog as usize, u64::MAX);
    for (_, number) in state.dialogs.range(of_dialog).rev().copied().collect::<Vec<_>>() {
        // SAFETY: the public mutex is held.
        unsafe { resends.remove(&mut state, number) };
        state.stopped += 1;
    }
}

struct Call {
    resends: &'static Resends,
    /// Entries from here on have had their turn.
    cursor: u64,
    /// With the send callback; 0: none.
    current: u64,
}

/// As in [`super::execute`], a callback may unwind through this frame.
///
/// # Safety
/// As `osip_retransmissions_execute`.
pub unsafe fn execute(osip: *mut Osip) {
    const NAME: &str = "osip_retransmissions_execute";
    let begun = ffi::entry_value(NAME, None, || {
        let resends = &stack::of(osip).resends;
        // SAFETY: the caller's promise.
        Ok(unsafe { begin(resends) }.then_some(Call { resends, cursor: u64::MAX, current: 0 }))
    });
    let Some(mut call) = begun else { return };
    // SAFETY: the call outlives the loop; no lock is held.
    unsafe { glue::partyline_glue_resend((&raw mut call).cast(), next, leave) };
}

/// Whether there is anything to send.
unsafe fn begin(resends: &Resends) -> bool {
    let now = Deadline::now();
    let public = resends.public();
    let mut state = resends.lock(&public);
    // SAFETY: the public mutex is held.
    unsafe { resends.audit(&mut state) };
    let State { due, ready, .. } = &mut *state;
    // SAFETY: a constant of the glue.
    let on_time = unsafe { glue::partyline_glue_due_on_time } != 0;
    ready.extend(due.range(..(now, if on_time { u64::MAX } else { 0 })).map(|(_, number)| *number));
    !ready.is_empty()
}

/// The next message of the call, or 0. Called by the loop in C.
///
/// # Safety
/// `call` is the loop's call, `out` writable.
unsafe extern "C" fn next(call: *mut c_void, out: *mut Resend) -> c_int {
    ffi::entry_value("osip_retransmissions_execute", 0, || {
        // SAFETY: the caller's promise.
        let call = unsafe { &mut *call.cast::<Call>() };
        let public = call.resends.public();
        let mut state = call.resends.lock(&public);
        loop {
            // SAFETY: the public mutex is held.
            unsafe { sent(call, &mut state) };
            let Some(number) = state.ready.range(..call.cursor).next_back().copied() else { return Ok(0) };
            state.ready.remove(&number);
            call.cursor = number;
            let Some(entry) = state.entries.get_mut(&number) else { continue };
            if entry.busy {
                continue;
            }
            entry.busy = true;
            call.current = number;
            // SAFETY: a listed retransmission is live, and stays so while it is busy.
            let something = unsafe {
                (*out).osip = call.resends.osip();
                glue::partyline_glue_ixt_send(entry.ixt, out) != 0
            };
            if something {
                state.sent += 1;
                return Ok(1);
            }
        }
    })
}

/// What was with the callback is due again, or was the last, or has been stopped meanwhile.
unsafe fn sent(call: &mut Call, state: &mut State) {
    let number = core::mem::take(&mut call.current);
    let Some(entry) = state.entries.get_mut(&number) else { return };
    entry.busy = false;
    let ixt = entry.ixt;
    // SAFETY: the public mutex is held, and the entry was kept for this call.
    unsafe {
        if entry.gone {
            state.entries.remove(&number);
            glue::partyline_glue_ixt_free(ixt);
            return;
        }
        let (mut dialog, mut due, mut counter) = (null_mut(), Deadline::NEVER, 0);
        glue::partyline_glue_ixt_read(ixt, &mut dialog, &mut due, &mut counter);
        state.reschedule(number, due);
        if counter == 0 {
            call.resends.remove(state, number);
        }
    }
}

/// The end of the call, also when a callback has left it by `pthread_exit` or cancellation.
///
/// # Safety
/// As [`next`].
unsafe extern "C" fn leave(call: *mut c_void) {
    ffi::entry_value("osip_retransmissions_execute", (), || {
        // SAFETY: the caller's promise.
        let call = unsafe { &mut *call.cast::<Call>() };
        let public = call.resends.public();
        let mut state = call.resends.lock(&public);
        // SAFETY: the public mutex is held.
        unsafe { sent(call, &mut state) };
        Ok(())
    })
}
