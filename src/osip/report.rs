//! `PARTYLINE_REPORT=1`: at exit, what was taken over and how often it was called. Each part of this room adds its
//! lines with [`add`]; the pool's own come first.

use core::fmt::Write;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::pool::{os, start, stats, watch};

/// Writes some lines, each of which begins with `partyline: ` and ends with a newline. Runs at exit, when other threads
/// may still be running: it must not block.
pub type Section = fn(&mut dyn Write);

const SECTIONS: usize = 16;
static ADDED: [AtomicUsize; SECTIONS] = [const { AtomicUsize::new(0) }; SECTIONS];

/// Adds a section; the same function is added once. False where the table is full.
pub fn add(section: Section) -> bool {
    let value = section as usize;
    for slot in &ADDED {
        match slot.compare_exchange(0, value, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(known) if known == value => return true,
            Err(_) => {}
        }
    }
    false
}

/// Called at exit; prints nothing unless it was asked to.
pub fn print() {
    if start::mode() == start::Mode::Leaks {
        watch::report_leaks();
    }
    if os::env(c"PARTYLINE_REPORT").is_none_or(|value| value == b"0" || value.is_empty()) {
        return;
    }
    let mut text = os::Line::<4096>::new();
    pool_lines(&mut text);
    text.say();
    for slot in &ADDED {
        let value = slot.load(Ordering::Acquire);
        if value != 0 {
            // SAFETY: `add` stores nothing but functions of this type.
            let section = unsafe { core::mem::transmute::<usize, Section>(value) };
            let mut text = os::Line::<4096>::new();
            section(&mut text);
            text.say();
        }
    }
}

fn pool_lines(out: &mut dyn Write) {
    let stats = stats::read();
    let osip =
        if super::memory::installed() { "given to osip2 (osip_set_allocators)" } else { "no osip2 to give it to" };
    #[cfg(feature = "interpose-libc")]
    let free = if super::interpose::on() { ", free realloc reallocarray malloc_usable_size taken over" } else { "" };
    #[cfg(not(feature = "interpose-libc"))]
    let free = "";
    // Writing cannot fail: what does not fit is cut.
    let _ = writeln!(out, "partyline: pool: mode {:?}, {osip}{free}", start::mode());
    let _ = writeln!(
        out,
        "partyline: pool: osip_malloc {} osip_realloc {} osip_free {} calls, {} blocks passed on to libc",
        stats.allocated - stats.rust_allocated,
        stats.reallocs,
        stats.freed.saturating_sub(stats.rust_freed),
        stats.foreign
    );
    let _ = writeln!(
        out,
        "partyline: pool: allocated {} freed {} live {} ({} bytes), cross-thread frees {}, heaps {}",
        stats.allocated, stats.freed, stats.live, stats.live_bytes, stats.cross_thread, stats.heaps
    );
    let _ = writeln!(
        out,
        "partyline: pool: in use {} peak {} idle {} bytes, from the system {} back {}",
        stats.used_bytes, stats.peak_bytes, stats.idle_bytes, stats.from_os, stats.to_os
    );
}
