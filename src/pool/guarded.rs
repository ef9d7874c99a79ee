//! Sampled blocks of `checked` mode: each in a slice of its own, its end against a page that cannot be touched.
//!
//! ```text
//!  base ......... block ── size ──┤ guard page ├ ......... base + slice
//! ```
//! The block ends where the guard page begins, but for what alignment takes. A freed slice is made inaccessible as a whole
//! and waits among [`WAITING`] others, so that a use after free faults as well. The fault is the report: a debugger or a
//! core file shows the access itself.

use core::cell::UnsafeCell;

use super::classes::SLICE;
use super::misuse::{self, Misuse};
use super::os::{self, Lock};
use super::pages::PAGES;
use super::range::{address_of_slice, slice_of};
use super::span::{Span, kind};
use super::sync::Ordering;

const PAGE: usize = 4096;
const FILL: u8 = 0xfb;
const MAX: usize = SLICE - 2 * PAGE;
const WAITING: usize = 16;
/// Every guarded block splits a mapping; the system allows about 65,000 of those to a process.
const LIVE_MAX: usize = 1024;

struct State {
    live: usize,
    waiting: [usize; WAITING],
    next: usize,
}

struct Guarded {
    lock: Lock,
    state: UnsafeCell<State>,
}

// SAFETY: `state` is touched with `lock` held only.
unsafe impl Sync for Guarded {}

static GUARDED: Guarded =
    Guarded { lock: Lock::new(), state: UnsafeCell::new(State { live: 0, waiting: [0; WAITING], next: 0 }) };

fn with<R>(body: impl FnOnce(&mut State) -> R) -> R {
    // SAFETY: the lock makes this the only reference.
    GUARDED.lock.with(|| body(unsafe { &mut *GUARDED.state.get() }))
}

pub fn lock_for_fork() {
    GUARDED.lock.lock();
}

pub fn unlock_after_fork() {
    GUARDED.lock.unlock();
}

/// A guarded block, where its size and the number of those there are allow it.
pub fn malloc(size: usize, limited: bool) -> Option<*mut u8> {
    if size > MAX
        || !with(|state| {
            state.live < LIVE_MAX && {
                state.live += 1;
                true
            }
        })
    {
        return None;
    }
    let Ok((span, _)) = PAGES.with(|pages| pages.take(1, limited)) else {
        with(|state| state.live -= 1);
        return None;
    };
    let base = address_of_slice(slice_of(span));
    let guard = base + size.next_multiple_of(PAGE).max(PAGE);
    let block = guard - size.next_multiple_of(16).max(16);
    // Where the system refuses, the block is one without a guard.
    os::protect(guard, PAGE);
    // SAFETY: the slice is ours alone until we return it.
    let fixed = unsafe { &(*span).fixed };
    fixed.owner.store(core::ptr::null_mut(), Ordering::Relaxed);
    fixed.base.set(block);
    fixed.bytes.set(size);
    // SAFETY: what alignment leaves between the block and the guard page.
    unsafe { (block as *mut u8).add(size).write_bytes(FILL, guard - block - size) };
    fixed.kind.store(kind::GUARDED, Ordering::Release);
    Some(block as *mut u8)
}

/// The size that was asked for; reports a pointer that is not the block's beginning.
///
/// # Safety
/// `span` describes a guarded block.
pub unsafe fn size(span: *mut Span, address: usize, verb: &str) -> usize {
    // SAFETY: as for this function.
    let fixed = unsafe { &(*span).fixed };
    if fixed.base.get() != address {
        misuse::report(Misuse::Interior, address, verb);
    }
    fixed.bytes.get()
}

/// # Safety
/// `span` describes a guarded block, which is the caller's to give up.
pub unsafe fn free(span: *mut Span) {
    // SAFETY: as for this function.
    let fixed = unsafe { &(*span).fixed };
    if fixed.kind.compare_exchange(kind::GUARDED, kind::INNER, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        misuse::report(Misuse::DoubleFree, fixed.base.get(), "free");
    }
    let base = address_of_slice(slice_of(span));
    let end = fixed.base.get() + fixed.bytes.get();
    // SAFETY: up to the guard page, which follows within 16 bytes.
    let slack = unsafe { core::slice::from_raw_parts(end as *const u8, end.next_multiple_of(PAGE) - end) };
    if slack.len() < 16 && slack.iter().any(|&byte| byte != FILL) {
        misuse::report(Misuse::Overflow, fixed.base.get(), "free");
    }
    os::protect(base, SLICE);
    let oldest = with(|state| {
        state.live -= 1;
        state.next = (state.next + 1) % WAITING;
        core::mem::replace(&mut state.waiting[state.next], span as usize)
    });
    if oldest != 0 {
        let span = oldest as *mut Span;
        if os::commit(address_of_slice(slice_of(span)), SLICE) {
            PAGES.with(|pages| pages.give(span, 1));
        }
    }
}
