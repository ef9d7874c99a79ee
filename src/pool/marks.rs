//! What is known of the grains of a region: where runs begin, which are blocks, and which pages have memory behind them. The
//! picture stands at the head of runs.rs, which alone changes any of it.

use core::cell::Cell;

use super::classes::SLICE;
use super::range::{RANGE, marks_of_slice};
use super::span::Span;
use super::sync::{AtomicU64, Ordering};

/// log2 of the size of [`Marks`].
pub const MARKS_SHIFT: usize = 7;
pub(super) const GRAIN_SHIFT: usize = 10;
pub const GRAIN: usize = 1 << GRAIN_SHIFT;
/// Grains per slice and per page.
pub(super) const PER_SLICE: u32 = (SLICE / GRAIN) as u32;
pub(super) const PER_PAGE: u32 = 4;
pub(super) const PAGE: usize = PER_PAGE as usize * GRAIN;
/// Free runs from this length on stand in a list. No block is shorter.
pub(super) const LISTED: u32 = 8;
pub(super) const NONE: u32 = u32::MAX;

/// A grain, numbered from the range's base on.
pub(super) type Grain = u32;

pub(super) struct Ends {
    pub(super) next: Cell<Grain>,
    pub(super) prev: Cell<Grain>,
    pub(super) end: Cell<Grain>,
}

/// What is known of a slice in a region.
#[repr(C, align(128))]
pub struct Marks {
    pub(super) start: AtomicU64,
    pub(super) used: AtomicU64,
    pub(super) marked: Cell<u64>,
    pub(super) backed: Cell<u16>,
    pub(super) ends: [Ends; (PER_SLICE / LISTED) as usize],
}

const _: () = assert!(size_of::<Marks>() == 1 << MARKS_SHIFT);

pub(super) fn grain_of(address: usize) -> Grain {
    ((address - RANGE.base.load(Ordering::Relaxed)) >> GRAIN_SHIFT) as Grain
}

pub(super) fn address_of(grain: Grain) -> usize {
    RANGE.base.load(Ordering::Relaxed) + ((grain as usize) << GRAIN_SHIFT)
}

pub(super) fn marks(grain: Grain) -> &'static Marks {
    // SAFETY: grains come from addresses in the range, whose every slice has its marks; they are never unmapped. What is
    // not atomic in them is touched by the region's owner alone.
    unsafe { &*marks_of_slice((grain / PER_SLICE) as usize) }
}

pub(super) fn ends(run: Grain) -> &'static Ends {
    let at = run.next_multiple_of(LISTED);
    &marks(at).ends[(at % PER_SLICE / LISTED) as usize]
}

pub(super) fn bit(grain: Grain) -> u64 {
    1 << (grain % PER_SLICE)
}

/// One thread writes, others read: no locked instruction.
pub(super) fn set(word: &AtomicU64, bit: u64) {
    word.store(word.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
}

pub(super) fn clear(word: &AtomicU64, bit: u64) {
    word.store(word.load(Ordering::Relaxed) & !bit, Ordering::Relaxed);
}

pub(super) fn is_used(run: Grain) -> bool {
    marks(run).used.load(Ordering::Relaxed) & bit(run) != 0
}

/// The first run that begins at `from` or behind it, if it does in `words` words; else `end`.
pub(super) fn next_start(from: Grain, end: Grain, words: u32) -> Option<Grain> {
    let mut mask = u64::MAX << (from % PER_SLICE);
    let slice = from / PER_SLICE;
    for slice in slice..slice.saturating_add(words) {
        if slice * PER_SLICE >= end {
            return Some(end);
        }
        let found = marks(slice * PER_SLICE).start.load(Ordering::Relaxed) & mask;
        if found != 0 {
            return Some(slice * PER_SLICE + found.trailing_zeros());
        }
        mask = u64::MAX;
    }
    None
}

/// The run that a grain lies in. `begin` is the region's first grain, where a run begins.
pub(super) fn run_of(grain: Grain, begin: Grain) -> Grain {
    let mut slice = grain / PER_SLICE;
    let mut mask = u64::MAX >> (PER_SLICE - 1 - grain % PER_SLICE);
    loop {
        let found = marks(slice * PER_SLICE).start.load(Ordering::Relaxed) & mask;
        if found != 0 {
            return slice * PER_SLICE + (63 - found.leading_zeros());
        }
        if slice * PER_SLICE <= begin {
            return begin;
        }
        slice -= 1;
        mask = u64::MAX;
    }
}

/// First grain and end of a region.
pub(super) fn limits(span: &Span) -> (Grain, Grain) {
    let begin = grain_of(span.fixed.base.get());
    (begin, begin + (span.fixed.bytes.get() >> GRAIN_SHIFT) as Grain)
}

/// The pages that lie in `[from, to)` as a whole, numbered from the range's base on.
pub(super) fn pages_in(from: Grain, to: Grain) -> core::ops::Range<u32> {
    from.div_ceil(PER_PAGE)..(to / PER_PAGE).max(from.div_ceil(PER_PAGE))
}

/// Calls `body` with the marks of each slice that the pages touch and with the pages' bits in it.
pub(super) fn each_slice(pages: core::ops::Range<u32>, mut body: impl FnMut(&Marks, u16)) {
    const PAGES_PER_SLICE: u32 = PER_SLICE / PER_PAGE;
    let mut page = pages.start;
    while page < pages.end {
        let slice = page / PAGES_PER_SLICE;
        let to = pages.end.min((slice + 1) * PAGES_PER_SLICE);
        let bits = (u32::from(u16::MAX) >> (PAGES_PER_SLICE - (to - page))) << (page % PAGES_PER_SLICE);
        body(marks(slice * PER_SLICE), bits as u16);
        page = to;
    }
}

pub(super) fn backed_in(from: Grain, to: Grain) -> usize {
    let mut count = 0;
    each_slice(pages_in(from, to), |marks, bits| count += (marks.backed.get() & bits).count_ones() as usize);
    count
}

/// Beginning and length of the run that an address in a region lies in, and whether that is a block.
///
/// # Safety
/// `span` describes a region and the address lies in it.
pub unsafe fn run_at(span: *const Span, address: usize) -> (usize, usize, bool) {
    // SAFETY: as for this function.
    let (begin, end) = limits(unsafe { &*span });
    let run = run_of(grain_of(address), begin);
    let next = next_start(run + 1, end, u32::MAX).unwrap_or(end);
    (address_of(run), ((next - run) as usize) << GRAIN_SHIFT, is_used(run))
}

/// Whether a block begins at an address in a region. One that is on its way home still counts.
pub fn is_block(address: usize) -> bool {
    let grain = grain_of(address);
    address % GRAIN == 0 && marks(grain).start.load(Ordering::Relaxed) & bit(grain) != 0 && is_used(grain)
}

/// Calls `body` with address and length of every block of a region.
///
/// # Safety
/// `span` describes a region.
pub unsafe fn each_block(span: *const Span, body: &mut dyn FnMut(usize, usize)) {
    // SAFETY: as for this function.
    let (begin, end) = limits(unsafe { &*span });
    let mut run = begin;
    while run < end {
        let next = next_start(run + 1, end, u32::MAX).unwrap_or(end);
        if is_used(run) {
            body(address_of(run), ((next - run) as usize) << GRAIN_SHIFT);
        }
        run = next;
    }
}
