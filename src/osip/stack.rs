//! Each `osip_t` has four lanes beside it. They are made by `osip_init`, or on first sight of an `osip_t` that was made
//! some other way, and are never given back: another thread may still be on its way out of one.

use core::ffi::c_int;
use core::fmt::Write;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::glue::{self, Event, EventView, KINDS, List, Osip, Transaction};
use super::lane::Lane;
use super::resend::Resends;
use super::{report, side};

pub struct Stack {
    pub lanes: [Lane; KINDS],
    pub resends: Resends,
}

struct Known {
    stacks: Vec<(usize, &'static Stack)>,
    idle: Vec<&'static Stack>,
}

/// Where the lists of all `osip_t` lie: what is outside is no list of ours.
static LOW: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGH: AtomicUsize = AtomicUsize::new(0);

static KNOWN: RwLock<Known> = RwLock::new(Known { stacks: Vec::new(), idle: Vec::new() });

/// The one that was asked for last: a program has one `osip_t` nearly always, and asks a dozen times in each turn.
static LAST: AtomicPtr<Stack> = AtomicPtr::new(core::ptr::null_mut());

fn known(osip: *mut Osip) -> Option<&'static Stack> {
    let known = KNOWN.read();
    known.stacks.iter().find(|(at, _)| *at == osip as usize).map(|(_, stack)| *stack)
}

/// The lanes of an `osip_t`.
pub fn of(osip: *mut Osip) -> &'static Stack {
    // SAFETY: NULL, or a stack, which is never given back; one whose osip_t has been released names none.
    if let Some(last) = unsafe { LAST.load(Ordering::Acquire).as_ref() } {
        if last.resends.osip.load(Ordering::Acquire) == osip && !osip.is_null() {
            return last;
        }
    }
    let stack = find_or_make(osip);
    LAST.store(core::ptr::from_ref(stack).cast_mut(), Ordering::Release);
    stack
}

#[cold]
fn find_or_make(osip: *mut Osip) -> &'static Stack {
    if let Some(stack) = known(osip) {
        return stack;
    }
    let mut known = KNOWN.write();
    if let Some((_, stack)) = known.stacks.iter().find(|(at, _)| *at == osip as usize) {
        return stack;
    }
    let stack = match known.idle.pop() {
        Some(stack) => {
            for lane in &stack.lanes {
                lane.osip.store(osip, Ordering::Relaxed);
            }
            // Last: it is what `of` looks at.
            stack.resends.osip.store(osip, Ordering::Release);
            stack
        }
        None => Box::leak(Box::new(Stack {
            lanes: [0, 1, 2, 3].map(|kind| Lane::new(osip, kind)),
            resends: Resends::new(osip),
        })),
    };
    known.stacks.push((osip as usize, stack));
    for list in stack.lanes.iter().map(Lane::list).chain([stack.resends.list()]) {
        LOW.fetch_min(list as usize, Ordering::Relaxed);
        HIGH.fetch_max(list as usize, Ordering::Relaxed);
    }
    report::add(lines);
    stack
}

/// The program has changed a list with `osip_list_*`; nearly always one of another kind.
#[inline]
pub fn touch(list: *mut List) {
    let at = list as usize;
    if at >= LOW.load(Ordering::Relaxed) && at <= HIGH.load(Ordering::Relaxed) {
        touch_ours(list);
    }
}

#[cold]
fn touch_ours(list: *mut List) {
    let known = KNOWN.read();
    for (_, stack) in &known.stacks {
        if let Some(lane) = stack.lanes.iter().find(|lane| lane.list() == list) {
            lane.touched.store(true, Ordering::Release);
        } else if stack.resends.list() == list {
            stack.resends.touched.store(true, Ordering::Release);
        }
    }
}

/// # Safety
/// As `osip_init`.
pub unsafe fn init(out: *mut *mut Osip) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let code = glue::partyline_glue_osip_new(out);
        if code == glue::SUCCESS {
            of(*out);
        }
        code
    }
}

/// # Safety
/// As `osip_release`.
pub unsafe fn release(osip: *mut Osip) {
    let stack = {
        let mut known = KNOWN.write();
        let at = known.stacks.iter().position(|(at, _)| *at == osip as usize);
        at.map(|at| known.stacks.swap_remove(at).1)
    };
    if let Some(stack) = stack {
        for lane in &stack.lanes {
            lane.close();
        }
        stack.resends.close();
        stack.resends.osip.store(core::ptr::null_mut(), Ordering::Release);
        KNOWN.write().idle.push(stack);
    }
    // SAFETY: the caller's promise.
    unsafe { glue::partyline_glue_osip_free(osip) };
}

/// # Safety
/// As `__osip_add_ict` and its siblings.
pub unsafe fn add(osip: *mut Osip, tr: *mut Transaction, kind: c_int) -> c_int {
    let lane = &of(osip).lanes[kind as usize];
    let _public = lane.public();
    // SAFETY: the caller's promise; the mutex is held.
    unsafe { lane.add(tr) };
    glue::SUCCESS
}

/// # Safety
/// As `__osip_remove_ict_transaction` and its siblings.
pub unsafe fn remove(osip: *mut Osip, tr: *mut Transaction, kind: c_int) -> c_int {
    let lane = &of(osip).lanes[kind as usize];
    let _public = lane.public();
    // SAFETY: the caller's promise; the mutex is held.
    let removed = unsafe { lane.remove(tr) };
    if removed { glue::SUCCESS } else { glue::UNDEFINED_ERROR }
}

/// # Safety
/// As `osip_remove_transaction`.
pub unsafe fn remove_any(osip: *mut Osip, tr: *mut Transaction) -> c_int {
    if tr.is_null() || side::is_gone(tr) {
        return glue::bad_parameter();
    }
    // SAFETY: the caller's promise.
    unsafe {
        match glue::partyline_glue_kind(tr) {
            kind @ 0..=3 => remove(osip, tr, kind),
            _ => glue::bad_parameter(),
        }
    }
}

/// # Safety
/// As `__osip_find_transaction`.
pub unsafe fn find_event(osip: *mut Osip, event: *mut Event, consume: c_int) -> *mut Transaction {
    let mut view = EventView::EMPTY;
    // SAFETY: the caller's promise.
    unsafe {
        if glue::partyline_glue_event_view(event, &mut view) == 0 || view.kind < 0 {
            return core::ptr::null_mut();
        }
        let lane = &of(osip).lanes[view.kind as usize];
        let _public = lane.public();
        let found = look(lane, event);
        if consume == 1 && !found.is_null() {
            super::transaction::add_event(found, event);
        }
        found
    }
}

/// The first transaction of the list that osip2's predicate accepts.
///
/// # Safety
/// As `osip_transaction_find`: the list does not change meanwhile.
unsafe fn look(lane: &Lane, event: *mut Event) -> *mut Transaction {
    let mut view = EventView::EMPTY;
    // Nearly always one at most: no allocation until there is one.
    let mut candidates = Vec::new();
    // SAFETY: the caller's promise.
    unsafe {
        let dir = glue::partyline_glue_event_key(event, &mut view);
        // A client transaction is made with the kind's parity in mind: a list of the other side matches nothing.
        let key = if dir == 2 { None } else { lane.key(view.branch, view.call) };
        if dir != 2 && key.is_none() {
            return core::ptr::null_mut();
        }
        {
            let mut state = lane.lock();
            lane.sync(&mut state);
            lane.candidates(&state, key, view.id, &mut candidates);
        }
        // osip2's own predicate decides, outside our mutex: it may call the program's trace function.
        for (_, tr) in candidates {
            if glue::partyline_glue_matches(tr, event, dir) != 0 {
                lane.lock().found += 1;
                return tr;
            }
        }
    }
    core::ptr::null_mut()
}

/// # Safety
/// As `osip_transaction_find`.
pub unsafe fn find(list: *mut List, event: *mut Event) -> *mut Transaction {
    // SAFETY: the caller's promise.
    unsafe {
        if list.is_null() || glue::partyline_glue_list_count(list) <= 0 {
            return core::ptr::null_mut();
        }
        let first = glue::partyline_glue_list_head(list);
        let tr = glue::partyline_glue_node_element(first);
        if tr.is_null() {
            return core::ptr::null_mut();
        }
        let osip = glue::partyline_glue_config(tr);
        if osip.is_null() {
            return core::ptr::null_mut();
        }
        if let Some(lane) = of(osip).lanes.iter().find(|lane| lane.list() == list) {
            return look(lane, event);
        }
        // A list of the program's own.
        let mut view = EventView::EMPTY;
        let dir = glue::partyline_glue_event_key(event, &mut view);
        let mut node = first;
        let mut left = glue::partyline_glue_list_count(list);
        while !node.is_null() && left > 0 {
            let tr = glue::partyline_glue_node_element(node);
            if glue::partyline_glue_matches(tr, event, dir) != 0 {
                return tr;
            }
            (node, left) = (glue::partyline_glue_node_next(node), left - 1);
        }
    }
    core::ptr::null_mut()
}

/// Events for a transaction have arrived.
///
/// # Safety
/// `side` is a side, which may be out of date.
pub unsafe fn wake(side: *mut side::Side) {
    // SAFETY: sides are never unmapped; what is in one is checked under the lane's mutex.
    unsafe {
        let lane = (*side).lane.load(Ordering::Acquire);
        if lane.is_null() {
            return;
        }
        let mut state = (*lane).lock();
        if (*side).lane.load(Ordering::Relaxed) != lane {
            return;
        }
        (*lane).wake(&mut state, side);
        if !(*side).is(side::RUNNING) {
            (*lane).read(&mut state, side);
        }
    }
}

/// For `PARTYLINE_REPORT`.
fn lines(out: &mut dyn Write) {
    const NAMES: [&str; KINDS] = ["ict", "ist", "nict", "nist"];
    let Some(known) = KNOWN.try_read() else { return };
    let all = known.stacks.iter().map(|(_, stack)| *stack).chain(known.idle.iter().copied());
    let mut sums = [[0u64; 5]; KINDS];
    let mut resends = [0u64; 4];
    for stack in all {
        for (total, one) in resends.iter_mut().zip(stack.resends.counts().unwrap_or_default()) {
            *total += one;
        }
        for (lane, sum) in stack.lanes.iter().zip(&mut sums) {
            if let Some(state) = lane.try_lock() {
                let of_lane = [state.created, state.found, state.executed, state.timers, state.count as u64];
                for (total, one) in sum.iter_mut().zip(of_lane) {
                    *total += one;
                }
            }
        }
    }
    for (name, [created, found, executed, timers, alive]) in NAMES.iter().zip(sums) {
        let _ = writeln!(
            out,
            "partyline: engine: {name} created {created} found {found} executed {executed} timers {timers} alive {alive}"
        );
    }
    let [created, stopped, sent, alive] = resends;
    let _ = writeln!(out, "partyline: engine: resends created {created} stopped {stopped} sent {sent} alive {alive}");
}
