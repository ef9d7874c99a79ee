//! The page heap: runs of slices out of the reserved range, under one lock, reached on slow paths only.
//!
//! A free run has its length in the descriptors of its first and last slice, so neighbours are found and joined in
//! constant time. Runs hang in lists by length (one list per length up to 32 slices, eight per doubling above), one set
//! of lists for dirty runs (memory behind them) and one for clean ones; dirty and clean runs are not joined, so what
//! is given back is known to the byte. Dirty runs also stand in a queue by age.
//!
//! Memory goes back (`madvise`) when it has lain idle for [`DECAY_MS`], looked at whenever a run comes or goes, and at
//! once for what exceeds both [`DIRTY_LEAST`] and a sixteenth of what is in use: so a program that frees all it had and then
//! sleeps keeps little, although no thread of ours watches it.

use core::cell::UnsafeCell;
use core::ptr::null_mut;
use core::sync::atomic::AtomicUsize;

use super::classes::{CLASSES, COUNTED, SLICE_SHIFT};
use super::os::{self, Lock};
use super::range::{address_of_slice, slice_of, span_of_slice};
use super::span::{Keep, Span, kind};
use super::sync::Ordering;

pub const DECAY_MS: u64 = 500;
/// Slices that may always lie idle with memory behind them: 2 MiB.
const DIRTY_LEAST: usize = 32;
/// How far the bound may be passed before a run is given back: few large calls instead of many small ones.
const DIRTY_SLACK: usize = 16;
/// The range is made usable in steps of 4 MiB.
const COMMIT_STEP: usize = 64;

const EXACT: usize = 32;
const LISTS: usize = EXACT + 16 * 8;
const WORDS: usize = LISTS.div_ceil(64);

/// Why there is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The limit that was set.
    Limit,
    /// The range, or the system, has no more.
    Space,
}

/// Class index of large blocks in statistics.
pub const LARGE_CLASS: usize = COUNTED;

/// Bytes in use with memory behind them, and the most there were: slices that were taken, but in regions of runs the pages
/// that were touched.
pub struct Used {
    now: AtomicUsize,
    peak: AtomicUsize,
}

pub static USED: Used = Used { now: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

impl Used {
    pub fn more(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }

    pub fn fewer(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy)]
pub struct Totals {
    pub allocs: u64,
    pub frees: u64,
    pub from_remote: u64,
}

struct Lists {
    first: [*mut Span; LISTS],
    map: [u64; WORDS],
}

pub struct Pages {
    total: usize,
    frontier: usize,
    committed: usize,
    free: [Lists; 2],
    oldest: *mut Span,
    newest: *mut Span,
    pub dirty: usize,
    /// Slices, whatever of them has memory.
    in_use: usize,
    pub limit: usize,
    pub bytes_from_os: u64,
    pub bytes_to_os: u64,
    pub purges: u64,
    /// Counters of spans that are gone.
    pub gone: [Totals; CLASSES],
    /// Large blocks, and the bytes in them.
    pub large: Totals,
    pub large_bytes: u64,
}

pub struct Heap {
    lock: Lock,
    pages: UnsafeCell<Pages>,
}

// SAFETY: `pages` is touched with `lock` held only.
unsafe impl Sync for Heap {}

const NO_LISTS: Lists = Lists { first: [null_mut(); LISTS], map: [0; WORDS] };

pub static PAGES: Heap = Heap {
    lock: Lock::new(),
    pages: UnsafeCell::new(Pages {
        total: 0,
        frontier: 0,
        committed: 0,
        free: [NO_LISTS; 2],
        oldest: null_mut(),
        newest: null_mut(),
        dirty: 0,
        in_use: 0,
        limit: usize::MAX,
        bytes_from_os: 0,
        bytes_to_os: 0,
        purges: 0,
        gone: [Totals { allocs: 0, frees: 0, from_remote: 0 }; CLASSES],
        large: Totals { allocs: 0, frees: 0, from_remote: 0 },
        large_bytes: 0,
    }),
};

impl Heap {
    /// Runs `body` under the lock. `body` must not allocate from the pool.
    pub fn with<R>(&self, body: impl FnOnce(&mut Pages) -> R) -> R {
        // SAFETY: the lock makes this the only reference; bodies do not call `with` again.
        self.lock.with(|| body(unsafe { &mut *self.pages.get() }))
    }

    pub fn lock_for_fork(&self) {
        self.lock.lock();
    }

    pub fn unlock_after_fork(&self) {
        self.lock.unlock();
    }
}

/// The list that a run of this length stands in.
fn list_of(slices: usize) -> usize {
    if slices <= EXACT {
        slices - 1
    } else {
        let exponent = (usize::BITS - 1 - slices.leading_zeros()) as usize;
        (EXACT + (exponent - 5) * 8 + ((slices >> (exponent - 3)) & 7)).min(LISTS - 1)
    }
}

/// The first list in which every run has at least this length.
fn list_for(slices: usize) -> usize {
    if slices <= EXACT {
        slices - 1
    } else {
        let exponent = (usize::BITS - 1 - slices.leading_zeros()) as usize;
        list_of(slices + (1 << (exponent - 3)) - 1)
    }
}

impl Pages {
    pub fn start(&mut self, slices: usize) {
        self.total = slices;
    }

    pub fn frontier(&self) -> usize {
        self.frontier
    }

    /// A run of slices and whether its memory is known to read as zeros.
    pub fn take(&mut self, slices: usize, limited: bool) -> Result<(*mut Span, bool), Refusal> {
        let (run, clean) = self.take_region(slices, limited)?;
        if clean {
            self.bytes_from_os += (slices << SLICE_SHIFT) as u64;
        }
        USED.more(slices << SLICE_SHIFT);
        Ok((run, clean))
    }

    /// The same for one who counts by himself what of a clean run gets memory.
    pub fn take_region(&mut self, slices: usize, limited: bool) -> Result<(*mut Span, bool), Refusal> {
        if limited && (self.in_use + slices) << SLICE_SHIFT > self.limit {
            return Err(Refusal::Limit);
        }
        self.decay(false);
        let (run, clean) = match self.find(slices) {
            Some(found) => found,
            None => {
                let fresh = self.grow(slices);
                if fresh.is_null() {
                    // Joined into longer runs by giving everything back, the idle memory may do.
                    self.purge_all();
                    self.find(slices).ok_or(Refusal::Space)?
                } else {
                    (fresh, true)
                }
            }
        };
        self.in_use += slices;
        Ok((run, clean))
    }

    /// Gives a run back that [`Pages::take`] gave. Its memory counts as dirty.
    pub fn give(&mut self, first: *mut Span, slices: usize) {
        USED.fewer(slices << SLICE_SHIFT);
        self.give_region(first, slices, true);
    }

    /// The same for one who has counted by himself what of it has memory; `dirty`: some of it has.
    pub fn give_region(&mut self, first: *mut Span, slices: usize, dirty: bool) {
        self.in_use -= slices;
        self.insert(slice_of(first), slices, dirty);
        self.decay(false);
    }

    /// Gives all idle memory back to the system.
    pub fn purge_all(&mut self) {
        self.decay(true);
    }

    fn decay(&mut self, all: bool) {
        if self.oldest.is_null() {
            return;
        }
        let now = os::now_ms();
        let bound = if all { 0 } else { DIRTY_LEAST.max(self.in_use / 16) };
        let over = self.dirty > bound + if all { 0 } else { DIRTY_SLACK };
        loop {
            let run = self.oldest;
            if run.is_null() {
                return;
            }
            // SAFETY: runs in the queue are descriptors of ours, and we hold the lock.
            let (since, slices) = unsafe { ((*run).list.since.get(), (*run).slices()) };
            if !(all || (over && self.dirty > bound) || now.saturating_sub(since) >= DECAY_MS) {
                return;
            }
            self.remove(run, slices);
            os::purge(address_of_slice(slice_of(run)), slices << SLICE_SHIFT);
            self.bytes_to_os += (slices << SLICE_SHIFT) as u64;
            self.purges += 1;
            self.insert(slice_of(run), slices, false);
        }
    }

    fn find(&mut self, slices: usize) -> Option<(*mut Span, bool)> {
        // Memory that is warm before memory that costs page faults.
        for dirty in [true, false] {
            let lists = &self.free[dirty as usize];
            let from = list_for(slices);
            let mut word = from / 64;
            let mut bits = lists.map[word] & (u64::MAX << (from % 64));
            while bits == 0 && word + 1 < WORDS {
                word += 1;
                bits = lists.map[word];
            }
            if bits == 0 {
                continue;
            }
            let run = lists.first[word * 64 + bits.trailing_zeros() as usize];
            // SAFETY: runs in lists are descriptors of ours, and we hold the lock.
            let length = unsafe { (*run).slices() };
            debug_assert!(length >= slices);
            // SAFETY: as above.
            let since = unsafe { (*run).list.since.get() };
            self.remove(run, length);
            if length > slices {
                let rest = slice_of(run) + slices;
                self.insert_at(rest, length - slices, dirty, since);
            }
            return Some((run, !dirty));
        }
        None
    }

    fn grow(&mut self, slices: usize) -> *mut Span {
        if slices > self.total - self.frontier {
            return null_mut();
        }
        let end = self.frontier + slices;
        if end > self.committed {
            let to = end.next_multiple_of(COMMIT_STEP).min(self.total);
            if !os::commit(address_of_slice(self.committed), (to - self.committed) << SLICE_SHIFT) {
                return null_mut();
            }
            self.committed = to;
        }
        let run = span_of_slice(self.frontier);
        self.frontier = end;
        run
    }

    fn insert(&mut self, slice: usize, slices: usize, dirty: bool) {
        let (mut slice, mut slices) = (slice, slices);
        // SAFETY: entries next to a run are within the table (slice 0 has none before it, the frontier none after it);
        // their kinds are changed under the lock we hold. A descriptor that is in use is left alone.
        unsafe {
            if slice > 0 {
                let before = span_of_slice(slice - 1);
                if (*before).kind() == kind::FREE && (*before).list.dirty.get() == dirty {
                    let length = (*before).slices();
                    slice -= length;
                    slices += length;
                    self.remove(span_of_slice(slice), length);
                }
            }
            if slice + slices < self.frontier {
                let after = span_of_slice(slice + slices);
                if (*after).kind() == kind::FREE && (*after).list.dirty.get() == dirty {
                    let length = (*after).slices();
                    self.remove(after, length);
                    slices += length;
                }
            }
        }
        let since = if dirty { os::now_ms() } else { 0 };
        self.insert_at(slice, slices, dirty, since);
    }

    fn insert_at(&mut self, slice: usize, slices: usize, dirty: bool, since: u64) {
        let (first, last) = (span_of_slice(slice), span_of_slice(slice + slices - 1));
        let list = list_of(slices);
        // SAFETY: the run belongs to us; list links point to descriptors of runs in the same list. We hold the lock.
        unsafe {
            for end in [first, last] {
                (*end).fixed.slices.store(slices as u32, Ordering::Relaxed);
                (*end).list.dirty.set(dirty);
                (*end).fixed.kind.store(kind::FREE, Ordering::Release);
            }
            let lists = &mut self.free[dirty as usize];
            let next = lists.first[list];
            (*first).list.prev.set(null_mut());
            (*first).list.next.set(next);
            if !next.is_null() {
                (*next).list.prev.set(first);
            }
            lists.first[list] = first;
            lists.map[list / 64] |= 1 << (list % 64);
            if dirty {
                self.dirty += slices;
                (*first).list.since.set(since);
                (*first).list.newer.set(null_mut());
                (*first).list.older.set(self.newest);
                if self.newest.is_null() {
                    self.oldest = first;
                } else {
                    (*self.newest).list.newer.set(first);
                }
                self.newest = first;
            }
        }
    }

    fn remove(&mut self, first: *mut Span, slices: usize) {
        let list = list_of(slices);
        // SAFETY: `first` is the first slice of a free run of `slices`, so its links are those that insert_at set.
        unsafe {
            let last = span_of_slice(slice_of(first) + slices - 1);
            let dirty = (*first).list.dirty.get();
            (*first).fixed.kind.store(kind::INNER, Ordering::Release);
            (*last).fixed.kind.store(kind::INNER, Ordering::Release);
            let lists = &mut self.free[dirty as usize];
            let (next, prev) = ((*first).list.next.get(), (*first).list.prev.get());
            if prev.is_null() {
                lists.first[list] = next;
                if next.is_null() {
                    lists.map[list / 64] &= !(1 << (list % 64));
                }
            } else {
                (*prev).list.next.set(next);
            }
            if !next.is_null() {
                (*next).list.prev.set(prev);
            }
            if dirty {
                self.dirty -= slices;
                let (older, newer) = ((*first).list.older.get(), (*first).list.newer.get());
                if older.is_null() {
                    self.oldest = newer;
                } else {
                    (*older).list.newer.set(newer);
                }
                if newer.is_null() {
                    self.newest = older;
                } else {
                    (*newer).list.older.set(older);
                }
            }
        }
    }

    /// Takes the counters of a span into `gone` and its slices back.
    pub fn retire(&mut self, span: *mut Span) {
        // SAFETY: the owner gives the span up: no block of it is out, it is in no list and on no stack.
        unsafe {
            let span_ref = &*span;
            let gone = &mut self.gone[span_ref.class()];
            gone.allocs += span_ref.own.allocs.load(Ordering::Relaxed);
            gone.frees += span_ref.own.frees.load(Ordering::Relaxed);
            gone.from_remote += span_ref.own.from_remote.load(Ordering::Relaxed);
            span_ref.fixed.owner.store(null_mut(), Ordering::Relaxed);
            span_ref.own.keep.set(Keep::Full);
            span_ref.fixed.kind.store(kind::INNER, Ordering::Release);
            self.give(span, 1);
        }
    }
}
