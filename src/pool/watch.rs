//! The modes that look at every block: `checked` and `leaks`.
//!
//! A block gets a trailer in the last 24 bytes of its class, behind the bytes that were asked for and a filling:
//! ```text
//!  [ asked for ][ filling ][ size ][ call site ][ seal ]
//! ```
//! The seal is computed from address, size and site, with one constant while the block lives and another once it is
//! free. A write past the end hits the filling or the seal and is found when the block is freed. In `checked` mode freed
//! blocks are overwritten at their beginning and wait in a quarantine; a change there is a write after free.

use core::ptr::{copy_nonoverlapping, null_mut, write_bytes};
use core::sync::atomic::{AtomicU64, Ordering};

use super::front::{checked_span, free_checked, free_large, from_heap};
use super::heap::Heap;
use super::misuse::{self, Misuse};
use super::os::{self, Line, Lock};
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
const FILL: u8 = 0xfb;
const DEAD: u8 = 0xdb;
/// Bytes of a freed block that are overwritten and looked at again.
const POISON: usize = 64;
const LIVE_SEAL: u64 = 0x6c69_7665_626c_6f63;
const FREE_SEAL: u64 = 0x6672_6565_626c_6f63;
/// Blocks that wait before they are used again, and the largest that do.
const QUARANTINE: usize = 256;
const QUARANTINE_MAX: usize = 4096;

static SECRET: AtomicU64 = AtomicU64::new(0);

/// One ring for all threads: checked mode is for finding errors, and a block that waits among those of other threads
/// waits longer.
struct Ring {
    lock: Lock,
    blocks: core::cell::UnsafeCell<([usize; QUARANTINE], usize)>,
}

// SAFETY: `blocks` is touched with `lock` held only.
unsafe impl Sync for Ring {}

static RING: Ring = Ring { lock: Lock::new(), blocks: core::cell::UnsafeCell::new(([0; QUARANTINE], 0)) };

pub fn init() {
    SECRET.store(os::seed(), Ordering::Relaxed);
}

pub fn lock_for_fork() {
    RING.lock.lock();
}

pub fn unlock_after_fork() {
    RING.lock.unlock();
}

fn seal(block: usize, size: usize, site: u64, kind: u64) -> u64 {
    ((block as u64).rotate_left(24) ^ size as u64 ^ site ^ SECRET.load(Ordering::Relaxed) ^ kind)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn pack(site: Site) -> u64 {
    site.map_or(0, |(file, line)| (file as u64) << 16 | u64::from(line))
}

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
        let sealed = [LIVE_SEAL, FREE_SEAL].iter().any(|&kind| seal(block, end.size, end.site, kind) == end.seal);
        if !sealed || end.site == 0 {
            return None;
        }
        let file = (end.site >> 16) as *const core::ffi::c_char;
        Some((core::ffi::CStr::from_ptr(file).to_bytes(), end.site as u16))
    }
}

/// A block with a trailer, from the mode in force or from the plain pool (`_osip_malloc` in every mode).
///
/// `heap` is claimed by the caller.
pub fn malloc(heap: *mut Heap, size: usize, limited: bool, at: Site) -> *mut u8 {
    let Some(total) = size.checked_add(TRAILER) else { return null_mut() };
    let block = from_heap(heap, total, limited);
    seal_block(block, size, at);
    block
}

/// Writes filling and trailer into a block that has room for them. A block that libc gave is left as it is.
pub fn seal_block(block: *mut u8, size: usize, at: Site) {
    let Some(offset) = offset_of(block as usize) else { return };
    // SAFETY: a block of ours, just handed out, with room for the trailer.
    unsafe {
        let room = room_of(span_at(offset));
        let fill = room - TRAILER - size;
        write_bytes(block.add(size), FILL, fill.min(POISON));
        let end = trailer(block as usize, room);
        let site = pack(at);
        *end = Trailer { size, site, seal: seal(block as usize, size, site, LIVE_SEAL) };
    }
}

/// A block that remembers where it was asked for, in every mode. For `_osip_malloc`.
pub fn malloc_at(size: usize, at: Site) -> *mut u8 {
    match start::enter() {
        Entry::Heap(heap) | Entry::Watched(heap) => malloc(heap, size, true, at),
        Entry::Late => start::with_late_heap(|heap| malloc(heap, size, true, at)),
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

unsafe fn room_of(span: *mut Span) -> usize {
    // SAFETY: a descriptor of the range.
    unsafe {
        let span = if (*span).kind() == kind::PART { span.sub((*span).fixed.back.get() as usize) } else { span };
        if (*span).kind() == kind::LARGE { (*span).fixed.bytes.get() } else { (*span).fixed.size.get() as usize }
    }
}

/// Checks a block that is to be freed or resized, and returns its span, its room and the size asked for.
unsafe fn examine(block: *mut u8, verb: &str) -> (*mut Span, usize, usize) {
    let at = block as usize;
    // SAFETY: in the range (the callers' business); what is read lies in a block of the pool.
    unsafe {
        let span = match checked_span(span_at(at.wrapping_sub(super::range::address_of_slice(0))), block) {
            Ok(span) => span,
            Err(misuse) => misuse::report(misuse, at, verb),
        };
        let room = room_of(span);
        if room < TRAILER {
            misuse::report(Misuse::NotABlock, at, verb);
        }
        let end = &*trailer(at, room);
        if end.seal == seal(at, end.size, end.site, FREE_SEAL) {
            misuse::report(Misuse::DoubleFree, at, verb);
        }
        let intact = end.seal == seal(at, end.size, end.site, LIVE_SEAL) && {
            let fill = (room - TRAILER - end.size).min(POISON);
            core::slice::from_raw_parts(block.add(end.size), fill).iter().all(|&byte| byte == FILL)
        };
        if !intact {
            misuse::report(Misuse::Overflow, at, verb);
        }
        (span, room, end.size)
    }
}

/// # Safety
/// As the front door's `free`; the block is ours.
pub unsafe fn free(block: *mut u8) {
    // SAFETY: examined before anything is done with it.
    unsafe {
        let (span, room, size) = examine(block, "free");
        let end = trailer(block as usize, room);
        (*end).seal = seal(block as usize, size, (*end).site, FREE_SEAL);
        if start::mode() != Mode::Checked || room > QUARANTINE_MAX {
            return release(span, block);
        }
        write_bytes(block, DEAD, size.min(POISON));
        let ring = &RING;
        let left = ring.lock.with(|| {
            let (blocks, next) = &mut *ring.blocks.get();
            *next = (*next + 1) % QUARANTINE;
            core::mem::replace(&mut blocks[*next], block as usize)
        });
        if left != 0 {
            let span = span_at(left - super::range::address_of_slice(0));
            let span = if (*span).kind() == kind::PART { span.sub((*span).fixed.back.get() as usize) } else { span };
            let end = &*trailer(left, room_of(span));
            let dead = core::slice::from_raw_parts(left as *const u8, end.size.min(POISON));
            if end.seal != seal(left, end.size, end.site, FREE_SEAL) || dead.iter().any(|&byte| byte != DEAD) {
                misuse::report(Misuse::WriteAfterFree, left, "quarantine");
            }
            release(span, left as *mut u8);
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
    unsafe { examine(block, "malloc_usable_size").2 }
}

/// # Safety
/// As the front door's; the block is ours.
pub unsafe fn realloc(block: *mut u8, size: usize, limited: bool, at: Site) -> *mut u8 {
    // SAFETY: as for this function; both blocks hold what is copied.
    unsafe {
        let (_, _, had) = examine(block, "realloc");
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
        if end.seal != seal(at, end.size, end.site, LIVE_SEAL) {
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
                if size > TRAILER {
                    (0..span.own.fresh.get() as usize / size).for_each(|n| each(base + n * size, size));
                }
            }
            kind::LARGE => each(base, span.fixed.bytes.get()),
            _ => {}
        }
    }
    sites[..used].sort_unstable_by(|a, b| b.3.cmp(&a.3));
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
