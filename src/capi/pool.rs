//! The memory pool for C programs that call it by name. The five functions of a block's life are not wrapped in the entry
//! guard: nothing in the pool panics, and they have libc's way of saying no.

use std::ffi::{c_char, c_int, c_void};
use std::fmt::Write as _;

use super::{PARTYLINE_OK, copy_out};
use crate::ffi::{self, entry};
use crate::pool::{self, Stats};

/// Memory from the pool, at least `size` bytes, aligned to 16 (to 8 where `size` is 8 or less). Not zeroed. NULL with
/// errno ENOMEM when there is none, or past the limit. Give it back with partyline_free(), osip_free() or, where
/// libpartyline.so is loaded, free(), from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn partyline_malloc(size: usize) -> *mut c_void {
    pool::malloc(size).cast()
}

/// The same for `count` elements of `size` bytes, zeroed. NULL when the product overflows.
#[unsafe(no_mangle)]
pub extern "C" fn partyline_calloc(count: usize, size: usize) -> *mut c_void {
    pool::calloc(count, size).cast()
}

/// Changes the size of a block of the pool or of libc; it may move. On NULL the old block is as it was. A NULL block
/// gives a new one; size 0 frees the block and gives NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_realloc(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the room's contract.
    unsafe { pool::realloc(block.cast(), size).cast() }
}

/// Frees a block of the pool; one of libc is passed on. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_free(block: *mut c_void) {
    // SAFETY: the room's contract.
    unsafe { pool::free(block.cast()) }
}

/// Bytes that a block can hold, at least what was asked for; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the room's contract.
    unsafe { pool::usable_size(block.cast()) }
}

/// What the pool has done and holds, over all threads. `allocated` = `freed` + `live` in every reading. Set `size`
/// before the call; a later library may know a longer struct and fills only what `size` covers.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct partyline_pool_stats {
    /// sizeof(partyline_pool_stats), set by the caller.
    pub size: usize,
    /// 1, set by the library.
    pub version: u32,
    /// Size classes, one for large blocks included.
    pub classes: u32,
    /// Blocks handed out since the start, those of them that came back, and those that are out.
    pub allocated: u64,
    pub freed: u64,
    pub live: u64,
    /// Bytes in live blocks, rounded up to their size classes (1 KiB above 8 KiB, 64 KiB above 256 KiB).
    pub live_bytes: u64,
    /// Of `freed`: by another thread than the one that had allocated.
    pub cross_thread_frees: u64,
    /// Blocks of libc that came to osip_free() or partyline_free() and were passed on.
    pub foreign_frees: u64,
    /// Calls of realloc.
    pub reallocs: u64,
    /// Bytes that the pool has in use with memory behind them, rounded up to 64 KiB per size class up to 8 KiB and thread:
    /// now, and at most so far.
    pub used_bytes: u64,
    pub peak_bytes: u64,
    /// Bytes that lie idle with memory behind them; partyline_pool_trim() gives them back.
    pub idle_bytes: u64,
    /// Bytes taken from the system and given back to it since the start.
    pub from_os: u64,
    pub to_os: u64,
    /// The limit in bytes; UINT64_MAX when there is none.
    pub limit: u64,
    /// Heaps made: the largest number of threads that used the pool at a time.
    pub heaps: u64,
}

/// Fills `stats`, whose `size` the caller has set. PARTYLINE_EINVAL: a size smaller than the first three fields.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_pool_stats_get(stats: *mut partyline_pool_stats) -> c_int {
    entry("partyline_pool_stats_get", || {
        if stats.is_null() {
            return Err(ffi::Error::invalid("stats is NULL"));
        }
        // SAFETY: not NULL, and `size` is set by the caller.
        let size = unsafe { (*stats).size };
        let least = std::mem::offset_of!(partyline_pool_stats, allocated);
        if size < least || size > 65_536 {
            return Err(ffi::Error::invalid(format!("stats.size is {size}: set it to sizeof(partyline_pool_stats)")));
        }
        let s = pool::stats::read();
        let filled = partyline_pool_stats {
            size: size.min(size_of::<partyline_pool_stats>()),
            version: 1,
            classes: s.classes.len() as u32,
            allocated: s.allocated,
            freed: s.freed,
            live: s.live,
            live_bytes: s.live_bytes,
            cross_thread_frees: s.cross_thread,
            foreign_frees: s.foreign,
            reallocs: s.reallocs,
            used_bytes: s.used_bytes,
            peak_bytes: s.peak_bytes,
            idle_bytes: s.idle_bytes,
            from_os: s.from_os,
            to_os: s.to_os,
            limit: s.limit,
            heaps: s.heaps,
        };
        // SAFETY: the caller's struct has `size` bytes, and no more than that and our own struct's size are copied.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), stats.cast::<u8>(), filled.size);
        }
        Ok(PARTYLINE_OK)
    })
}

/// The same, with a line per size class that was used, as text for a person. Writes the text and a NUL into `buffer`;
/// `length` (may be NULL) gets its length, or on PARTYLINE_ETOOSMALL the capacity that is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_pool_stats_text(buffer: *mut c_char, capacity: usize, length: *mut usize) -> c_int {
    entry("partyline_pool_stats_text", || {
        let text = text(&pool::stats::read());
        // SAFETY: the room's contract.
        unsafe { copy_out(text.as_bytes(), buffer, capacity, length) }
    })
}

/// The same as a JSON object.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_pool_stats_json(buffer: *mut c_char, capacity: usize, length: *mut usize) -> c_int {
    entry("partyline_pool_stats_json", || {
        let text = json(&pool::stats::read());
        // SAFETY: the room's contract.
        unsafe { copy_out(text.as_bytes(), buffer, capacity, length) }
    })
}

/// Gives what the calling thread and threads that have exited hold unused, and all idle memory, back to the system.
#[unsafe(no_mangle)]
pub extern "C" fn partyline_pool_trim() -> c_int {
    entry("partyline_pool_trim", || {
        pool::trim();
        Ok(PARTYLINE_OK)
    })
}

/// Sets the most that the pool may have in use, in bytes (spans, regions and large blocks as a whole); 0 takes the limit
/// away. Past it osip_malloc() and partyline_malloc() give NULL; what is in use already stays. The library's own memory is not bound.
#[unsafe(no_mangle)]
pub extern "C" fn partyline_pool_set_limit(bytes: usize) -> c_int {
    entry("partyline_pool_set_limit", || {
        pool::set_limit(bytes);
        Ok(PARTYLINE_OK)
    })
}

fn named(s: &Stats) -> [(&'static str, u64); 14] {
    [
        ("allocated", s.allocated),
        ("freed", s.freed),
        ("live", s.live),
        ("live_bytes", s.live_bytes),
        ("cross_thread_frees", s.cross_thread),
        ("foreign_frees", s.foreign),
        ("reallocs", s.reallocs),
        ("used_bytes", s.used_bytes),
        ("peak_bytes", s.peak_bytes),
        ("idle_bytes", s.idle_bytes),
        ("from_os", s.from_os),
        ("to_os", s.to_os),
        ("limit", s.limit),
        ("heaps", s.heaps),
    ]
}

// Writing into a String cannot fail, hence the ignored results.
fn text(s: &Stats) -> String {
    let mut out = String::new();
    for (name, value) in named(s) {
        let _ = writeln!(out, "{name:<20} {value}");
    }
    let _ = writeln!(out, "{:>8} {:>14} {:>14} {:>12} {:>14}", "class", "allocated", "freed", "live", "cross-thread");
    for class in s.classes.iter().filter(|class| class.allocated > 0) {
        let size = if class.size == 0 { "large".to_owned() } else { class.size.to_string() };
        let _ = writeln!(
            out,
            "{size:>8} {:>14} {:>14} {:>12} {:>14}",
            class.allocated, class.freed, class.live, class.cross_thread
        );
    }
    out
}

fn json(s: &Stats) -> String {
    let mut out = String::from("{\"version\":1");
    for (name, value) in named(s) {
        let _ = write!(out, ",\"{name}\":{value}");
    }
    out.push_str(",\"classes\":[");
    for (i, class) in s.classes.iter().filter(|class| class.allocated > 0).enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(
            out,
            "{comma}{{\"size\":{},\"allocated\":{},\"freed\":{},\"live\":{},\"cross_thread_frees\":{}}}",
            class.size, class.allocated, class.freed, class.live, class.cross_thread
        );
    }
    out.push_str("]}");
    out
}
