//! The modes that look at every block: `checked` and `leaks`.
//!
//! A block gets a trailer in the last 8 bytes of its class, and what lies between is filled, 8 bytes of it at most:
//! ```text
//!  [ asked for ][ slack: filled ][ call site, if known ][ trailer: length of the slack, sealed ]
//! ```
//! The trailer is combined with a number computed from the address, one constant is added once the block is free, and its
//! first byte in memory is never 0. A write past the end hits the slack or the trailer and is found when the block is freed.
//! Freed blocks begin with a link as always, longer ones have some more words overwritten, and a span puts them aside until
//! [`LATER`](super::heap) others of their class have come back; a change there is a write after free, found when the block
//! would be handed out. In `checked` mode one block in [`SAMPLE`] lies in a slice of its own against an inaccessible page (see
//! `guarded.rs`), so that there even a read past the end, and any use after free, faults where it happens.

use core::ptr::{copy_nonoverlapping, null_mut};
use core::sync::atomic::{AtomicU64, Ordering};

use super::classes::{CLASS_MAX, RUN_MAX, SLICE, SMALL_MAX, TABLE, class_of};
use super::front::{block_size, checked_span, free_checked, free_large, from_heap};
use super::guarded;
use super::heap::Heap;
use super::misuse::{self, Misuse};
use super::os::{self, Line};
use super::pages::PAGES;
use super::range::{offset_of, span_at, span_of_slice};
use super::span::{Span, kind};
use super::start::{self, Entry, Mode};
use super::{marks, next, tls};

/// Where a block was asked for: the address of the file's name (48 bits) and the line (16).
pub type Site = Option<(*const core::ffi::c_char, u16)>;

const TRAILER: usize = 8;
const SITE: usize = 8;
/// The trailer, unsealed: bits 8 to 23 the slack, bit 24 that there is a call site, the rest 0, or FREED.
const SLACK_SHIFT: u32 = 8;
const SLACK_MASK: u64 = 0xffff;
const HAS_SITE: u64 = 1 << 24;
const FIELDS: u64 = SLACK_MASK << SLACK_SHIFT | HAS_SITE;
const FREED: u64 = 0x6672_6565 << 32;
/// What slack is filled with.
const FILL: u64 = 0xc5c5_c5c5_c5c5_c5c5;
const DEAD: u64 = 0xdbdb_dbdb_dbdb_dbdb;
/// From this length on words behind the first of a freed block are overwritten: so many.
const LONG: usize = 64;
const LONG_WORDS: usize = 5;
/// `PARTYLINE_POOL_SAMPLE` sets another number, 0 none.
const SAMPLE: u64 = 4096;

static SECRET: AtomicU64 = AtomicU64::new(0);
static EVERY: AtomicU64 = AtomicU64::new(0);

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

/// What a block's trailer is combined with. Odd, so the first byte in memory is none of a string's end.
#[inline(always)]
fn seal(block: usize) -> u64 {
    (block as u64 ^ SECRET.load(Ordering::Relaxed)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn pack(site: (*const core::ffi::c_char, u16)) -> u64 {
    (site.0 as u64) << 16 | u64::from(site.1)
}

/// What is asked of the pool for `size` bytes: at least two words, for a free block holds a link as well.
#[inline(always)]
fn with_trailer(size: usize) -> usize {
    (size + TRAILER).max(2 * TRAILER)
}

#[inline(always)]
unsafe fn trailer(block: usize, room: usize) -> *mut u64 {
    (block + room - TRAILER) as *mut u64
}

/// Fills the slack and writes the trailer.
#[inline(always)]
unsafe fn close(block: *mut u8, size: usize, room: usize) {
    // SAFETY: the caller's block has `room` bytes, at least `size` and a trailer.
    unsafe {
        // What of this word is not slack the trailer overwrites.
        block.add(size).cast::<u64>().write_unaligned(FILL);
        let slack = (room - TRAILER - size) as u64;
        *trailer(block as usize, room) = seal(block as usize) ^ slack << SLACK_SHIFT;
    }
}

/// What an unsealed trailer says of a block: its size. None: it is not what we wrote.
#[inline(always)]
fn size_from(plain: u64, room: usize) -> Option<usize> {
    let site = if plain & HAS_SITE != 0 { SITE } else { 0 };
    let size = room.wrapping_sub(TRAILER + site + (plain >> SLACK_SHIFT & SLACK_MASK) as usize);
    (plain & !FIELDS == 0 && size < room).then_some(size)
}

/// Whether the slack is as it was filled.
#[inline(always)]
unsafe fn slack_is_whole(block: *mut u8, size: usize, slack: usize) -> bool {
    // SAFETY: the caller's block has 8 bytes or more from `size` on.
    let changed = unsafe { block.add(size).cast::<u64>().read_unaligned() } ^ FILL;
    // The bytes that are slack, at most 8; in two steps, since none of them would be a shift by 64.
    let half = 4 * (8 - slack.min(8)) as u32;
    changed << half << half == 0
}

/// File and line of a block's call site, if its trailer says so.
///
/// # Safety
/// `block` is the beginning of a block with `room` bytes.
pub unsafe fn site(block: usize, room: usize) -> Option<(&'static [u8], u16)> {
    if room < 2 * TRAILER {
        return None;
    }
    // SAFETY: within the block; the site is followed only if the seal vouches for it, and then it is what a caller of
    // `_osip_malloc` passed: a string constant.
    unsafe {
        let plain = *trailer(block, room) ^ seal(block);
        let plain = if plain & !FIELDS == FREED { plain ^ FREED } else { plain };
        if plain & HAS_SITE == 0 || size_from(plain, room).is_none() {
            return None;
        }
        let site = *((block + room - TRAILER - SITE) as *const u64);
        Some((core::ffi::CStr::from_ptr((site >> 16) as *const core::ffi::c_char).to_bytes(), site as u16))
    }
}

/// A block with a trailer, in the modes that give every block one.
#[inline(never)]
pub extern "C" fn malloc_watched(size: usize, limited: bool) -> *mut u8 {
    let own = tls::tls().own.get();
    if !own.is_null() && size <= SMALL_MAX - TRAILER {
        // SAFETY: the thread's own heap, whose table leads to spans of it; a block of the span has the span's block size.
        unsafe {
            let left = (*own).unsampled.get();
            if left > 1 {
                let span = (*own).direct[with_trailer(size).div_ceil(8)].get();
                if let Some(block) = (*span).pop() {
                    (*own).unsampled.set(left - 1);
                    let room = (*span).fixed.size.get() as usize;
                    check_poison(block, room);
                    close(block, size, room);
                    return block;
                }
            }
        }
    }
    malloc_entry(size, limited, None)
}

#[inline(never)]
fn malloc_entry(size: usize, limited: bool, at: Site) -> *mut u8 {
    match start::enter() {
        // SAFETY: the thread's own heap.
        Entry::Heap(heap) | Entry::Watched(heap) => unsafe { malloc(heap, size, limited, at) },
        // SAFETY: the heap comes with its lock held.
        Entry::Late => start::with_late_heap(|heap| unsafe { malloc(heap, size, limited, at) }),
        Entry::Libc => next::malloc(size),
    }
}

/// A block with a trailer, from the mode in force or from the plain pool (`_osip_malloc` in every mode).
///
/// # Safety
/// `heap` is claimed by the caller.
pub unsafe fn malloc(heap: *mut Heap, size: usize, limited: bool, at: Site) -> *mut u8 {
    let Some(total) = size.checked_add(TRAILER + SITE + TRAILER) else { return null_mut() };
    let total = if at.is_some() { total - TRAILER } else { with_trailer(size) };
    // SAFETY: as for this function; a block of the pool has room for what is added.
    unsafe {
        let every = EVERY.load(Ordering::Relaxed);
        let left = (*heap).unsampled.get();
        (*heap).unsampled.set(if left > 1 {
            left - 1
        } else if every == 0 {
            u64::MAX
        } else {
            every
        });
        // A heap's very first block is none of those.
        if every != 0 && (left == 1 || every == 1) {
            if let Some(block) = guarded::malloc(size, limited) {
                return block;
            }
        }
        let found = if total <= CLASS_MAX {
            (*heap).allocate(class_of(total), limited).map(|block| {
                let room = TABLE[class_of(total)].size as usize;
                if start::watched() {
                    check_poison(block, room);
                }
                (block, room)
            })
        } else if total <= RUN_MAX {
            (*heap).allocate_run(total, limited)
        } else {
            let block = from_heap(heap, total, limited);
            match offset_of(block as usize) {
                Some(offset) => Ok((block, (*span_at(offset)).fixed.bytes.get())),
                // Null, or libc's.
                None => return block,
            }
        };
        let Ok((block, room)) = found else { return from_heap(heap, size, limited) };
        close(block, size, room);
        if let Some(site) = at {
            let slack = (room - TRAILER - SITE - size) as u64;
            block.add(size).cast::<u64>().write_unaligned(FILL);
            *block.add(room - TRAILER - SITE).cast::<u64>() = pack(site);
            *trailer(block as usize, room) = seal(block as usize) ^ (slack << SLACK_SHIFT | HAS_SITE);
        }
        block
    }
}

/// A block that remembers where it was asked for, in every mode. For `_osip_malloc`.
pub fn malloc_at(size: usize, at: Site) -> *mut u8 {
    malloc_entry(size, true, at)
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

/// The fast way: the room of a sound block in a span of its class, and its size. Where the trailer has the right seal, that
/// is a block, and not a free one, so nothing else has to be looked at.
///
/// # Safety
/// `span` describes the slice that the block lies in.
#[inline(always)]
unsafe fn glance(span: *mut Span, block: *mut u8) -> Option<(usize, usize)> {
    // SAFETY: as for this function; what is read lies in a slice that is in use.
    unsafe {
        let room = (*span).fixed.size.get() as usize;
        if (*span).kind() != kind::BLOCKS || (block as usize & (SLICE - 1)) + room > SLICE {
            return None;
        }
        let plain = *trailer(block as usize, room) ^ seal(block as usize);
        let size = size_from(plain, room)?;
        slack_is_whole(block, size, (plain >> SLACK_SHIFT & SLACK_MASK) as usize).then_some((room, size))
    }
}

/// Checks a block that is to be freed or resized.
///
/// # Safety
/// The block lies in the range.
unsafe fn examine(block: *mut u8, verb: &'static str) -> Known {
    let span = span_at(offset_of(block as usize).unwrap_or(0));
    // SAFETY: as for this function.
    unsafe {
        match glance(span, block) {
            Some((room, size)) => Known { span, room, size },
            None => examine_closely(span, block, verb),
        }
    }
}

/// The same for all that is not a sound block in a span of its class.
#[cold]
#[inline(never)]
unsafe fn examine_closely(first: *mut Span, block: *mut u8, verb: &'static str) -> Known {
    let at = block as usize;
    // SAFETY: as for `examine`.
    unsafe {
        if (*first).kind() == kind::GUARDED {
            return Known { span: first, room: 0, size: guarded::size(first, at, verb) };
        }
        let span = match checked_span(first, block) {
            Ok(span) => span,
            Err(misuse) => misuse::report(misuse, at, verb),
        };
        let room = block_size(span, block);
        if room < 2 * TRAILER {
            misuse::report(Misuse::NotABlock, at, verb);
        }
        let plain = *trailer(at, room) ^ seal(at);
        if plain & !FIELDS == FREED {
            misuse::report(Misuse::DoubleFree, at, verb);
        }
        match size_from(plain, room) {
            Some(size) if slack_is_whole(block, size, (plain >> SLACK_SHIFT & SLACK_MASK) as usize) => {
                Known { span, room, size }
            }
            _ => misuse::report(Misuse::Overflow, at, verb),
        }
    }
}

/// # Safety
/// As the front door's `free`; `span` describes the slice that the block lies in.
#[inline(never)]
pub unsafe extern "C" fn free(span: *mut Span, block: *mut u8) {
    // SAFETY: looked at before anything is done with it; the thread's own heap.
    unsafe {
        let own = tls::tls().own.get();
        match glance(span, block) {
            Some((room, _)) if !own.is_null() => {
                *trailer(block as usize, room) ^= FREED;
                poison(block, room);
                if (*span).fixed.owner.load(Ordering::Relaxed) != own {
                    (*own).send(span, block);
                } else if (*span).push_later(block) == (*span).own.trigger.get() {
                    (*own).on_trigger(span);
                }
            }
            _ => free_closely(span, block),
        }
    }
}

#[cold]
#[inline(never)]
unsafe extern "C" fn free_closely(span: *mut Span, block: *mut u8) {
    // SAFETY: as for `free`.
    unsafe {
        let Known { span, room, .. } = examine_closely(span, block, "free");
        if room == 0 {
            return guarded::free(span);
        }
        *trailer(block as usize, room) ^= FREED;
        if (*span).kind() == kind::BLOCKS {
            poison(block, room);
        }
        release(span, block);
    }
}

/// What a long block has behind its first word while it is free.
///
/// # Safety
/// A block of `room` bytes that is ours.
#[inline(always)]
pub unsafe fn poison(block: *mut u8, room: usize) {
    if room >= LONG {
        // SAFETY: as for this function; before site and trailer.
        unsafe { block.add(8).cast::<[u64; LONG_WORDS]>().write_unaligned([DEAD; LONG_WORDS]) };
    }
}

/// # Safety
/// As [`poison`]; the block was free until now.
#[inline(always)]
unsafe fn check_poison(block: *mut u8, room: usize) {
    if room >= LONG {
        // SAFETY: as for this function.
        let words = unsafe { block.add(8).cast::<[u64; LONG_WORDS]>().read_unaligned() };
        if words.iter().fold(0, |changed, word| changed | (word ^ DEAD)) != 0 {
            misuse::corrupted_block(block as usize);
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
            super::free(block);
            return null_mut();
        }
        let moved = match start::enter() {
            Entry::Watched(heap) => malloc(heap, size, limited, at),
            Entry::Late => start::with_late_heap(|heap| malloc(heap, size, limited, at)),
            _ => next::malloc(size),
        };
        if !moved.is_null() {
            copy_nonoverlapping(block, moved, had.min(size));
            super::free(block);
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
        let plain = unsafe { *trailer(at, room) } ^ seal(at);
        let Some(size) = size_from(plain, room) else { return };
        let site = if plain & HAS_SITE == 0 {
            0
        } else {
            // SAFETY: the trailer says that there is one before it.
            unsafe { *((at + room - TRAILER - SITE) as *const u64) }
        };
        blocks += 1;
        bytes += size;
        let class = if site == 0 { room } else { 0 };
        match sites[..used].iter_mut().find(|s| s.0 == site && s.1 == class) {
            Some(entry) => {
                entry.2 += 1;
                entry.3 += size;
            }
            None if used < SITES => {
                sites[used] = (site, class, 1, size);
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
                if size >= 2 * TRAILER {
                    let fresh = span.fixed.fresh.load(Ordering::Relaxed) as usize;
                    (0..fresh / size).for_each(|n| each(base + n * size, size));
                }
            }
            // SAFETY: the kind says so.
            kind::REGION => unsafe { marks::each_block(span, &mut each) },
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
