//! The pool's one range of addresses, so that "is this block ours?" is one subtraction and one comparison.
//!
//! ```text
//! at ─► [ descriptors: 256 bytes per slice ][ marks: 128 ][ guard ][ slice 0 ][ slice 1 ] ... [ slice n-1 ]
//!         table                               marks                  base                      base + size
//! ```
//! 64 GiB of address space (16 on Windows) without memory behind it, halved until the system grants it; with a limit on address space
//! (`ulimit -v`) at most a quarter of that, for the program needs the rest.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::classes::{SLICE, SLICE_SHIFT};
use super::marks::{MARKS_SHIFT, Marks};
use super::os;
use super::span::{SPAN_SHIFT, Span};

/// Below this a pool is not worth having; libc serves.
const LEAST: usize = 4 << 20;

/// Written once, at start, before the first block is handed out. `size` is 0 until then, and for ever where libc
/// serves everything: then every pointer is foreign.
#[repr(C, align(64))]
pub struct Range {
    pub base: AtomicUsize,
    pub size: AtomicUsize,
    pub table: AtomicUsize,
    pub marks: AtomicUsize,
}

pub static RANGE: Range = Range {
    base: AtomicUsize::new(0),
    size: AtomicUsize::new(0),
    table: AtomicUsize::new(0),
    marks: AtomicUsize::new(0),
};

/// Offset of an address in the range, if it lies in it.
#[inline(always)]
pub fn offset_of(address: usize) -> Option<usize> {
    let offset = address.wrapping_sub(RANGE.base.load(Ordering::Relaxed));
    if offset < RANGE.size.load(Ordering::Relaxed) { Some(offset) } else { None }
}

/// The descriptor of the slice at an offset that [`offset_of`] gave.
#[inline(always)]
pub fn span_at(offset: usize) -> *mut Span {
    let entry = (offset >> (SLICE_SHIFT - SPAN_SHIFT)) & !((1 << SPAN_SHIFT) - 1);
    (RANGE.table.load(Ordering::Relaxed) + entry) as *mut Span
}

/// The first slice's descriptor of what a slice belongs to.
///
/// # Safety
/// `span` is a descriptor of the range.
#[inline]
pub unsafe fn first_part(span: *mut Span) -> *mut Span {
    // SAFETY: a part's `back` leads to the first slice.
    unsafe {
        if (*span).kind() == super::span::kind::PART { span.sub((*span).fixed.back.get() as usize) } else { span }
    }
}

/// What `runs.rs` knows of a slice.
#[inline(always)]
pub fn marks_of_slice(slice: usize) -> *mut Marks {
    (RANGE.marks.load(Ordering::Relaxed) + (slice << MARKS_SHIFT)) as *mut Marks
}

pub fn span_of_slice(slice: usize) -> *mut Span {
    (RANGE.table.load(Ordering::Relaxed) + (slice << SPAN_SHIFT)) as *mut Span
}

pub fn slice_of(span: *const Span) -> usize {
    (span as usize - RANGE.table.load(Ordering::Relaxed)) >> SPAN_SHIFT
}

pub fn address_of_slice(slice: usize) -> usize {
    RANGE.base.load(Ordering::Relaxed) + (slice << SLICE_SHIFT)
}

/// Reserves the range and returns how many slices it has; 0 where there is no room for one.
pub fn reserve() -> usize {
    let mut wanted = os::WANTED;
    if let Some(limit) = os::address_space_limit() {
        while wanted > limit / 4 {
            wanted /= 2;
        }
    }
    while wanted >= LEAST {
        let slices = wanted >> SLICE_SHIFT;
        // One slice more to align to slices, one as a guard between the table and the blocks.
        let spans = (slices << SPAN_SHIFT).next_multiple_of(SLICE);
        let table = spans + (slices << MARKS_SHIFT).next_multiple_of(SLICE);
        let Some(at) = os::reserve(table + wanted + 2 * SLICE) else {
            wanted /= 2;
            continue;
        };
        let start = at.next_multiple_of(SLICE);
        // Both tables at once: one system call, and the memory behind it comes page by page as it is used. Where
        // the system counts promises (overcommit_memory 2) a smaller range may still be granted.
        if !os::commit(start, table) {
            os::unreserve(at, table + wanted + 2 * SLICE);
            wanted /= 2;
            continue;
        }
        RANGE.table.store(start, Ordering::Relaxed);
        RANGE.marks.store(start + spans, Ordering::Relaxed);
        RANGE.base.store(start + table + SLICE, Ordering::Relaxed);
        RANGE.size.store(wanted, Ordering::Release);
        return slices;
    }
    0
}
