//! A heap: what one thread allocates from. Only its thread touches it, but for the stack of spans with remote frees.
//!
//! ```text
//!  direct[size / 8] ─┐
//!  bins[class] ──► current ──► span          allocated from; not given back while it is current
//!               └► available ──► span ──► span   have free blocks
//!                                (full spans stand nowhere until a block of theirs comes back)
//!  notified ──► span ──► span                other threads freed blocks of these
//!  outbox[n] ──► blocks of one span of another heap, sent to it as one batch
//! ```
//! # Blocks of other heaps
//! A freed block of another heap's span waits in the outbox with others of the same span (Filardo, Parkinson: "BatchIt",
//! ISMM 2024), so the atomic operation on the span's remote list is paid once per batch. What waits is bounded:
//! [`OUTBOX`] spans, [`BATCH`] blocks each.
//!
//! # Life
//! Heaps are never freed. A thread that exits flushes its outbox, gives empty spans back and releases its claim; the
//! next new thread adopts the heap, spans and all, so a span's owner never changes while it has blocks out.

use core::cell::Cell;
use core::ptr::null_mut;
use core::sync::atomic::AtomicUsize;

use super::classes::{CLASSES, DIRECT, SLICE, SMALL_MAX, TABLE, size_of};
use super::misuse;
use super::os;
use super::pages::{PAGES, Refusal};
use super::range::{address_of_slice, slice_of, span_of_slice};
use super::remote::{Claim, Notified};
use super::span::{Keep, NO_SPAN, Span, bump, kind, no_span};
use super::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use super::watch::Ring;

pub const OUTBOX: usize = 16;
pub const BATCH: u32 = 64;
/// A span's unused part is linked up piece by piece: a page at a time.
const EXTEND: usize = 4096;

pub struct Bin {
    current: Cell<*mut Span>,
    available: Cell<*mut Span>,
}

/// A batch on its way to another heap.
struct Slot {
    span: Cell<*mut Span>,
    /// The chain's first and last block.
    head: Cell<usize>,
    tail: Cell<usize>,
    count: Cell<u32>,
    limit: Cell<u32>,
}

/// Written by other threads: apart from what the owner writes.
#[repr(C, align(64))]
struct Inbox {
    notified: Notified<Span>,
    claim: Claim,
}

#[repr(C, align(64))]
pub struct Heap {
    pub direct: [Cell<*mut Span>; DIRECT],
    bins: [Bin; CLASSES],
    outbox: [Slot; OUTBOX],
    keys: Cell<u64>,
    /// Blocks of other heaps that this heap's threads freed, by class.
    pub cross: [AtomicU64; CLASSES],
    /// Blocks that were passed on to libc.
    pub foreign: AtomicU64,
    /// Calls of realloc, and allocations and frees through [`super::PoolAlloc`].
    pub reallocs: AtomicU64,
    pub rust_allocs: AtomicU64,
    pub rust_frees: AtomicU64,
    /// Freed blocks that wait, in checked mode.
    pub ring: Ring,
    inbox: Inbox,
    next: AtomicPtr<Heap>,
}

// SAFETY: see the module's head: the claim makes one thread the only one that touches what is not atomic.
unsafe impl Sync for Heap {}

const NO_SPAN_AT: *mut Span = (&raw const NO_SPAN).cast_mut();

#[allow(clippy::declare_interior_mutable_const, reason = "a template, copied into every new heap")]
const BLANK: Heap = Heap {
    direct: [const { Cell::new(NO_SPAN_AT) }; DIRECT],
    bins: [const { Bin { current: Cell::new(NO_SPAN_AT), available: Cell::new(null_mut()) } }; CLASSES],
    outbox: [const {
        Slot {
            span: Cell::new(null_mut()),
            head: Cell::new(0),
            tail: Cell::new(0),
            count: Cell::new(0),
            limit: Cell::new(0),
        }
    }; OUTBOX],
    keys: Cell::new(0),
    cross: [const { AtomicU64::new(0) }; CLASSES],
    foreign: AtomicU64::new(0),
    reallocs: AtomicU64::new(0),
    rust_allocs: AtomicU64::new(0),
    rust_frees: AtomicU64::new(0),
    ring: Ring::NEW,
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
        (*heap).tidy();
        (*heap).inbox.claim.give_up();
    }
    ORPHANS.fetch_add(1, Ordering::Relaxed);
}

/// Tidies heaps that nobody has.
pub fn tidy_orphans() {
    if ORPHANS.load(Ordering::Relaxed) == 0 {
        return;
    }
    for_each(|heap| {
        if heap.inbox.claim.try_take() {
            // SAFETY: just claimed.
            unsafe { heap.tidy() };
            heap.inbox.claim.give_up();
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
            if let Some(block) = (*self.bins[class].current.get()).pop() {
                return Ok(block);
            }
            self.refill(class, limited)
        }
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
                    if span.take_remote() || span.extend() {
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
        let slices = shape.slices as usize;
        let (at, _) = PAGES.with(|pages| pages.take(slices, limited))?;
        let size = shape.size as usize;
        let first = slice_of(at);
        // SAFETY: the run is ours alone until a block of it is handed out.
        unsafe {
            let span = &*at;
            // splitmix64: keys differ from span to span and from use to use.
            let key = bump_key(&self.keys);
            let fixed = &span.fixed;
            fixed.base.set(address_of_slice(first));
            fixed.bytes.set(slices * SLICE / size * size);
            fixed.key.set(key);
            fixed.size.set(shape.size);
            fixed.magic.set(shape.magic);
            fixed.slices.store(shape.slices, Ordering::Relaxed);
            fixed.back.set(0);
            fixed.class.store(class as u8, Ordering::Relaxed);
            let own = &span.own;
            own.end.set(fixed.base.get() + fixed.bytes.get());
            own.head.set(own.end.get());
            own.allocs.store(0, Ordering::Relaxed);
            own.frees.store(0, Ordering::Relaxed);
            own.from_remote.store(0, Ordering::Relaxed);
            own.fresh.set(0);
            span.shared.remote.0.store(0, Ordering::Relaxed);
            for part in 1..slices {
                let part_span = &*span_of_slice(first + part);
                part_span.fixed.back.set(part as u32);
                part_span.fixed.kind.store(kind::PART, Ordering::Release);
            }
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
                if let Some(taken) = (*span).shared.remote.take_notified() {
                    (*span).accept(taken);
                }
                match (*span).own.keep.get() {
                    Keep::Current => {}
                    Keep::Full => {
                        if (*span).own.head.get() != (*span).own.end.get() {
                            self.enlist(span);
                            self.release_if_empty(span);
                        }
                    }
                    Keep::Available => self.release_if_empty(span),
                }
            }
        }
    }

    /// Flushes, drains, and gives empty current spans back.
    ///
    /// # Safety
    /// The caller's thread has claimed the heap.
    pub unsafe fn tidy(&self) {
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
        }
    }

    /// Frees a block of another heap.
    ///
    /// # Safety
    /// The caller's thread has claimed this heap; `block` is a block of `span` that is handed out.
    pub unsafe fn send(&self, span: *mut Span, block: *mut u8) {
        let slot = &self.outbox[slice_of(span).wrapping_mul(0x9e37_79b1) >> 8 & (OUTBOX - 1)];
        // SAFETY: the block is the caller's to give up; it keeps its span from being given back until it arrives.
        unsafe {
            if slot.span.get() != span {
                send_slot(slot);
                slot.span.set(span);
                slot.head.set((*span).own.end.get());
                slot.tail.set(block as usize);
                slot.count.set(0);
                // Not so many that the owner runs dry meanwhile.
                let blocks = (*span).fixed.bytes.get() as u32 / (*span).fixed.size.get();
                slot.limit.set((blocks / 8).clamp(1, BATCH));
            }
            *block.cast::<u64>() = (*span).encode(slot.head.get());
            slot.head.set(block as usize);
            let count = slot.count.get() + 1;
            slot.count.set(count);
            bump(&self.cross[(*span).class()], 1);
            if count >= slot.limit.get() {
                send_slot(slot);
            }
        }
    }

    /// Sends what waits in the outbox.
    ///
    /// # Safety
    /// The caller's thread has claimed the heap.
    pub unsafe fn flush(&self) {
        for slot in &self.outbox {
            // SAFETY: claimed.
            unsafe { send_slot(slot) };
        }
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

unsafe fn send_slot(slot: &Slot) {
    let span = slot.span.get();
    if span.is_null() {
        return;
    }
    // SAFETY: the slot's chain consists of freed blocks of this span, which therefore still exists.
    unsafe { send_chain(span, slot.head.get(), slot.tail.get(), slot.count.get()) };
    slot.span.set(null_mut());
}

/// Puts a chain of freed blocks, linked as in a free list, onto its span's remote list.
///
/// # Safety
/// The blocks are blocks of `span` that are handed out, and the caller's to give up.
pub unsafe fn send_chain(span: *mut Span, head: usize, tail: usize, count: u32) {
    // SAFETY: as above: the span exists as long as its blocks have not arrived, and once they have, NOTIFIED keeps it
    // until the owner has taken it off the stack. Heaps are never freed.
    unsafe {
        let owner = (*span).fixed.owner.load(Ordering::Relaxed);
        let notify = (*span).shared.remote.push((*span).index_of(head), count, |before| {
            let word = match before {
                Some(next) => (*span).encode((*span).at_index(next)),
                None => (*span).end_word(),
            };
            *(tail as *mut u64) = word;
        });
        if notify {
            (*owner).inbox.notified.push(span);
        }
    }
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
        let rest = self.own.head.get();
        if rest != self.own.end.get() {
            // SAFETY: the chain consists of freed blocks of this span; each word is checked before it is followed.
            unsafe {
                let mut tail = head as *mut u64;
                for _ in 1..taken.count {
                    if !self.links(*tail) {
                        misuse::corrupted_block(tail as usize);
                    }
                    tail = self.decode(*tail) as *mut u64;
                }
                *tail = self.encode(rest);
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
            unsafe { *((base + at) as *mut u64) = word };
            word = self.encode(base + at);
        }
        self.own.head.set(base + from);
        self.own.fresh.set(to as u32);
        true
    }
}
