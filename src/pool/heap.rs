//! A heap: what one thread allocates from. Only its thread touches it, but for the stack of spans with remote frees.
//!
//! ```text
//!  direct[size / 8] ─┐
//!  bins[class] ──► current ──► span          allocated from; not given back while it is current
//!               └► available ──► span ──► span   have free blocks
//!                                (full spans stand nowhere until a block of theirs comes back)
//!  runs ──► region ──► region                blocks above 8 KiB, see runs.rs
//!  notified ──► span ──► span                other threads freed blocks of these
//!  outbox[n] ──► blocks of one span of another heap, sent to it as one batch, see outbox.rs
//! ```
//! # Life
//! Heaps are never freed. A thread that exits flushes its outbox, gives empty spans back and releases its claim; the
//! next new thread adopts the heap, spans and all, so a span's owner never changes while it has blocks out. Until then
//! whoever sends a batch to it takes the claim for a moment and the batch in, so that what nobody has does not pile up.

use core::cell::Cell;
use core::ptr::null_mut;
use core::sync::atomic::AtomicUsize;

use super::classes::{CLASSES, COUNTED, DIRECT, SLICE, SMALL_MAX, TABLE, size_of};
use super::marks;
use super::misuse;
use super::os;
use super::outbox::{OUTBOX, Slot};
use super::pages::{PAGES, Refusal};
use super::range::{address_of_slice, slice_of};
use super::remote::{Claim, Notified, take_in};
use super::runs::Runs;
use super::span::{Keep, NO_SPAN, Span, bump, kind, no_span};
use super::start::watched;
use super::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use super::watch;

/// Blocks that a span puts aside before it uses them again, in the modes that look at every block.
const LATER: u32 = 64;
/// A span's unused part is linked up piece by piece: a page at a time.
const EXTEND: usize = 4096;
pub struct Bin {
    current: Cell<*mut Span>,
    available: Cell<*mut Span>,
}

/// Written by other threads: apart from what the owner writes.
#[repr(C, align(64))]
pub(super) struct Inbox {
    pub(super) notified: Notified<Span>,
    claim: Claim,
}

#[repr(C, align(64))]
pub struct Heap {
    pub direct: [Cell<*mut Span>; DIRECT],
    bins: [Bin; CLASSES],
    pub(super) outbox: [Slot; OUTBOX],
    pub runs: Runs,
    keys: Cell<u64>,
    /// Blocks of other heaps that this heap's threads freed, by class, and the bytes in those that are runs.
    pub cross: [AtomicU64; COUNTED],
    pub cross_run_bytes: AtomicU64,
    /// Blocks that were passed on to libc.
    pub foreign: AtomicU64,
    /// Calls of realloc, and allocations and frees through [`super::PoolAlloc`].
    pub reallocs: AtomicU64,
    pub rust_allocs: AtomicU64,
    pub rust_frees: AtomicU64,
    /// In checked mode: how many blocks may be handed out before one is guarded.
    pub unsampled: Cell<u64>,
    pub(super) inbox: Inbox,
    next: AtomicPtr<Heap>,
}

// SAFETY: see the module's head: the claim makes one thread the only one that touches what is not atomic.
unsafe impl Sync for Heap {}

const NO_SPAN_AT: *mut Span = (&raw const NO_SPAN).cast_mut();

#[allow(clippy::declare_interior_mutable_const, reason = "a template, copied into every new heap")]
const BLANK: Heap = Heap {
    direct: [const { Cell::new(NO_SPAN_AT) }; DIRECT],
    bins: [const { Bin { current: Cell::new(NO_SPAN_AT), available: Cell::new(null_mut()) } }; CLASSES],
    outbox: [Slot::NEW; OUTBOX],
    runs: Runs::NEW,
    keys: Cell::new(0),
    cross: [const { AtomicU64::new(0) }; COUNTED],
    cross_run_bytes: AtomicU64::new(0),
    foreign: AtomicU64::new(0),
    reallocs: AtomicU64::new(0),
    rust_allocs: AtomicU64::new(0),
    rust_frees: AtomicU64::new(0),
    unsampled: Cell::new(0),
    inbox: Inbox { notified: Notified(AtomicPtr::new(null_mut())), claim: Claim(AtomicU32::new(1)) },
    next: AtomicPtr::new(null_mut()),
};

/// The heap of a thread that has none: every allocation from it goes the slow way, and it owns no span.
pub static EMPTY: Heap = BLANK;

/// All heaps ever made, for adoption and statistics.
static HEAPS: AtomicPtr<Heap> = AtomicPtr::new(null_mut());
/// Heaps that wait for adoption; may lag behind, so it only saves the search where there are none.
static ORPHANS: AtomicUsize = AtomicUsize::new(0);

/// Calls `body` with every heap.
pub fn for_each(mut body: impl FnMut(&Heap)) {
    let mut at = HEAPS.load(Ordering::Acquire);
    while !at.is_null() {
        // SAFETY: heaps are never freed.
        let heap = unsafe { &*at };
        body(heap);
        at = heap.next.load(Ordering::Acquire);
    }
}

/// A heap for the calling thread: one that was left behind, else a new one. Null where there is no memory.
pub fn claim() -> *mut Heap {
    if ORPHANS.load(Ordering::Relaxed) > 0 {
        let mut found: *mut Heap = null_mut();
        for_each(|heap| {
            if found.is_null() && heap.inbox.claim.try_take() {
                found = (heap as *const Heap).cast_mut();
            }
        });
        if !found.is_null() {
            ORPHANS.fetch_sub(1, Ordering::Relaxed);
            return found;
        }
    }
    let bytes = core::mem::size_of::<Heap>().next_multiple_of(4096);
    let Some(at) = os::reserve(bytes) else { return null_mut() };
    if !os::commit(at, bytes) {
        os::unreserve(at, bytes);
        return null_mut();
    }
    let heap = at as *mut Heap;
    // SAFETY: fresh memory of the right size, page aligned, that nobody else knows; published by the exchange below.
    unsafe {
        heap.write(BLANK);
        (*heap).keys.set(os::seed() ^ (at as u64).rotate_left(17));
        let mut head = HEAPS.load(Ordering::Relaxed);
        loop {
            (*heap).next.store(head, Ordering::Relaxed);
            match HEAPS.compare_exchange_weak(head, heap, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return heap,
                Err(now) => head = now,
            }
        }
    }
}

/// Hands a heap over to whoever adopts it.
///
/// # Safety
/// The caller is the thread that has claimed the heap, and does not use it any more.
pub unsafe fn abandon(heap: *mut Heap) {
    // SAFETY: claimed by the caller.
    unsafe {
        (*heap).tidy(false);
        (*heap).leave_current();
        (*heap).inbox.claim.give_up();
    }
    ORPHANS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: heaps are never freed.
    unsafe { (*heap).take_in_if_orphan() };
}

/// Tidies heaps that nobody has.
pub fn tidy_orphans() {
    if ORPHANS.load(Ordering::Relaxed) == 0 {
        return;
    }
    for_each(|heap| {
        if heap.inbox.claim.try_take() {
            // SAFETY: just claimed.
            unsafe { heap.tidy(true) };
            heap.inbox.claim.give_up();
            heap.take_in_if_orphan();
        }
    });
}

impl Heap {
    /// A block of a class.
    ///
    /// # Safety
    /// The caller's thread has claimed the heap.
    pub unsafe fn allocate(&self, class: usize, limited: bool) -> Result<*mut u8, Refusal> {
        // SAFETY: spans in our tables are ours and set up.
        unsafe {
            match (*self.bins[class].current.get()).pop() {
                Some(block) => Ok(block),
                None => self.refill(class, limited),
            }
        }
    }

    /// A block for a size above the largest class and at most [`super::classes::RUN_MAX`], and its length.
    ///
    /// # Safety
    /// As [`Heap::allocate`].
    pub unsafe fn allocate_run(&self, bytes: usize, limited: bool) -> Result<(*mut u8, usize), Refusal> {
        // SAFETY: as for this function. What other threads have freed comes first, so that it does not pile up.
        unsafe {
            self.drain();
            self.runs.allocate((self as *const Heap).cast_mut(), bytes, limited)
        }
    }

    /// A key that differs from span to span and from use to use.
    pub fn new_key(&self) -> u64 {
        bump_key(&self.keys)
    }

    /// Makes a span with free blocks the class's current one.
    ///
    /// # Safety
    /// As [`Heap::allocate`].
    #[cold]
    #[inline(never)]
    unsafe fn refill(&self, class: usize, limited: bool) -> Result<*mut u8, Refusal> {
        let bin = &self.bins[class];
        // SAFETY: spans in our tables and lists are ours and set up.
        unsafe {
            loop {
                let span = bin.current.get();
                if span != no_span() {
                    let span = &*span;
                    if span.take_remote() || span.take_later(LATER) || span.extend() || span.take_later(1) {
                        if let Some(block) = span.pop() {
                            return Ok(block);
                        }
                    }
                    // Looked at again when the next block comes back.
                    span.own.keep.set(Keep::Full);
                    span.own.trigger.set(span.own.frees.load(Ordering::Relaxed) + 1);
                    self.set_current(class, no_span());
                }
                self.drain();
                let available = bin.available.get();
                let next = if available.is_null() {
                    self.new_span(class, limited)?
                } else {
                    self.unlist(available);
                    available
                };
                (*next).own.keep.set(Keep::Current);
                (*next).own.trigger.set(u64::MAX);
                self.set_current(class, next);
                if let Some(block) = (*next).pop() {
                    return Ok(block);
                }
            }
        }
    }

    fn set_current(&self, class: usize, span: *mut Span) {
        self.bins[class].current.set(span);
        let size = size_of(class);
        if size <= SMALL_MAX {
            let first = if class == 0 { 0 } else { size_of(class - 1) / 8 + 1 };
            for entry in &self.direct[first..=size / 8] {
                entry.set(span);
            }
        }
    }

    unsafe fn new_span(&self, class: usize, limited: bool) -> Result<*mut Span, Refusal> {
        let shape = TABLE[class];
        let (at, _) = PAGES.with(|pages| pages.take(1, limited))?;
        let size = shape.size as usize;
        // SAFETY: the slice is ours alone until a block of it is handed out.
        unsafe {
            let span = &*at;
            let (base, key) = (address_of_slice(slice_of(at)), self.new_key());
            let fixed = &span.fixed;
            fixed.base.set(base);
            fixed.bytes.set(SLICE / size * size);
            fixed.key.set(key);
            fixed.unit.set(0);
            fixed.size.set(shape.size);
            fixed.magic.set(shape.magic);
            span.set_fresh(0);
            fixed.slices.store(1, Ordering::Relaxed);
            fixed.back.set(0);
            fixed.class.store(class as u8, Ordering::Relaxed);
            let own = &span.own;
            own.base.set(base);
            own.key.set(key);
            span.no_free();
            span.none_later();
            own.allocs.store(0, Ordering::Relaxed);
            own.frees.store(0, Ordering::Relaxed);
            own.from_remote.store(0, Ordering::Relaxed);
            span.shared.remote.0.store(0, Ordering::Relaxed);
            fixed.owner.store((self as *const Heap).cast_mut(), Ordering::Relaxed);
            fixed.kind.store(kind::BLOCKS, Ordering::Release);
            span.extend();
        }
        Ok(at)
    }

    /// A block of ours comes back for which the span's state changes.
    ///
    /// # Safety
    /// The caller's thread has claimed the heap; `span` is a span of it.
    #[cold]
    #[inline(never)]
    pub unsafe extern "C" fn on_trigger(&self, span: *mut Span) {
        // SAFETY: ours, see above.
        unsafe {
            if (*span).own.keep.get() == Keep::Full {
                self.enlist(span);
            }
            self.release_if_empty(span);
        }
    }

    /// # Safety
    /// As [`Heap::on_trigger`], and the span stands in the available list.
    unsafe fn release_if_empty(&self, span: *mut Span) {
        // SAFETY: ours; with no block out and not on the stack nobody else has a way to it.
        unsafe {
            if (*span).out() == 0 && !(*span).shared.remote.is_notified() {
                self.unlist(span);
                PAGES.with(|pages| pages.retire(span));
            }
        }
    }

    unsafe fn enlist(&self, span: *mut Span) {
        // SAFETY: the list's spans are ours.
        unsafe {
            let list = &self.bins[(*span).class()].available;
            let next = list.get();
            (*span).list.prev.set(null_mut());
            (*span).list.next.set(next);
            if !next.is_null() {
                (*next).list.prev.set(span);
            }
            list.set(span);
            (*span).own.keep.set(Keep::Available);
            // Next looked at when all of its blocks are back; none is handed out meanwhile.
            (*span).own.trigger.set((*span).own.allocs.load(Ordering::Relaxed));
        }
    }

    unsafe fn unlist(&self, span: *mut Span) {
        // SAFETY: the list's spans are ours.
        unsafe {
            let (next, prev) = ((*span).list.next.get(), (*span).list.prev.get());
            if prev.is_null() {
                self.bins[(*span).class()].available.set(next);
            } else {
                (*prev).list.next.set(next);
            }
            if !next.is_null() {
                (*next).list.prev.set(prev);
            }
        }
    }

    /// Takes in what other threads have freed.
    ///
    /// # Safety
    /// The caller's thread has claimed the heap.
    unsafe fn drain(&self) {
        let mut at = self.inbox.notified.take_all();
        while !at.is_null() {
            // SAFETY: spans on our stack are ours. The link is read before NOTIFIED is cleared: after that another
            // thread may push the span again.
            unsafe {
                let span = at;
                at = (*span).shared.notified.load(Ordering::Relaxed);
                let taken = (*span).shared.remote.take_notified();
                if (*span).kind() == kind::REGION {
                    if let Some(taken) = taken {
                        self.accept_runs(span, taken);
                    }
                    continue;
                }
                if let Some(taken) = taken {
                    (*span).accept(taken);
                }
                match (*span).own.keep.get() {
                    Keep::Current => {}
                    Keep::Full => {
                        if (*span).has_free() {
                            self.enlist(span);
                            self.release_if_empty(span);
                        }
                    }
                    Keep::Available => self.release_if_empty(span),
                }
            }
        }
    }

    /// Takes in the runs of a chain that other threads have freed.
    unsafe fn accept_runs(&self, span: *mut Span, taken: super::remote::Taken) {
        // SAFETY: the chain consists of freed blocks of this region; each word is checked before it is followed. The region
        // stays while a block of the chain is still out.
        unsafe {
            let mut block = (*span).at_index(taken.head);
            for left in (0..taken.count).rev() {
                let word = *(block as *const u64);
                let next =
                    if left == 0 { 0 } else { (*span).decode(word).unwrap_or_else(|| misuse::corrupted_block(block)) };
                if !(*span).looks_free(word) || !marks::is_block(block) {
                    misuse::corrupted_block(block);
                }
                self.runs.free(span, block as *mut u8, true);
                block = next;
            }
        }
    }

    /// Flushes, drains, and gives empty current spans and free regions back; with `all` also the memory behind what is
    /// free of the others.
    ///
    /// # Safety
    /// The caller's thread has claimed the heap.
    pub unsafe fn tidy(&self, all: bool) {
        // SAFETY: claimed; spans in our tables are ours.
        unsafe {
            self.flush();
            self.drain();
            for class in 0..CLASSES {
                let span = self.bins[class].current.get();
                if span == no_span() {
                    continue;
                }
                (*span).take_remote();
                if (*span).out() == 0 && !(*span).shared.remote.is_notified() {
                    self.set_current(class, no_span());
                    PAGES.with(|pages| pages.retire(span));
                }
            }
            self.runs.tidy(all);
        }
    }

    /// Makes spans available that were current, so that they go when their last block comes back.
    unsafe fn leave_current(&self) {
        for class in 0..CLASSES {
            let span = self.bins[class].current.get();
            if span != no_span() {
                self.set_current(class, no_span());
                // SAFETY: the caller has claimed the heap; a current span is one of it and in no list.
                unsafe {
                    self.enlist(span);
                    self.release_if_empty(span);
                }
            }
        }
    }

    /// Takes in what was sent to a heap that nobody has.
    pub(super) fn take_in_if_orphan(&self) {
        // SAFETY: called with the claim taken.
        take_in(&self.inbox.claim, &self.inbox.notified, || unsafe { self.drain() });
    }
}

/// splitmix64.
fn bump_key(state: &Cell<u64>) -> u64 {
    let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    state.set(next);
    let mut key = next;
    key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

impl Span {
    /// Owner: makes the blocks that other threads freed the free list, which is empty. Returns whether there were any.
    ///
    /// # Safety
    /// The caller's thread has claimed the owning heap.
    unsafe fn take_remote(&self) -> bool {
        match self.shared.remote.take() {
            // SAFETY: as for this function.
            Some(taken) => unsafe {
                self.accept(taken);
                true
            },
            None => false,
        }
    }

    /// Joins a chain from the remote list to the free list.
    ///
    /// # Safety
    /// As [`Span::take_remote`], and the chain was just taken.
    unsafe fn accept(&self, taken: super::remote::Taken) {
        let head = self.at_index(taken.head);
        if self.has_free() {
            // SAFETY: the chain consists of freed blocks of this span; each word is checked before it is followed.
            unsafe {
                let mut tail = head as *mut u64;
                for _ in 1..taken.count {
                    tail = self.decode(*tail).unwrap_or_else(|| misuse::corrupted_block(tail as usize)) as *mut u64;
                }
                *tail = self.encode(self.own.head.get());
            }
        }
        self.own.head.set(head);
        bump(&self.own.frees, u64::from(taken.count));
        bump(&self.own.from_remote, u64::from(taken.count));
        if self.own.keep.get() == Keep::Full {
            // Counted already: the trigger must not be hit in the middle of what follows.
            self.own.trigger.set(u64::MAX);
        }
    }

    /// Links up a part of the span that was never handed out. Returns whether there was one.
    ///
    /// # Safety
    /// The caller's thread has claimed the owning heap, and the free list is empty.
    unsafe fn extend(&self) -> bool {
        let (size, bytes) = (self.fixed.size.get() as usize, self.fixed.bytes.get());
        let from = self.own.fresh.get() as usize;
        if from == bytes {
            return false;
        }
        let to = (from + (EXTEND / size).max(1) * size).min(bytes);
        let base = self.fixed.base.get();
        let mut word = self.end_word();
        let mut at = to;
        while at > from {
            at -= size;
            // SAFETY: within the span's part that holds blocks, and not handed out yet.
            unsafe {
                *((base + at) as *mut u64) = word;
                if watched() {
                    watch::poison((base + at) as *mut u8, size);
                }
            }
            word = self.encode(base + at);
        }
        self.own.head.set(base + from);
        self.set_fresh(to as u32);
        true
    }
}
