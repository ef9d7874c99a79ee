//! What was taken over and how often it was called, for `PARTYLINE_REPORT`.
//!
//! The archive keeps its counters in C, one per function, and names them here once.

use core::ffi::{CStr, c_char};
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::osip::report;

struct Table {
    names: *const *const c_char,
    values: *const AtomicU64,
    len: usize,
}

// SAFETY: two static arrays of the program.
unsafe impl Send for Table {}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// Counts of this side, with their names.
pub struct Counts {
    pub turns: AtomicU64,
    pub batches: AtomicU64,
    pub datagrams: AtomicU64,
    pub find_by_aor: AtomicU64,
    pub find_by_login: AtomicU64,
    pub create: AtomicU64,
    pub remove: AtomicU64,
    pub store: AtomicU64,
    pub scanned: AtomicU64,
    pub loaded: AtomicU64,
}

pub static COUNTS: Counts = Counts {
    turns: AtomicU64::new(0),
    batches: AtomicU64::new(0),
    datagrams: AtomicU64::new(0),
    find_by_aor: AtomicU64::new(0),
    find_by_login: AtomicU64::new(0),
    create: AtomicU64::new(0),
    remove: AtomicU64::new(0),
    store: AtomicU64::new(0),
    scanned: AtomicU64::new(0),
    loaded: AtomicU64::new(0),
};

pub fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// # Safety
/// Two arrays of `len` that live as long as the program; the names end in NUL.
pub unsafe fn set_table(names: *const *const c_char, values: *const AtomicU64, len: usize) {
    *TABLE.lock() = Some(Table { names, values, len });
    report::add(lines);
}

/// Adds the lines of this room to the report.
pub fn announce() {
    report::add(lines);
}

fn lines(out: &mut dyn Write) {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    // At exit another thread may be in here for ever: it must not block.
    if let Some(Some(table)) = TABLE.try_lock().as_deref() {
        let mut total = 0;
        for i in 0..table.len {
            // SAFETY: `set_table`'s contract.
            let (name, value) = unsafe { (CStr::from_ptr(*table.names.add(i)), read(&*table.values.add(i))) };
            total += value;
            if value > 0 {
                let _ = writeln!(out, "partyline: partysip: {} {value}", name.to_str().unwrap_or("?"));
            }
        }
        let _ = writeln!(out, "partyline: partysip: taken over {total} calls");
        let [turns, batches, datagrams] = [&COUNTS.turns, &COUNTS.batches, &COUNTS.datagrams].map(read);
        let _ = writeln!(out, "partyline: partysip: turns {turns} batches {batches} datagrams {datagrams}");
    }
    let [aor, login, create, remove, store, scanned, loaded] = [
        &COUNTS.find_by_aor,
        &COUNTS.find_by_login,
        &COUNTS.create,
        &COUNTS.remove,
        &COUNTS.store,
        &COUNTS.scanned,
        &COUNTS.loaded,
    ]
    .map(read);
    if aor + login + create + store > 0 {
        let _ = writeln!(
            out,
            "partyline: partysip: ppl_uinfo find_by_aor {aor} find_by_login {login} create {create} remove {remove} \
             store_bindings {store} indexed {scanned} loaded {loaded}"
        );
    }
}
