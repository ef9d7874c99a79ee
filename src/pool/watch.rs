//! The modes that look at every block: `checked` and `leaks`.
//!
//! A block gets a guard word right behind the bytes that were asked for, and a trailer in the last 24 bytes of its class:
//! ```text
//!  [ asked for ][ guard word ]...[ size ][ call site ][ seal ]
//! ```
//! The seal is computed from address, size and site, with one constant while the block lives and another once it is
//! free. A write past the end hits the guard word or the trailer and is found when the block is freed. In `checked` mode
//! freed blocks are overwritten at their beginning and wait in a quarantine, one per heap; a change there is a write after
//! free. One block in [`SAMPLE`] lies in a slice of its own against an inaccessible page (see `guarded.rs`), so that there
//! even a read past the end, and any use after free, faults where it happens.

use core::ptr::{copy_nonoverlapping, null_mut};
use core::sync::atomic::{AtomicU64, Ordering};

use super::classes::{CLASS_MAX, SLICE, TABLE, class_of};
use super::front::{checked_span, free_checked, free_large, from_heap};
use super::guarded;
use super::heap::Heap;
use super::misuse::{self, Misuse};
use super::os::{self, Line};
use super::pages::PAGES;
use super::range::{offset_of, span_at, span_of_slice};
use super::span::{Span, kind};
use super::start::{self, Entry, Mode};
use super::{next, tls};

/// Where a block was asked for: the address of the file's name (48 bits) and the line (16).
pub type Site = Option<(*const core::ffi::c_char, u16)>;

#[repr(C)]
struct Trailer {
    size: usize,
    site: u64,
    seal: u64,
}

const TRAILER: usize = size_of::<Trailer>();
/// What a block is longer by.
const EXTRA: usize = TRAILER + 8;
const DEAD: u64 = 0xdbdb_dbdb_dbdb_dbdb;
const LIVE_SEAL: u64 = 0x6c69_7665_626c_6f63;
const FREE_SEAL: u64 = 0x6672_6565_626c_6f63;
/// Blocks of a heap that wait before they are used again, and the largest that do.
pub const QUARANTINE: usize = 256;
const QUARANTINE_MAX: usize = 4096;
/// `PARTYLINE_POOL_SAMPLE` sets another number, 0 none.
const SAMPLE: u64 = 4096;

static SECRET: AtomicU64 = AtomicU64::new(0);
static EVERY: AtomicU64 = AtomicU64::new(0);

/// Blocks in quarantine, and how many were handed out since one was guarded. Touched by the heap's thread.
pub struct Ring {
    blocks: [core::cell::Cell<usize>; QUARANTINE],
    next: core::cell::Cell<usize>,
    unsampled: core::cell::Cell<u64>,
}

impl Ring {
    #[allow(clippy::declare_interior_mutable_const, reason = "a template, copied into every new heap")]
    pub const NEW: Ring = Ring {
        blocks: [const { core::cell::Cell::new(0) }; QUARANTINE],
        next: core::cell::Cell::new(0),
        unsampled: core::cell::Cell::new(0),
    };
}

pub fn init(mode: Mode) {
    SECRET.store(os::seed(), Ordering::Relaxed);
    if mode == Mode::Checked {
        let every = match os::env(c"PARTYLINE_POOL_SAMPLE") {
            Some(text) => start::parse_bytes(text).map_or(SAMPLE, |every| every as u64),
            None => SAMPLE,
        };
        EVERY.store(every, Ordering::Relaxed);
    }
}

/// One multiplication for both seals: [`LIVE_SEAL`] or [`FREE_SEAL`] is added by exclusive or.
#[inline(always)]
fn seal(block: usize, size: usize, site: u64) -> u64 {
    (block as u64 ^ SECRET.load(Ordering::Relaxed)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (size as u64).rotate_left(40)
        ^ site
}

#[inline(always)]
fn guard_word(block: usize) -> u64 {
    (block as u64).rotate_left(32) ^ SECRET.load(Ordering::Relaxed) | 0x0101_0101_0101_0101
}

fn pack(site: Site) -> u64 {
    site.map_or(0, |(file, line)| (file as u64) << 16 | u64::from(line))
}

#[inline(always)]
unsafe fn trailer(block: usize, room: usize) -> *mut Trailer {
    (block + room - TRAILER) as *mut Trailer
}

/// File and line of a block's call site, if its trailer says so.
///
/// # Safety
/// `block` is the beginning of a block with `room` bytes.
pub unsafe fn site(block: usize, room: usize) -> Option<(&'static [u8], u16)> {
    if room < TRAILER + 8 {
        return None;
    }
    // SAFETY: within the block; the site is followed only if the seal vouches for it, and then it is what a caller of
    // `_osip_malloc` passed: a string constant.
    unsafe {
        let end = &*trailer(block, room);
        let plain = seal(block, end.size, end.site) ^ end.seal;
        let sealed = plain == LIVE_SEAL || plain == FREE_SEAL;
        if !sealed || end.site == 0 {
            return None;
        }
        let file = (end.site >> 16) as *const core::ffi::c_char;
        Some((core::ffi::CStr::from_ptr(file).to_bytes(), end.site as u16))
    }
}

/// A block with a trailer, from the mode in force or from the plain pool (`_osip_malloc` in every mode).
///
/// # Safety
/// `heap` is claimed by the caller.
pub unsafe fn malloc(heap: *mut Heap, size: usize, limited: bool, at: Site) -> *mut u8 {
    let Some(total) = size.checked_add(EXTRA) else { return null_mut() };
    // SAFETY: as for this function; a block of the pool has room for what is added.
    unsafe {
        let every = EVERY.load(Ordering::Relaxed);
        if every != 0 {
            let ring = &(*heap).ring;
            let seen = ring.unsampled.get() + 1;
            ring.unsampled.set(if seen >= every { 0 } else { seen });
            if seen >= every {
                if let Some(block) = guarded::malloc(size, limited) {
                    return block;
                }
            }
        }
        let (block, room) = if total <= CLASS_MAX {
            let class = class_of(total);
            match (*heap).allocate(class, limited) {
                Ok(block) => (block, TABLE[class].size as usize),
                Err(_) => return from_heap(heap, size, limited),
            }
        } else {
            let block = from_heap(heap, total, limited);
            match offset_of(block as usize) {
                Some(offset) => (block, (*span_at(offset)).fixed.bytes.get()),
                // Null, or libc's.
                None => return block,
            }
        };
        block.add(size).cast::<u64>().write_unaligned(guard_word(block as usize));
        let site = pack(at);
        *trailer(block as usize, room) = Trailer { size, site, seal: seal(block as usize, size, site) ^ LIVE_SEAL };
        block
    }
}

/// A block that remembers where it was asked for, in every mode. For `_osip_malloc`.
pub fn malloc_at(size: usize, at: Site) -> *mut u8 {
    match start::enter() {
        // SAFETY: the thread's own heap.
        Entry::Heap(heap) | Entry::Watched(heap) => unsafe { malloc(heap, size, true, at) },
        // SAFETY: the heap comes with its lock held.
        Entry::Late => start::with_late_heap(|heap| unsafe { malloc(heap, size, true, at) }),
        Entry::Libc => next::malloc(size),
    }
}

/// The same for `_osip_realloc`.
///
/// # Safety
/// As the front door's `realloc`.
pub unsafe fn realloc_at(block: *mut u8, size: usize, at: Site) -> *mut u8 {
    if block.is_null() {
        return malloc_at(size, at);
    }
    // SAFETY: as for this function; both blocks hold what is copied.
    unsafe {
        if size == 0 || offset_of(block as usize).is_none() {
            return super::realloc(block, size);
        }
        if start::watched() {
            return realloc(block, size, true, at);
        }
        let had = super::usable_size(block);
        let moved = malloc_at(size, at);
        if !moved.is_null() {
            copy_nonoverlapping(block, moved, had.min(size));
            super::free(block);
        }
        moved
    }
}

/// What [`examine`] has found out about a block.
struct Known {
    span: *mut Span,
    /// Bytes with what was added; 0 for a guarded block.
    room: usize,
    size: usize,
}

/// Checks a block that is to be freed or resized.
///
/// # Safety
/// The block lies in the range.
#[inline]
unsafe fn examine(block: *mut u8, verb: &str) -> Known {
    let at = block as usize;
    // SAFETY: as for this function; what is read lies in a block of the pool.
    unsafe {
        let offset = offset_of(at).unwrap_or(0);
        let first = span_at(offset);
        // A span of one slice is by far the most frequent: its blocks are told by one multiplication.
        let plain = (*first).kind() == kind::BLOCKS
            && (*first).is_start(offset & (SLICE - 1))
            && !(*first).looks_free(*block.cast::<u64>());
        let span = if plain {
            first
        } else {
            if (*first).kind() == kind::GUARDED {
                return Known { span: first, room: 0, size: guarded::size(first, at, verb) };
            }
            match checked_span(first, block) {
                Ok(span) => span,
                Err(misuse) => misuse::report(misuse, at, verb),
            }
        };
        let room =
            if (*span).kind() == kind::LARGE { (*span).fixed.bytes.get() } else { (*span).fixed.size.get() as usize };
        if room < EXTRA {
            misuse::report(Misuse::NotABlock, at, verb);
        }
        let end = &*trailer(at, room);
        let plain = end.seal ^ seal(at, end.size, end.site);
        if plain != LIVE_SEAL {
            misuse::report(if plain == FREE_SEAL { Misuse::DoubleFree } else { Misuse::Overflow }, at, verb);
        }
        if block.add(end.size).cast::<u64>().read_unaligned() != guard_word(at) {
            misuse::report(Misuse::Overflow, at, verb);
        }
        Known { span, room, size: end.size }
    }
}

/// # Safety
/// As the front door's `free`; the block is ours.
pub unsafe fn free(block: *mut u8) {
    // SAFETY: examined before anything is done with it.
    unsafe {
        let Known { span, room, .. } = examine(block, "free");
        if room == 0 {
            return guarded::free(span);
        }
        (*trailer(block as usize, room)).seal ^= LIVE_SEAL ^ FREE_SEAL;
        let heap = match start::enter() {
            Entry::Watched(heap) if start::mode() == Mode::Checked && room <= QUARANTINE_MAX => heap,
            _ => return release(span, block),
        };
        poison(block, room);
        let ring = &(*heap).ring;
        let next = (ring.next.get() + 1) % QUARANTINE;
        ring.next.set(next);
        let left = ring.blocks[next].replace(block as usize);
        if left != 0 {
            let first = span_at(offset_of(left).unwrap_or(0));
            let span =
                if (*first).kind() == kind::PART { first.sub((*first).fixed.back.get() as usize) } else { first };
            leave_quarantine(span, left as *mut u8);
        }
    }
}

/// The first words of a block, and some more where it is long enough.
#[inline(always)]
unsafe fn poison(block: *mut u8, room: usize) {
    // SAFETY: every block here has at least 32 bytes, and those of 96 have 72 before their trailer.
    unsafe {
        block.cast::<[u64; 1]>().write([DEAD; 1]);
        if room >= 96 {
            block.add(8).cast::<[u64; 8]>().write([DEAD; 8]);
        }
    }
}

#[inline(always)]
unsafe fn leave_quarantine(span: *mut Span, block: *mut u8) {
    // SAFETY: a block in quarantine is free and nobody's; its span cannot have gone.
    unsafe {
        let room = (*span).fixed.size.get() as usize;
        let end = &*trailer(block as usize, room);
        let mut changed =
            *block.cast::<u64>() ^ DEAD | (end.seal ^ seal(block as usize, end.size, end.site) ^ FREE_SEAL);
        if room >= 96 {
            for word in &*block.add(8).cast::<[u64; 8]>() {
                changed |= word ^ DEAD;
            }
        }
        if changed != 0 {
            misuse::report(Misuse::WriteAfterFree, block as usize, "quarantine");
        }
        free_checked(tls::empty(), span, block);
    }
}

/// Lets all blocks of a heap out of quarantine.
///
/// # Safety
/// The caller's thread has claimed the heap.
pub unsafe fn empty_quarantine(ring: &Ring) {
    for slot in &ring.blocks {
        let left = slot.replace(0);
        if let (true, Some(offset)) = (left != 0, offset_of(left)) {
            // SAFETY: as in `free`.
            unsafe {
                let first = span_at(offset);
                let span =
                    if (*first).kind() == kind::PART { first.sub((*first).fixed.back.get() as usize) } else { first };
                leave_quarantine(span, left as *mut u8);
            }
        }
    }
}

unsafe fn release(span: *mut Span, block: *mut u8) {
    // SAFETY: examined by the caller.
    unsafe {
        if (*span).kind() == kind::LARGE {
            free_large(span, block);
        } else {
            free_checked(tls::empty(), span, block);
        }
    }
}

/// # Safety
/// As the front door's; the block is ours.
pub unsafe fn usable_size(block: *mut u8) -> usize {
    // SAFETY: as for this function.
    unsafe { examine(block, "malloc_usable_size").size }
}

/// # Safety
/// As the front door's; the block is ours.
pub unsafe fn realloc(block: *mut u8, size: usize, limited: bool, at: Site) -> *mut u8 {
    // SAFETY: as for this function; both blocks hold what is copied.
    unsafe {
        let had = examine(block, "realloc").size;
        if size == 0 {
            free(block);
            return null_mut();
        }
        let moved = match start::enter() {
            Entry::Watched(heap) => malloc(heap, size, limited, at),
            Entry::Late => start::with_late_heap(|heap| malloc(heap, size, limited, at)),
            _ => next::malloc(size),
        };
        if !moved.is_null() {
            copy_nonoverlapping(block, moved, had.min(size));
            free(block);
        }
        moved
    }
}

/// Lists the live blocks by call site, or by class where it is not known. For the end of the program.
pub fn report_leaks() {
    const SITES: usize = 64;
    let mut sites = [(0u64, 0usize, 0u64, 0usize); SITES];
    let mut used = 0;
    let (mut blocks, mut bytes, mut unlisted) = (0usize, 0usize, 0usize);
    let slices = PAGES.with(|pages| pages.frontier());
    let mut each = |at: usize, room: usize| {
        // SAFETY: a block of a span in use; one that was never handed out has no valid seal.
        let end = unsafe { &*trailer(at, room) };
        if end.seal != seal(at, end.size, end.site) ^ LIVE_SEAL {
            return;
        }
        blocks += 1;
        bytes += end.size;
        let class = if end.site == 0 { room } else { 0 };
        match sites[..used].iter_mut().find(|s| s.0 == end.site && s.1 == class) {
            Some(entry) => {
                entry.2 += 1;
                entry.3 += end.size;
            }
            None if used < SITES => {
                sites[used] = (end.site, class, 1, end.size);
                used += 1;
            }
            None => unlisted += 1,
        }
    };
    for slice in 0..slices {
        // SAFETY: descriptors up to the frontier are in use or free; their kind says which.
        let span = unsafe { &*span_of_slice(slice) };
        let base = span.fixed.base.get();
        match span.kind() {
            kind::BLOCKS => {
                let size = span.fixed.size.get() as usize;
                if size >= EXTRA {
                    (0..span.own.fresh.get() as usize / size).for_each(|n| each(base + n * size, size));
                }
            }
            kind::LARGE => each(base, span.fixed.bytes.get()),
            _ => {}
        }
    }
    sites[..used].sort_unstable_by_key(|site| core::cmp::Reverse(site.3));
    pool_say!("partyline: {blocks} live blocks, {bytes} bytes");
    for &(site, class, count, bytes) in &sites[..used] {
        let mut line = Line::<512>::new();
        line.put(format_args!("partyline:   {count} blocks, {bytes} bytes, "));
        if site == 0 {
            line.put(format_args!("size class {class}"));
        } else {
            // SAFETY: sealed, so it is what a caller of `_osip_malloc` passed.
            let file = unsafe { core::ffi::CStr::from_ptr((site >> 16) as *const core::ffi::c_char) };
            line.put(format_args!("{}:{}", file.to_str().unwrap_or("?"), site as u16));
        }
        line.put(format_args!("\n")).say();
    }
    if unlisted > 0 {
        pool_say!("partyline:   {unlisted} blocks at further sites");
    }
}
