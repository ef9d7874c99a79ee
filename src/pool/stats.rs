//! What the pool has done and holds. Counted where it happens by plain adds of the owning thread; put together here.
//!
//! Every reading adds up: `allocated = freed + live`, per class and in total. Frees are read before allocations, so a
//! reading taken while other threads work never has more of the former.

use core::sync::atomic::Ordering;

use super::classes::{CLASSES, COUNTED, SLICE_SHIFT, size_of};
use super::heap;
use super::pages::{LARGE_CLASS, PAGES, USED};
use super::range::span_of_slice;
use super::span::kind;

/// Counts of one class.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct ClassStats {
    /// Block size, for runs the longest that is counted here; 0 for large blocks.
    pub size: u64,
    pub allocated: u64,
    pub freed: u64,
    pub live: u64,
    /// Of `freed`: by another thread than the one that allocates from the block's span.
    pub cross_thread: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Stats {
    pub classes: [ClassStats; COUNTED + 1],
    pub allocated: u64,
    pub freed: u64,
    pub live: u64,
    pub live_bytes: u64,
    pub cross_thread: u64,
    /// Blocks of libc that were passed on.
    pub foreign: u64,
    /// Calls of realloc.
    pub reallocs: u64,
    /// Of `allocated` and `freed`: by Rust code of this library.
    pub rust_allocated: u64,
    pub rust_freed: u64,
    /// Bytes in spans and blocks in use, with memory behind them, now and at most (then with what was idle in heaps).
    pub used_bytes: u64,
    pub peak_bytes: u64,
    /// Bytes idle with memory behind them, in the page heap and in the heaps' regions.
    pub idle_bytes: u64,
    /// Bytes that came from the system and went back to it, since the start.
    pub from_os: u64,
    pub to_os: u64,
    pub limit: u64,
    pub heaps: u64,
}

pub fn read() -> Stats {
    let mut stats = Stats {
        classes: [ClassStats::default(); COUNTED + 1],
        allocated: 0,
        freed: 0,
        live: 0,
        live_bytes: 0,
        cross_thread: 0,
        foreign: 0,
        reallocs: 0,
        rust_allocated: 0,
        rust_freed: 0,
        used_bytes: 0,
        peak_bytes: 0,
        idle_bytes: 0,
        from_os: 0,
        to_os: 0,
        limit: 0,
        heaps: 0,
    };
    for (class, entry) in stats.classes.iter_mut().enumerate().take(COUNTED) {
        entry.size = size_of(class) as u64;
    }
    let (mut back, mut again, mut idle, mut run_bytes) = (0, 0, 0, 0u64);
    PAGES.with(|pages| {
        // Spans come and go under this lock only.
        heap::for_each(|heap| {
            stats.heaps += 1;
            stats.foreign += heap.foreign.load(Ordering::Relaxed);
            back += heap.runs.purged.load(Ordering::Relaxed);
            again += heap.runs.filled.load(Ordering::Relaxed);
            idle += heap.runs.dirty.load(Ordering::Relaxed) as u64 * 4096;
            stats.reallocs += heap.reallocs.load(Ordering::Relaxed);
            stats.rust_allocated += heap.rust_allocs.load(Ordering::Relaxed);
            stats.rust_freed += heap.rust_frees.load(Ordering::Relaxed);
            for (entry, crossed) in stats.classes.iter_mut().zip(&heap.cross) {
                entry.cross_thread += crossed.load(Ordering::Acquire);
            }
        });
        heap::for_each(|heap| {
            let returned = heap.runs.bytes_back.load(Ordering::Acquire) + heap.cross_run_bytes.load(Ordering::Acquire);
            run_bytes = run_bytes.wrapping_sub(returned);
            for (entry, counts) in stats.classes[CLASSES..COUNTED].iter_mut().zip(&heap.runs.counts) {
                let from_remote = counts.from_remote.load(Ordering::Acquire);
                entry.freed += counts.frees.load(Ordering::Acquire).saturating_sub(from_remote);
            }
        });
        let in_use = |body: &mut dyn FnMut(&super::span::Span)| {
            for slice in 0..pages.frontier() {
                // SAFETY: descriptors up to the frontier exist.
                let span = unsafe { &*span_of_slice(slice) };
                if span.kind() == kind::BLOCKS {
                    body(span);
                }
            }
        };
        in_use(&mut |span| {
            // The owner adds to `frees` first: a reading in between has too few frees, never too many.
            let from_remote = span.own.from_remote.load(Ordering::Acquire);
            let frees = span.own.frees.load(Ordering::Acquire);
            stats.classes[span.class()].freed += frees.saturating_sub(from_remote);
        });
        for (entry, gone) in stats.classes.iter_mut().zip(&pages.gone) {
            entry.freed += gone.frees - gone.from_remote;
            entry.allocated += gone.allocs;
        }
        for entry in &mut stats.classes {
            entry.freed += entry.cross_thread;
        }
        stats.classes[LARGE_CLASS].allocated = pages.large.allocs;
        stats.classes[LARGE_CLASS].freed = pages.large.frees;
        heap::for_each(|heap| {
            run_bytes = run_bytes.wrapping_add(heap.runs.bytes_out.load(Ordering::Acquire));
            for (entry, counts) in stats.classes[CLASSES..COUNTED].iter_mut().zip(&heap.runs.counts) {
                entry.allocated += counts.allocs.load(Ordering::Acquire);
            }
        });
        in_use(&mut |span| stats.classes[span.class()].allocated += span.own.allocs.load(Ordering::Acquire));
        stats.used_bytes = (USED.now() as u64).saturating_sub(idle);
        stats.peak_bytes = USED.peak() as u64;
        stats.idle_bytes = (pages.dirty << SLICE_SHIFT) as u64 + idle;
        stats.from_os = pages.bytes_from_os + again;
        stats.to_os = pages.bytes_to_os + back;
        stats.limit = pages.limit as u64;
        stats.live_bytes = pages.large_bytes + run_bytes;
    });
    debug_assert_eq!(stats.classes[LARGE_CLASS].size, 0);
    for (class, entry) in stats.classes.iter_mut().enumerate() {
        entry.live = entry.allocated.saturating_sub(entry.freed);
        entry.freed = entry.allocated - entry.live;
        stats.allocated += entry.allocated;
        stats.freed += entry.freed;
        stats.live += entry.live;
        if class < CLASSES {
            stats.live_bytes += entry.live * entry.size;
        }
        stats.cross_thread += entry.cross_thread;
    }
    stats
}

/// Sets the limit in bytes; 0 takes it away. What is in use already stays.
pub fn set_limit(bytes: usize) {
    PAGES.with(|pages| pages.limit = if bytes == 0 { usize::MAX } else { bytes });
}
