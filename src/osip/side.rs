//! What the engine keeps beside each transaction, and the two tables that find it.
//!
//! ```text
//!  osip_t.osip_nist_transactions -> node <-> node <-> node      public list; nodes of ours have a back link and a Side
//!                                    |        |        |
//!                                   Side     Side     Side      128 bytes each, in one array beside the slab
//!                                    |  \______________________ key table (branch or Call-ID), id table, ready heap,
//!                             osip_transaction_t                deadlines, members
//! ```
//!
//! A `Side` is never given back to the system, so a stale pointer to one reads a `Side` and not rubbish. Its fields
//! belong to the mutex of the lane that it is in, but `lane` and `freed`.

use core::ffi::c_int;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use hashbrown::HashTable;
use parking_lot::RwLock;

use super::deadlines;
use super::glue::{Fifo, Node, Transaction};
use super::heap::OUT;
use super::lane::Lane;
use super::slab;

/// In the public list.
pub const LISTED: u32 = 1;
/// A call executes its events.
pub const RUNNING: u32 = 2;
/// Taken off the list while a call runs whose snapshot had it: it keeps its turn in that call, as in stock, also where the
/// program puts it back.
pub const GHOST: u32 = 4;
/// Of a resync: not seen yet.
pub const UNSEEN: u32 = 8;

/// Places in [`Side::at`].
pub const READY: usize = 0;
pub const TIMER: usize = 1;
pub const MEMBER: usize = 2;
pub const GHOSTS: usize = 3;

/// Hashes in [`Side::hash`].
pub const KEYS: usize = 0;
pub const IDS: usize = 1;

#[repr(C, align(128))]
pub struct Side {
    // What an audit reads, in one cache line.
    pub tr: *mut Transaction,
    /// NULL when the transaction is in no lane.
    pub lane: AtomicPtr<Lane>,
    /// The fifo that the transaction was made with, which tells us of its events; NULL: not made by us.
    pub fifo: AtomicPtr<Fifo>,
    pub at: [u32; 4],
    pub id: c_int,
    pub flags: u32,
    /// Where `at[TIMER]` is a place: see [`super::deadlines`].
    pub queue: u8,
    /// Freed by the program while it ran: its memory goes when the execution is over.
    pub freed: AtomicBool,
    /// Place in the list: grows along it.
    pub seq: u64,
    /// Of a ghost: the place that it had, which is its turn in the call that runs. It may be listed anew by then.
    pub turn: u64,
    pub node: *mut Node,
    pub hash: [u64; 2],
}

impl Side {
    pub const fn new() -> Side {
        Side {
            tr: null_mut(),
            lane: AtomicPtr::new(null_mut()),
            fifo: AtomicPtr::new(null_mut()),
            at: [OUT; 4],
            id: 0,
            flags: 0,
            queue: deadlines::NONE,
            freed: AtomicBool::new(false),
            seq: 0,
            turn: 0,
            node: null_mut(),
            hash: [0; 2],
        }
    }

    pub fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// Sides of transactions that are not in the slab.
struct Strangers {
    known: std::collections::HashMap<usize, usize>,
    idle: Vec<usize>,
}

static STRANGERS: RwLock<Option<Strangers>> = RwLock::new(None);

/// The side of a transaction that we made or that was put into one of our lists.
pub fn find(tr: *mut Transaction) -> Option<*mut Side> {
    if let Some(side) = slab::side(tr as usize) {
        // SAFETY: sides of the slab are mapped for good.
        return unsafe { ((*side).tr == tr).then_some(side) };
    }
    let strangers = STRANGERS.read();
    let side = strangers.as_ref()?.known.get(&(tr as usize))?;
    Some(*side as *mut Side)
}

/// Memory of the slab that is no transaction any more: freed already, and not used again since.
pub fn is_gone(tr: *mut Transaction) -> bool {
    // SAFETY: sides of the slab are mapped for good.
    slab::side(tr as usize).is_some_and(|side| unsafe { (*side).tr != tr })
}

/// A side for a transaction that is not in the slab.
pub fn adopt(tr: *mut Transaction) -> *mut Side {
    let mut strangers = STRANGERS.write();
    let strangers = strangers.get_or_insert_with(|| Strangers { known: Default::default(), idle: Vec::new() });
    let side = match strangers.idle.pop() {
        Some(side) => side as *mut Side,
        None => Box::into_raw(Box::new(Side::new())),
    };
    // SAFETY: from the box just made, or idle: nobody else writes it.
    unsafe {
        *side = Side::new();
        (*side).tr = tr;
    }
    strangers.known.insert(tr as usize, side as usize);
    side
}

/// Forgets a stranger that is in no lane.
pub fn forget(tr: *mut Transaction, side: *mut Side) {
    let mut strangers = STRANGERS.write();
    if let Some(strangers) = strangers.as_mut() {
        if strangers.known.remove(&(tr as usize)).is_some() {
            // SAFETY: in no lane, and just taken out of the only map.
            unsafe {
                (*side).tr = null_mut();
                (*side).freed.store(false, Ordering::Relaxed);
            }
            strangers.idle.push(side as usize);
        }
    }
}

/// Sides by hash. The hash is stored beside each, so that neither a search that finds another one nor growth reads a side,
/// which is likely in no cache.
pub struct Table<const WHICH: usize> {
    entries: HashTable<(u64, *mut Side)>,
}

impl<const WHICH: usize> Table<WHICH> {
    pub const fn new() -> Self {
        Table { entries: HashTable::new() }
    }

    /// # Safety
    /// `side` is live and not in this table; `hash[WHICH]` is set.
    pub unsafe fn insert(&mut self, side: *mut Side) {
        // SAFETY: the caller's promise.
        let hash = unsafe { (*side).hash[WHICH] };
        self.entries.insert_unique(hash, (hash, side), |entry| entry.0);
    }

    /// # Safety
    /// `side` is live; if it is in this table, under `hash[WHICH]`.
    pub unsafe fn remove(&mut self, side: *mut Side) {
        // SAFETY: the caller's promise.
        let hash = unsafe { (*side).hash[WHICH] };
        if let Ok(entry) = self.entries.find_entry(hash, |entry| entry.1 == side) {
            entry.remove();
        }
    }

    /// Calls `visit` with each member of this hash.
    pub fn each(&self, hash: u64, mut visit: impl FnMut(*mut Side)) {
        for (of, side) in self.entries.iter_hash(hash) {
            if *of == hash {
                visit(*side);
            }
        }
    }

    pub fn all(&self) -> Vec<*mut Side> {
        self.entries.iter().map(|entry| entry.1).collect()
    }
}
