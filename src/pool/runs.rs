//! Runs: blocks above 8 KiB and up to 256 KiB, in steps of 1 KiB, cut out of regions that belong to a heap.
//!
//! Spans of one size each would cost much here: few blocks, each of a size of its own, and what one size has free is of no
//! use to the others. So a region is cut where it has to be, and what comes back is joined with what is free beside it
//! (boundary tags: Knuth, "The Art of Computer Programming" 1, 2.5). A fit is looked for in lists by length, eight per
//! doubling (Masmano et al., "TLSF", ECRTS 2004), among a few of the block's own length first.
//!
//! ```text
//!  region: [ run ][ run      ][ free      ][ run ][ free              ]       one heap's; slices of the page heap
//!  start    1      1           1            1      1                          a bit per grain (1 KiB): a run begins
//!  used     1      1           0            1      0                          and is a block
//!  marked                      1                   1   1                      a freed block began here: its first word
//!                                                                             holds a link to itself
//!  backed   1   1    1    1    1   1        1   1  0   0    0                 a bit per page: has memory behind it
//! ```
//! All of this stands in a table of its own, so nothing that a program writes past a block can change it, and a page
//! inside a free run can go back to the system as a whole. A free run of eight grains or more stands in a list; its links
//! are kept with the first grain in it whose number is a multiple of eight, which no other such run can have.
//!
//! The owner alone changes any of it. Other threads read `start` and `used` for blocks that they hold: those bits, and the
//! start of what follows a block, do not change while it is out.

use core::cell::Cell;
use core::ptr::null_mut;
use core::sync::atomic::AtomicUsize;

use super::classes::{CLASSES, COUNTED, SLICE_SHIFT, class_of};
use super::heap::Heap;
use super::marks::*;
use super::misuse;
use super::os;
use super::pages::{DECAY_MS, PAGES, Refusal, USED};
use super::range::{address_of_slice, first_part, marks_of_slice, slice_of, span_of_slice};
use super::span::{Span, bump, kind};
use super::sync::{AtomicU64, Ordering};

/// A region has between 512 KiB and 4 MiB, half of what the heap's other regions have together.
const REGION_LEAST: usize = 8;
const REGION_MOST: usize = 64;
/// Lists: eight per doubling from 8 grains to the 4,096 of the longest region.
const LISTS: usize = 80;
/// Runs of the block's own list that are looked at for a fit.
const LOOK_AT: usize = 8;
/// Pages that a heap's free runs may keep, and the part of what is out that they may.
const DIRTY_LEAST: usize = 256;
const DIRTY_PART: usize = 8;
/// The clock is looked at once in so many calls.
const CALLS: u32 = 16;

/// Blocks of one statistical class.
pub struct Counts {
    pub allocs: AtomicU64,
    pub frees: AtomicU64,
    /// Of `frees`, those that came from other threads.
    pub from_remote: AtomicU64,
}

/// A heap's regions.
pub struct Runs {
    first: [Cell<Grain>; LISTS],
    map: [Cell<u64>; LISTS.div_ceil(64)],
    regions: Cell<*mut Span>,
    slices: Cell<usize>,
    /// Grains in blocks that are out.
    out: Cell<usize>,
    /// Pages in listed free runs that have memory behind them, and the fewest there were since `since`.
    pub dirty: AtomicUsize,
    low: Cell<usize>,
    since: Cell<u64>,
    calls: Cell<u32>,
    pub counts: [Counts; COUNTED - CLASSES],
    /// Bytes in blocks handed out, and in blocks that the heap's own threads freed.
    pub bytes_out: AtomicU64,
    pub bytes_back: AtomicU64,
    /// Bytes of pages that went back to the system, and that came from it.
    pub purged: AtomicU64,
    pub filled: AtomicU64,
}

impl Runs {
    #[allow(clippy::declare_interior_mutable_const, reason = "a template, copied into every new heap")]
    pub const NEW: Runs = Runs {
        first: [const { Cell::new(NONE) }; LISTS],
        map: [const { Cell::new(0) }; LISTS.div_ceil(64)],
        regions: Cell::new(null_mut()),
        slices: Cell::new(0),
        out: Cell::new(0),
        dirty: AtomicUsize::new(0),
        low: Cell::new(0),
        since: Cell::new(0),
        calls: Cell::new(0),
        counts: [const { Counts { allocs: AtomicU64::new(0), frees: AtomicU64::new(0), from_remote: AtomicU64::new(0) } };
            COUNTED - CLASSES],
        bytes_out: AtomicU64::new(0),
        bytes_back: AtomicU64::new(0),
        purged: AtomicU64::new(0),
        filled: AtomicU64::new(0),
    };
}

/// The list for runs of this length.
fn list_of(length: u32) -> usize {
    let exponent = 31 - length.leading_zeros();
    ((exponent - 3) * 8 + ((length >> (exponent - 3)) & 7)) as usize
}

/// Every method's contract: the calling thread has claimed the heap that this belongs to, and regions, blocks and runs
/// that are passed belong to it too.
impl Runs {
    /// A block of at least `bytes` (above 8 KiB, at most 256 KiB) and its length.
    ///
    /// # Safety
    /// See above; `heap` is that heap.
    pub unsafe fn allocate(&self, heap: *mut Heap, bytes: usize, limited: bool) -> Result<(*mut u8, usize), Refusal> {
        let need = bytes.div_ceil(GRAIN) as u32;
        // SAFETY: as for this function; the block is ours until it is returned.
        unsafe {
            let run = match self.find(need) {
                Some(run) => run,
                None => self.new_region(heap, need, limited)?,
            };
            let span = first_part(span_of_slice((run / PER_SLICE) as usize));
            let (_, limit) = limits(&*span);
            let end = self.take(run, limit);
            if end - run > need {
                set(&marks(run + need).start, bit(run + need));
                self.put(run + need, end);
            }
            self.open(&*span, run, run + need);
            set(&marks(run).used, bit(run));
            let block = address_of(run) as *mut u8;
            *block.cast::<u64>() = 0;
            self.count_out(need);
            Ok((block, (need as usize) << GRAIN_SHIFT))
        }
    }

    fn count_out(&self, grains: u32) {
        let bytes = (grains as usize) << GRAIN_SHIFT;
        self.out.set(self.out.get() + grains as usize);
        bump(&self.bytes_out, bytes as u64);
        bump(&self.counts[class_of(bytes) - CLASSES].allocs, 1);
    }

    fn count_back(&self, grains: u32, remote: bool) {
        let bytes = (grains as usize) << GRAIN_SHIFT;
        self.out.set(self.out.get() - grains as usize);
        let counts = &self.counts[class_of(bytes) - CLASSES];
        bump(&counts.frees, 1);
        if remote {
            // Counted in bytes by the thread that sent it.
            bump(&counts.from_remote, 1);
        } else {
            bump(&self.bytes_back, bytes as u64);
        }
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// See above; the block is out, and the caller's to give up.
    pub unsafe fn free(&self, span: *mut Span, block: *mut u8, remote: bool) {
        // SAFETY: as for this function.
        unsafe {
            let (begin, limit) = limits(&*span);
            let mut run = grain_of(block as usize);
            let mut end = next_start(run + 1, limit, u32::MAX).unwrap_or(limit);
            self.count_back(end - run, remote);
            *block.cast::<u64>() = (*span).encode(block as usize);
            let own = marks(run);
            own.marked.set(own.marked.get() | bit(run));
            clear(&own.used, bit(run));
            if end < limit && !is_used(end) {
                let next = end;
                end = self.take(next, limit);
                clear(&marks(next).start, bit(next));
            }
            if run > begin {
                let before = run_of(run - 1, begin);
                if !is_used(before) {
                    self.take(before, limit);
                    clear(&own.start, bit(run));
                    run = before;
                }
            }
            self.put(run, end);
            // The last one stays for the next block.
            if run == begin && end == limit && self.slices.get() > (*span).slices() {
                self.retire(span);
            }
            self.decay();
        }
    }

    /// Makes a block longer or shorter where it stands. Returns its new length, or None where it must move.
    ///
    /// # Safety
    /// See above; the block is out.
    pub unsafe fn resize(&self, span: *mut Span, block: *mut u8, bytes: usize) -> Option<usize> {
        let need = bytes.div_ceil(GRAIN) as u32;
        // SAFETY: as for this function.
        unsafe {
            let (_, limit) = limits(&*span);
            let run = grain_of(block as usize);
            let end = next_start(run + 1, limit, u32::MAX).unwrap_or(limit);
            if end - run != need {
                let mut free_end = end;
                if end < limit && !is_used(end) {
                    free_end = self.free_end(end, limit);
                }
                if run + need > free_end {
                    return None;
                }
                if free_end > end {
                    self.take(end, limit);
                    clear(&marks(end).start, bit(end));
                }
                if run + need < free_end {
                    set(&marks(run + need).start, bit(run + need));
                    self.put(run + need, free_end);
                }
                if run + need > end {
                    self.open(&*span, end, run + need);
                }
                self.count_out(need);
                self.count_back(end - run, false);
            }
            Some((need as usize) << GRAIN_SHIFT)
        }
    }

    fn free_end(&self, run: Grain, limit: Grain) -> Grain {
        // What is not found in two words is long enough to stand in a list.
        next_start(run + 1, limit, 2).unwrap_or_else(|| ends(run).end.get())
    }

    fn find(&self, need: u32) -> Option<Grain> {
        let list = list_of(need);
        let (mut best, mut best_length) = (NONE, u32::MAX);
        let mut run = self.first[list].get();
        for _ in 0..LOOK_AT {
            if run == NONE {
                break;
            }
            let length = ends(run).end.get() - run;
            if length >= need && length < best_length {
                (best, best_length) = (run, length);
                if length == need {
                    break;
                }
            }
            run = ends(run).next.get();
        }
        if best != NONE {
            return Some(best);
        }
        let from = list + 1;
        let mut bits = self.map[from / 64].get() & (u64::MAX << (from % 64));
        let mut word = from / 64;
        while bits == 0 {
            word += 1;
            bits = self.map.get(word)?.get();
        }
        Some(self.first[word * 64 + bits.trailing_zeros() as usize].get())
    }

    /// Puts a free run into its list, if it is long enough for one.
    fn put(&self, run: Grain, end: Grain) {
        if end - run >= LISTED {
            let list = list_of(end - run);
            let next = self.first[list].get();
            let own = ends(run);
            own.next.set(next);
            own.prev.set(NONE);
            own.end.set(end);
            if next != NONE {
                ends(next).prev.set(run);
            }
            self.first[list].set(run);
            self.map[list / 64].set(self.map[list / 64].get() | 1 << (list % 64));
            let dirty = self.dirty.load(Ordering::Relaxed) + backed_in(run, end);
            self.dirty.store(dirty, Ordering::Relaxed);
        }
    }

    /// Takes a free run out of its list and returns its end.
    fn take(&self, run: Grain, limit: Grain) -> Grain {
        let end = self.free_end(run, limit);
        if end - run >= LISTED {
            let list = list_of(end - run);
            let (next, prev) = (ends(run).next.get(), ends(run).prev.get());
            if prev == NONE {
                self.first[list].set(next);
                if next == NONE {
                    self.map[list / 64].set(self.map[list / 64].get() & !(1 << (list % 64)));
                }
            } else {
                ends(prev).next.set(next);
            }
            if next != NONE {
                ends(next).prev.set(prev);
            }
            let dirty = self.dirty.load(Ordering::Relaxed) - backed_in(run, end);
            self.dirty.store(dirty, Ordering::Relaxed);
        }
        end
    }

    /// What was free becomes part of a block: nobody may have written to what began in it, and its pages get memory.
    ///
    /// # Safety
    /// See above.
    unsafe fn open(&self, span: &Span, from: Grain, to: Grain) {
        let mut slice = from / PER_SLICE;
        while slice * PER_SLICE < to {
            let marks = marks(slice * PER_SLICE);
            let mut mask = u64::MAX;
            if slice == from / PER_SLICE {
                mask &= u64::MAX << (from % PER_SLICE);
            }
            if slice == to / PER_SLICE {
                mask &= bit(to) - 1;
            }
            let mut left = marks.marked.get() & mask;
            marks.marked.set(marks.marked.get() & !mask);
            while left != 0 {
                let address = address_of(slice * PER_SLICE + left.trailing_zeros());
                left &= left - 1;
                // SAFETY: a freed block began there, in memory that is ours.
                if unsafe { *(address as *const u64) } != span.encode(address) {
                    misuse::corrupted_block(address);
                }
            }
            slice += 1;
        }
        let mut fresh = 0;
        each_slice(from / PER_PAGE..(to - 1) / PER_PAGE + 1, |marks, bits| {
            fresh += (bits & !marks.backed.get()).count_ones() as usize;
            marks.backed.set(marks.backed.get() | bits);
        });
        if fresh > 0 {
            bump(&self.filled, (fresh * PAGE) as u64);
            USED.more(fresh * PAGE);
        }
    }

    unsafe fn new_region(&self, heap: *mut Heap, need: u32, limited: bool) -> Result<Grain, Refusal> {
        let least = need.div_ceil(PER_SLICE) as usize;
        let wanted = (self.slices.get() / 2).clamp(REGION_LEAST, REGION_MOST).max(least);
        let take =
            |slices| PAGES.with(|pages| pages.take_region(slices, limited).map(|(at, clean)| (at, clean, slices)));
        let (at, clean, slices) = take(wanted).or_else(|_| take(least))?;
        if !clean {
            USED.more(slices << SLICE_SHIFT);
        }
        let first = slice_of(at);
        // SAFETY: the slices are ours alone until a block of them is handed out.
        unsafe {
            for part in 0..slices {
                let marks = &*marks_of_slice(first + part);
                marks.start.store(u64::from(part == 0), Ordering::Relaxed);
                marks.used.store(0, Ordering::Relaxed);
                marks.marked.set(0);
                marks.backed.set(if clean { 0 } else { u16::MAX });
                if part > 0 {
                    let span = &*span_of_slice(first + part);
                    span.fixed.back.set(part as u32);
                    span.fixed.kind.store(kind::PART, Ordering::Release);
                }
            }
            let span = &*at;
            let fixed = &span.fixed;
            fixed.base.set(address_of_slice(first));
            fixed.bytes.set(slices << SLICE_SHIFT);
            fixed.key.set((*heap).new_key());
            fixed.unit.set(GRAIN_SHIFT as u8);
            fixed.size.set(GRAIN as u32);
            // No block passes for one of a span, so they go the way that looks at their kind.
            fixed.magic.set(0);
            span.set_fresh(0);
            fixed.slices.store(slices as u32, Ordering::Relaxed);
            fixed.back.set(0);
            span.shared.remote.0.store(0, Ordering::Relaxed);
            span.list.prev.set(null_mut());
            span.list.next.set(self.regions.get());
            if !self.regions.get().is_null() {
                (*self.regions.get()).list.prev.set(at);
            }
            self.regions.set(at);
            self.slices.set(self.slices.get() + slices);
            fixed.owner.store(heap, Ordering::Relaxed);
            fixed.kind.store(kind::REGION, Ordering::Release);
            let (begin, end) = limits(span);
            self.put(begin, end);
            Ok(begin)
        }
    }

    /// Gives a region back that is free as a whole.
    ///
    /// # Safety
    /// See above.
    unsafe fn retire(&self, span: *mut Span) {
        // SAFETY: the region is ours, and nobody else has a way to it: no block of it is out.
        unsafe {
            if (*span).shared.remote.is_notified() {
                return;
            }
            let (begin, limit) = limits(&*span);
            self.take(begin, limit);
            let (next, prev) = ((*span).list.next.get(), (*span).list.prev.get());
            if prev.is_null() {
                self.regions.set(next);
            } else {
                (*prev).list.next.set(next);
            }
            if !next.is_null() {
                (*next).list.prev.set(prev);
            }
            let slices = (*span).slices();
            self.slices.set(self.slices.get() - slices);
            (*span).fixed.owner.store(null_mut(), Ordering::Relaxed);
            let first = slice_of(span);
            PAGES.with(|pages| {
                for part in 0..slices {
                    (*span_of_slice(first + part)).fixed.kind.store(kind::INNER, Ordering::Release);
                }
                // Slices without any memory behind them stay known as such.
                let mut from = 0;
                while from < slices {
                    let backed = |part: usize| (*marks_of_slice(first + part)).backed.get();
                    let dirty = backed(from) != 0;
                    let (mut to, mut without) = (from, 0);
                    while to < slices && (backed(to) != 0) == dirty {
                        without += backed(to).count_zeros() as usize * PAGE;
                        to += 1;
                    }
                    USED.fewer(((to - from) << SLICE_SHIFT) - without);
                    if dirty {
                        // From now on it counts as a whole.
                        bump(&self.filled, without as u64);
                    }
                    pages.give_region(span_of_slice(first + from), to - from, dirty);
                    from = to;
                }
            });
        }
    }

    /// Gives the pages of a free run back to the system.
    fn purge_run(&self, run: Grain, end: Grain) -> usize {
        let pages = pages_in(run, end);
        let mut count = 0;
        each_slice(pages.clone(), |marks, bits| {
            count += (marks.backed.get() & bits).count_ones() as usize;
            marks.backed.set(marks.backed.get() & !bits);
            // What is marked in them reads as zeros from now on. Each bit of a page is four of grains.
            let mut spread = 0u64;
            for page in 0..16 {
                spread |= if bits >> page & 1 != 0 { 0xf << (page * PER_PAGE) } else { 0 };
            }
            marks.marked.set(marks.marked.get() & !spread);
        });
        os::purge(address_of(pages.start * PER_PAGE), pages.len() * PAGE);
        bump(&self.purged, (count * PAGE) as u64);
        USED.fewer(count * PAGE);
        self.dirty.store(self.dirty.load(Ordering::Relaxed) - count, Ordering::Relaxed);
        count
    }

    /// Gives at least this many pages of free runs back to the system, where there are as many; long runs first.
    fn purge(&self, wanted: usize) {
        let mut left = wanted;
        for list in (0..LISTS).rev() {
            let mut run = self.first[list].get();
            while run != NONE {
                if left == 0 {
                    return;
                }
                let end = ends(run).end.get();
                if backed_in(run, end) > 0 {
                    left = left.saturating_sub(self.purge_run(run, end));
                }
                run = ends(run).next.get();
            }
        }
    }

    /// Bounds what free runs keep, at once in number and after [`DECAY_MS`] in time: what was not needed in between goes.
    fn decay(&self) {
        let dirty = self.dirty.load(Ordering::Relaxed);
        let bound = DIRTY_LEAST.max(self.out.get() / PER_PAGE as usize / DIRTY_PART);
        if dirty > bound {
            self.purge(dirty - bound / 4 * 3);
        }
        self.low.set(self.low.get().min(self.dirty.load(Ordering::Relaxed)));
        self.calls.set(self.calls.get() + 1);
        if self.calls.get() >= CALLS {
            self.calls.set(0);
            self.look_at_clock();
        }
    }

    /// What has been free since the clock was last looked at goes back, if that is long ago.
    pub fn look_at_clock(&self) {
        let now = os::now_ms();
        if now.saturating_sub(self.since.get()) >= DECAY_MS {
            self.purge(self.low.get());
            self.low.set(self.dirty.load(Ordering::Relaxed));
            self.since.set(now);
        }
    }

    /// Gives back regions that are free as a whole, and with `all` the memory behind every free page.
    ///
    /// # Safety
    /// See above.
    pub unsafe fn tidy(&self, all: bool) {
        let mut at = self.regions.get();
        while !at.is_null() {
            // SAFETY: regions in the list are ours.
            unsafe {
                let (begin, limit) = limits(&*at);
                let span = at;
                at = (*at).list.next.get();
                if !is_used(begin) && self.free_end(begin, limit) == limit {
                    self.retire(span);
                }
            }
        }
        if all {
            self.purge(usize::MAX);
        }
    }
}
