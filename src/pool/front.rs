//! The front door: malloc, free, realloc and what goes with them, with libc's meaning.
//!
//! # Contract of every pointer here
//! A pointer given to [`free`], [`realloc`] or [`usable_size`] is null, or a block that this pool or libc handed out and
//! that is not freed yet. A pointer into the pool's range that is not such a block ends the program with a report
//! (see `misuse.rs`); one outside of it is libc's to judge.

use core::ptr::{copy_nonoverlapping, null_mut, write_bytes};
use core::sync::atomic::Ordering;

use super::classes::{self, CLASS_MAX, RUN_MAX, SLICE, SLICE_SHIFT, SMALL_MAX};
use super::heap::{self, Heap};
use super::misuse::{self, Misuse};
use super::pages::{PAGES, Refusal};
use super::range::{address_of_slice, first_part, offset_of, slice_of, span_at};
use super::span::{Span, bump, kind};
use super::start::{self, Entry};
use super::{marks, next, os, tls, watch};

/// At least `size` bytes, or null. Size 0 gives a block of its own.
#[inline(always)]
pub fn malloc(size: usize) -> *mut u8 {
    let heap = tls::heap();
    if size <= SMALL_MAX {
        // SAFETY: a thread's heap is its own; its table leads to spans of the heap, or to NO_SPAN, where pop finds
        // nothing.
        if let Some(block) = unsafe { (*(*heap).direct[size.div_ceil(8)].get()).pop() } {
            return block;
        }
    }
    malloc_slow(heap, size, true)
}

/// `extern "C"` here and below: such a function does not unwind, so its callers need no cleanup and jump to it.
#[inline(never)]
extern "C" fn malloc_slow(heap: *mut Heap, size: usize, limited: bool) -> *mut u8 {
    if start::watched() { watch::malloc_watched(size, limited) } else { malloc_anew(heap, size, limited) }
}

#[inline(never)]
extern "C" fn malloc_anew(heap: *mut Heap, size: usize, limited: bool) -> *mut u8 {
    if size <= CLASS_MAX {
        let class = classes::class_of(size);
        if heap != tls::empty() {
            // SAFETY: the thread's own heap.
            match unsafe { (*heap).allocate(class, limited) } {
                Ok(block) => return block,
                Err(refusal) => return refused(refusal, size),
            }
        }
    }
    malloc_entry(size, limited)
}

fn malloc_entry(size: usize, limited: bool) -> *mut u8 {
    match start::enter() {
        // SAFETY: the thread's own heap.
        Entry::Heap(heap) => unsafe { from_heap(heap, size, limited) },
        // SAFETY: the heap comes with its lock held.
        Entry::Late => start::with_late_heap(|heap| unsafe { from_heap(heap, size, limited) }),
        // SAFETY: the thread's own heap.
        Entry::Watched(heap) => unsafe { watch::malloc(heap, size, limited, None) },
        Entry::Libc => next::malloc(size),
    }
}

/// A block from a heap that the caller has claimed (or holds the lock of).
///
/// # Safety
/// As said.
pub unsafe fn from_heap(heap: *mut Heap, size: usize, limited: bool) -> *mut u8 {
    // SAFETY: claimed by the caller.
    let block = unsafe {
        if size <= CLASS_MAX {
            (*heap).allocate(classes::class_of(size), limited)
        } else if size <= RUN_MAX {
            (*heap).allocate_run(size, limited).map(|(block, _)| block)
        } else {
            return large(size, limited).0;
        }
    };
    block.unwrap_or_else(|refusal| refused(refusal, size))
}

#[cold]
fn refused(refusal: Refusal, size: usize) -> *mut u8 {
    match refusal {
        Refusal::Limit => {
            os::set_enomem();
            null_mut()
        }
        Refusal::Space => next::malloc(size),
    }
}

/// A run of slices of its own, and whether it is known to be zero.
fn large(size: usize, limited: bool) -> (*mut u8, bool) {
    if size > isize::MAX as usize {
        return (null_mut(), false);
    }
    let slices = size.div_ceil(SLICE);
    let taken = PAGES.with(|pages| {
        let taken = pages.take(slices, limited)?;
        pages.large.allocs += 1;
        pages.large_bytes += (slices << SLICE_SHIFT) as u64;
        Ok(taken)
    });
    match taken {
        Ok((at, clean)) => {
            let base = address_of_slice(slice_of(at));
            // SAFETY: the run is ours alone until we return it.
            let fixed = unsafe { &(*at).fixed };
            fixed.owner.store(null_mut(), Ordering::Relaxed);
            fixed.base.set(base);
            fixed.bytes.set(slices << SLICE_SHIFT);
            fixed.slices.store(slices as u32, Ordering::Relaxed);
            fixed.kind.store(kind::LARGE, Ordering::Release);
            (base as *mut u8, clean)
        }
        Err(refusal) => (refused(refusal, size), false),
    }
}

/// Zeroed memory for `count` elements of `size` bytes; null where the product does not fit.
pub fn calloc(count: usize, size: usize) -> *mut u8 {
    let Some(bytes) = count.checked_mul(size) else { return null_mut() };
    zeroed(bytes, true)
}

fn zeroed(bytes: usize, limited: bool) -> *mut u8 {
    if bytes > RUN_MAX {
        if let Entry::Heap(_) = start::enter() {
            let (block, clean) = large(bytes, limited);
            if !clean && !block.is_null() {
                // SAFETY: a block of at least this size.
                unsafe { write_bytes(block, 0, bytes) };
            }
            return block;
        }
    }
    let block = if limited { malloc(bytes) } else { malloc_unlimited(bytes) };
    if !block.is_null() {
        // SAFETY: a block of at least this size.
        unsafe { write_bytes(block, 0, bytes) };
    }
    block
}

#[inline(always)]
fn malloc_unlimited(size: usize) -> *mut u8 {
    let heap = tls::heap();
    if size <= SMALL_MAX {
        // SAFETY: as in `malloc`.
        if let Some(block) = unsafe { (*(*heap).direct[size.div_ceil(8)].get()).pop() } {
            return block;
        }
    }
    malloc_slow(heap, size, false)
}

/// Frees a block.
///
/// # Safety
/// See the module's head.
#[inline(always)]
pub unsafe fn free(block: *mut u8) {
    let Some(offset) = offset_of(block as usize) else {
        // SAFETY: not ours, so the caller vouches for it as a block of libc's.
        return unsafe { free_foreign(block) };
    };
    let heap = tls::heap();
    // SAFETY: every slice of the range has a descriptor. Where the owner is this thread's heap the slice is a span of it, or
    // the first of a region, where nothing passes for a block; the first word of a block may be read.
    unsafe {
        let span = span_at(offset);
        if (*span).fixed.owner.load(Ordering::Relaxed) == heap
            && (*span).is_block(offset & (SLICE - 1))
            && !(*span).may_be_free(*block.cast::<u64>())
        {
            if (*span).push(block) == (*span).own.trigger.get() {
                (*heap).on_trigger(span);
            }
            return;
        }
        free_slow(heap, span, block);
    }
}

/// # Safety
/// See the module's head; the block is not ours.
#[inline(never)]
unsafe extern "C" fn free_foreign(block: *mut u8) {
    if block.is_null() {
        return;
    }
    let heap = tls::heap();
    if heap != tls::empty() {
        // SAFETY: the thread's own heap.
        bump(unsafe { &(*heap).foreign }, 1);
    }
    // SAFETY: as for this function.
    unsafe { next::free(block) };
}

/// Everything but a local free of a block in the first slice of its span.
///
/// # Safety
/// See the module's head; `span` describes the block's slice.
#[inline(never)]
unsafe extern "C" fn free_slow(heap: *mut Heap, span: *mut Span, block: *mut u8) {
    // SAFETY: as for this function.
    unsafe { if start::watched() { watch::free(span, block) } else { free_otherwise(heap, span, block) } }
}

/// # Safety
/// As [`free_slow`].
#[inline(never)]
unsafe extern "C" fn free_otherwise(heap: *mut Heap, span: *mut Span, block: *mut u8) {
    // SAFETY: descriptors of the range; the checks below make the block one of ours.
    unsafe {
        match checked_span(span, block) {
            Ok(span) if (*span).kind() == kind::LARGE => free_large(span, block),
            Ok(span) => free_checked(heap, span, block),
            Err(misuse) => misuse::report(misuse, block as usize, "free"),
        }
    }
}

/// The span of a block, if the block is the beginning of one and not free.
///
/// # Safety
/// `span` describes the slice that the address lies in.
pub unsafe fn checked_span(span: *mut Span, block: *mut u8) -> Result<*mut Span, Misuse> {
    // SAFETY: as above; a part's `back` leads to the first slice of the same region. A block's first word may be read.
    unsafe {
        let span = first_part(span);
        let offset = (block as usize).wrapping_sub((*span).fixed.base.get());
        match (*span).kind() {
            kind::BLOCKS if offset >= (*span).fixed.fresh.load(Ordering::Relaxed) as usize => Err(Misuse::NotABlock),
            kind::BLOCKS if offset % (*span).fixed.size.get() as usize != 0 => Err(Misuse::Interior),
            kind::REGION if !marks::is_block(block as usize) => match marks::run_at(span, block as usize) {
                (_, _, true) => Err(Misuse::Interior),
                _ => Err(Misuse::DoubleFree),
            },
            kind::BLOCKS | kind::REGION if (*span).looks_free(*block.cast::<u64>()) => Err(Misuse::DoubleFree),
            kind::BLOCKS | kind::REGION => Ok(span),
            kind::LARGE if offset != 0 => Err(Misuse::Interior),
            kind::LARGE => Ok(span),
            _ => Err(Misuse::NotABlock),
        }
    }
}

/// Frees a block of a span of blocks that [`checked_span`] has passed.
///
/// # Safety
/// As the name says; `heap` is the calling thread's, or EMPTY.
pub unsafe fn free_checked(heap: *mut Heap, span: *mut Span, block: *mut u8) {
    // SAFETY: the caller vouches for the block; each heap used is claimed by this thread or under its lock.
    unsafe {
        let heap = if heap == tls::empty() {
            match start::enter() {
                Entry::Heap(heap) | Entry::Watched(heap) => heap,
                Entry::Late | Entry::Libc => {
                    return start::with_late_heap(|late| {
                        (*late).send(span, block);
                        (*late).flush();
                    });
                }
            }
        } else {
            heap
        };
        if (*span).fixed.owner.load(Ordering::Relaxed) == heap {
            if (*span).kind() == kind::REGION {
                return (*heap).runs.free(span, block, false);
            }
            let back = (*span).push(block);
            if back == (*span).own.trigger.get() {
                (*heap).on_trigger(span);
            }
        } else {
            (*heap).send(span, block);
        }
    }
}

/// # Safety
/// `block` is the large block that `span` describes.
pub unsafe fn free_large(span: *mut Span, block: *mut u8) {
    // SAFETY: as above.
    let fixed = unsafe { &(*span).fixed };
    let slices = fixed.slices.load(Ordering::Relaxed) as usize;
    // Of two threads that free the same block one finds the mark gone.
    if fixed.kind.compare_exchange(kind::LARGE, kind::INNER, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        misuse::report(Misuse::DoubleFree, block as usize, "free");
    }
    PAGES.with(|pages| {
        pages.large.frees += 1;
        pages.large_bytes -= (slices << SLICE_SHIFT) as u64;
        pages.give(span, slices);
    });
}

/// Bytes that a block holds; 0 for null.
///
/// # Safety
/// See the module's head.
pub unsafe fn usable_size(block: *mut u8) -> usize {
    if block.is_null() {
        return 0;
    }
    match offset_of(block as usize) {
        // SAFETY: the caller vouches for the block.
        Some(offset) => unsafe {
            if start::watched() {
                return watch::usable_size(block);
            }
            own_size(span_at(offset), block, "malloc_usable_size")
        },
        // SAFETY: as above; not ours.
        None => unsafe { next::usable_size(block) },
    }
}

/// Bytes in a block.
///
/// # Safety
/// `span` describes the block, see [`checked_span`].
pub unsafe fn block_size(span: *const Span, block: *mut u8) -> usize {
    // SAFETY: as for this function.
    unsafe {
        match (*span).kind() {
            kind::LARGE => (*span).fixed.bytes.get(),
            kind::REGION => marks::run_at(span, block as usize).1,
            _ => (*span).fixed.size.get() as usize,
        }
    }
}

/// # Safety
/// As [`checked_span`].
unsafe fn own_size(span: *mut Span, block: *mut u8, verb: &str) -> usize {
    // SAFETY: as for this function.
    unsafe {
        match checked_span(span, block) {
            Ok(span) => block_size(span, block),
            Err(misuse) => misuse::report(misuse, block as usize, verb),
        }
    }
}

/// Changes a block's size; the block may move. Size 0 frees it and gives null, null gives a new block, as libc does.
///
/// # Safety
/// See the module's head.
#[inline]
pub unsafe fn realloc(block: *mut u8, size: usize) -> *mut u8 {
    // SAFETY: as for this function.
    unsafe { resize(block, size, true) }
}

unsafe fn resize(block: *mut u8, size: usize, limited: bool) -> *mut u8 {
    if block.is_null() {
        return if limited { malloc(size) } else { malloc_unlimited(size) };
    }
    let Some(offset) = offset_of(block as usize) else {
        // SAFETY: not ours, so the caller vouches for it as a block of libc's.
        return unsafe { next::realloc(block, size) };
    };
    // SAFETY: the caller vouches for the block; both blocks are at least as long as what is copied, and apart. A
    // thread's heap is its own; the counter of EMPTY is nobody's and may lose.
    unsafe {
        bump(&(*tls::heap()).reallocs, 1);
        if start::watched() {
            return watch::realloc(block, size, limited, None);
        }
        let had = own_size(span_at(offset), block, "realloc");
        if size == 0 {
            free(block);
            return null_mut();
        }
        if had > CLASS_MAX
            && (CLASS_MAX + 1..=RUN_MAX).contains(&size)
            && resized_in_place(span_at(offset), block, size)
        {
            return block;
        }
        // In place while the block is at least half used.
        if size <= had && size >= had / 2 {
            return block;
        }
        let moved = if limited { malloc(size) } else { malloc_unlimited(size) };
        if !moved.is_null() {
            copy_nonoverlapping(block, moved, had.min(size));
            free(block);
        }
        moved
    }
}

/// Whether a run of the calling thread's heap could be made to hold `size` bytes where it is.
///
/// # Safety
/// `span` describes the block's slice; the block has passed [`checked_span`].
unsafe fn resized_in_place(span: *mut Span, block: *mut u8, size: usize) -> bool {
    let heap = tls::heap();
    // SAFETY: as for this function; the thread's own heap.
    unsafe {
        let span = first_part(span);
        heap != tls::empty()
            && (*span).kind() == kind::REGION
            && (*span).fixed.owner.load(Ordering::Relaxed) == heap
            && (*heap).runs.resize(span, block, size).is_some()
    }
}

/// The pool as Rust's allocator. The limit does not bind it, and where the range is full libc serves: Rust code of this
/// library must not run into `handle_alloc_error` because a host has set a limit.
pub struct PoolAlloc;

/// # Safety
/// `align` is a power of two.
#[inline(always)]
unsafe fn aligned(size: usize, align: usize) -> *mut u8 {
    if align <= 8 || (align == 16 && size > 8) {
        return malloc_unlimited(size);
    }
    aligned_slow(size, align)
}

#[cold]
fn aligned_slow(size: usize, align: usize) -> *mut u8 {
    if let Entry::Libc | Entry::Watched(_) = start::enter() {
        return next::aligned(size, align);
    }
    match classes::aligned_class(size, align) {
        // A size that is the class's own leads to the class and no other.
        Some(class) => match malloc_unlimited(classes::size_of(class)) {
            // libc served, with an alignment of its own.
            block if !block.is_null() && block as usize % align != 0 => {
                // SAFETY: just allocated, unused.
                unsafe { free(block) };
                next::aligned(size, align)
            }
            block => block,
        },
        // Runs begin on a grain, large blocks on a slice.
        None if align <= marks::GRAIN && size > CLASS_MAX => malloc_unlimited(size),
        None if align <= SLICE => large(size, false).0,
        None => next::aligned(size, align),
    }
}

/// A realloc of Rust's that moved a block has taken one and given one back.
fn count_move() {
    // SAFETY: a thread's heap is its own; the counters of EMPTY are nobody's and may lose.
    unsafe {
        bump(&(*tls::heap()).rust_allocs, 1);
        bump(&(*tls::heap()).rust_frees, 1);
    }
}

// SAFETY: blocks are as large and as aligned as the layout says (aligned_class and its test), disjoint, and live until
// freed; nothing here panics or unwinds.
unsafe impl core::alloc::GlobalAlloc for PoolAlloc {
    #[inline]
    unsafe fn alloc(&self, layout: core::alloc::Layout) -> *mut u8 {
        // SAFETY: a Layout's alignment is a power of two. Counted afterwards: a thread's first call gives it its heap.
        unsafe {
            let block = aligned(layout.size(), layout.align());
            bump(&(*tls::heap()).rust_allocs, 1);
            block
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: core::alloc::Layout) {
        // SAFETY: the caller got the block from here.
        unsafe {
            bump(&(*tls::heap()).rust_frees, 1);
            free(block);
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: core::alloc::Layout) -> *mut u8 {
        // SAFETY: as above; the block has the layout's size.
        unsafe {
            if layout.align() <= 8 || (layout.align() == 16 && layout.size() > 8) {
                let block = zeroed(layout.size(), false);
                bump(&(*tls::heap()).rust_allocs, 1);
                return block;
            }
            let block = aligned(layout.size(), layout.align());
            if !block.is_null() {
                write_bytes(block, 0, layout.size());
            }
            block
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: core::alloc::Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller got the block from here, with this layout.
        unsafe {
            if layout.align() <= 8 || (layout.align() == 16 && size > 8) {
                let moved = resize(block, size, false);
                if moved != block && !moved.is_null() {
                    count_move();
                }
                return moved;
            }
            let moved = aligned(size, layout.align());
            if !moved.is_null() {
                copy_nonoverlapping(block, moved, layout.size().min(size));
                free(block);
                count_move();
            }
            moved
        }
    }
}

/// Gives back what the calling thread and heaps without a thread hold unused, and all idle memory.
pub fn trim() {
    if let Entry::Heap(heap) | Entry::Watched(heap) = start::enter() {
        // SAFETY: the thread's own heap.
        unsafe {
            (*heap).tidy(true);
        }
    }
    heap::tidy_orphans();
    PAGES.with(|pages| pages.purge_all());
}
