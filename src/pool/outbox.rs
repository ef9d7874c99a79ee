//! The outbox: how a heap gives blocks back to the heaps that they came from.
//!
//! A freed block of another heap's span waits in the outbox with others of the same span (Filardo, Parkinson: "BatchIt",
//! ISMM 2024), so the atomic operation on the span's remote list is paid once per batch. What waits is bounded:
//! [`OUTBOX`] spans, [`BATCH`] blocks each.

use core::cell::Cell;
use core::ptr::null_mut;

use super::classes::class_of;
use super::heap::Heap;
use super::marks;
use super::range::slice_of;
use super::span::{Span, bump, kind};
use super::sync::Ordering;

pub const OUTBOX: usize = 16;
pub const BATCH: u32 = 64;

/// A batch on its way to another heap.
pub(super) struct Slot {
    span: Cell<*mut Span>,
    /// The chain's first and last block.
    head: Cell<usize>,
    tail: Cell<usize>,
    count: Cell<u32>,
    limit: Cell<u32>,
}

impl Slot {
    #[allow(clippy::declare_interior_mutable_const, reason = "a template, copied into every new heap")]
    pub const NEW: Slot = Slot {
        span: Cell::new(null_mut()),
        head: Cell::new(0),
        tail: Cell::new(0),
        count: Cell::new(0),
        limit: Cell::new(0),
    };
}

impl Heap {
    /// Frees a block of another heap.
    ///
    /// # Safety
    /// The caller's thread has claimed this heap; `block` is a block of `span` that is handed out.
    pub unsafe fn send(&self, span: *mut Span, block: *mut u8) {
        let slot = &self.outbox[slice_of(span).wrapping_mul(0x9e37_79b1) >> 8 & (OUTBOX - 1)];
        // SAFETY: the block is the caller's to give up; it keeps its span from being given back until it arrives.
        unsafe {
            if slot.span.get() != span {
                send_slot(slot);
                slot.span.set(span);
                slot.tail.set(block as usize);
                slot.count.set(0);
                // Not so many that the owner runs dry meanwhile; runs go at once.
                let blocks = (*span).fixed.bytes.get() as u32 / (*span).fixed.size.get();
                let region = (*span).kind() == kind::REGION;
                slot.limit.set(if region { 1 } else { (blocks / 8).clamp(1, BATCH) });
            }
            let class = if (*span).kind() == kind::REGION {
                let (_, bytes, _) = marks::run_at(span, block as usize);
                bump(&self.cross_run_bytes, bytes as u64);
                class_of(bytes)
            } else {
                (*span).class()
            };
            bump(&self.cross[class], 1);
            let count = slot.count.get();
            *block.cast::<u64>() = if count == 0 { (*span).end_word() } else { (*span).encode(slot.head.get()) };
            slot.head.set(block as usize);
            slot.count.set(count + 1);
            if count + 1 >= slot.limit.get() {
                send_slot(slot);
            }
        }
    }

    /// Sends what waits in the outbox.
    ///
    /// # Safety
    /// The caller's thread has claimed the heap.
    pub unsafe fn flush(&self) {
        for slot in &self.outbox {
            // SAFETY: claimed.
            unsafe { send_slot(slot) };
        }
    }
}

unsafe fn send_slot(slot: &Slot) {
    let span = slot.span.get();
    if span.is_null() {
        return;
    }
    // SAFETY: the slot's chain consists of freed blocks of this span, which therefore still exists.
    unsafe { send_chain(span, slot.head.get(), slot.tail.get(), slot.count.get()) };
    slot.span.set(null_mut());
}

/// Puts a chain of freed blocks, linked as in a free list, onto its span's remote list.
///
/// # Safety
/// The blocks are blocks of `span` that are handed out, and the caller's to give up.
pub unsafe fn send_chain(span: *mut Span, head: usize, tail: usize, count: u32) {
    // SAFETY: as above: the span exists as long as its blocks have not arrived, and once they have, NOTIFIED keeps it
    // until the owner has taken it off the stack. Heaps are never freed.
    unsafe {
        let owner = (*span).fixed.owner.load(Ordering::Relaxed);
        let notify = (*span).shared.remote.push((*span).index_of(head), count, |before| {
            let word = match before {
                Some(next) => (*span).encode((*span).at_index(next)),
                None => (*span).end_word(),
            };
            *(tail as *mut u64) = word;
        });
        if notify {
            (*owner).inbox.notified.push(span);
            (*owner).take_in_if_orphan();
        }
    }
}
