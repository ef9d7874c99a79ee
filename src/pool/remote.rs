//! What threads do to each other's heaps, and nothing else, so that loom can walk through all of it
//! (`tests/pool_loom.rs` includes this very file with loom's atomics).
//!
//! * [`RemoteList`]: blocks of one span that other threads freed. A batch enters by one compare-exchange, the owner
//!   takes all of them by one exchange.
//! * [`Notified`]: the spans of one heap whose remote list has something; the first batch to enter an empty list puts
//!   its span there. The owner takes the whole stack at once, so there is no ABA.
//! * [`Claim`]: who may work on a heap. A thread that exits gives its claim up, another one adopts the heap.
//! * [`take_in`]: what is sent to a heap that nobody has is taken in by whoever sent it.
//!
//! Invariant: a span is on the stack, or about to be pushed onto it by the one thread that set NOTIFIED, exactly while
//! NOTIFIED is set in its list; a list with blocks in it has NOTIFIED set. So no batch is forgotten and no span is
//! pushed twice.

use super::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering, store_before_load};

const NOTIFIED: u64 = 1 << 63;
const COUNT_SHIFT: u32 = 32;
const COUNT_MASK: u64 = 0x7fff_ffff;

/// Bits 0..32: first block of the chain (a number that the caller understands); 32..63: blocks in it, 0 for none;
/// 63: NOTIFIED.
pub struct RemoteList(pub AtomicU64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub head: u32,
    pub count: u32,
}

fn unpack(word: u64) -> Option<Taken> {
    let count = ((word >> COUNT_SHIFT) & COUNT_MASK) as u32;
    (count != 0).then_some(Taken { head: word as u32, count })
}

impl RemoteList {
    /// Puts a chain of `count` blocks in front. `link` writes what follows the chain's last block; it may be called
    /// more than once. Returns whether the caller has to push the span onto its owner's [`Notified`].
    #[must_use]
    pub fn push(&self, head: u32, count: u32, mut link: impl FnMut(Option<u32>)) -> bool {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let before = unpack(old);
            link(before.map(|b| b.head));
            let total = u64::from(before.map_or(0, |b| b.count) + count);
            let new = NOTIFIED | total << COUNT_SHIFT | u64::from(head);
            // Release: the owner sees the chain's links, and everything its freers wrote, before it reuses a block.
            match self.0.compare_exchange_weak(old, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return old & NOTIFIED == 0,
                Err(now) => old = now,
            }
        }
    }

    /// Owner: takes the chain and leaves the span where it is, on the stack.
    pub fn take(&self) -> Option<Taken> {
        // A list that was never pushed to costs no locked instruction.
        unpack(self.0.load(Ordering::Relaxed))?;
        unpack(self.0.swap(NOTIFIED, Ordering::Acquire))
    }

    /// Owner, after it took the span off the stack and has read its link: the next batch notifies again.
    pub fn take_notified(&self) -> Option<Taken> {
        unpack(self.0.swap(0, Ordering::Acquire))
    }

    /// Blocks waiting, for statistics.
    pub fn waiting(&self) -> u32 {
        unpack(self.0.load(Ordering::Relaxed)).map_or(0, |t| t.count)
    }

    /// Whether the span is on a stack or about to be: it must not be given back then.
    pub fn is_notified(&self) -> bool {
        self.0.load(Ordering::Acquire) & NOTIFIED != 0
    }
}

/// A thing that can stand on a [`Notified`] stack.
pub trait Linked {
    fn link(&self) -> &AtomicPtr<Self>
    where
        Self: Sized;
}

pub struct Notified<T>(pub AtomicPtr<T>);

impl<T: Linked> Notified<T> {
    /// # Safety
    /// `item` lives until the owner has taken it, and is on no stack.
    pub unsafe fn push(&self, item: *mut T) {
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: the caller keeps `item` alive and off every other stack, so the link is ours to write.
            unsafe { (*item).link().store(head, Ordering::Relaxed) };
            // Sequentially consistent for `take_in`.
            match self.0.compare_exchange_weak(head, item, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::SeqCst).is_null()
    }

    /// Takes the whole stack: a list through [`Linked::link`].
    pub fn take_all(&self) -> *mut T {
        if self.0.load(Ordering::Relaxed).is_null() {
            return core::ptr::null_mut();
        }
        self.0.swap(core::ptr::null_mut(), Ordering::Acquire)
    }
}

/// A heap's owner: 1 while a thread works on it, 0 while it waits for adoption.
pub struct Claim(pub AtomicU32);

impl Claim {
    pub fn try_take(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
            && self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    pub fn is_free(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    /// What the last owner did to the heap is seen by the next.
    pub fn give_up(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// Calls `drain`, with the claim taken, while nobody has the heap and something was sent to it. To be called after each
/// push and after each giving up: either the pusher sees that the claim is free, or who gave it up sees what was pushed.
pub fn take_in<T: Linked>(claim: &Claim, notified: &Notified<T>, mut drain: impl FnMut()) {
    store_before_load();
    while claim.is_free() && !notified.is_empty() && claim.try_take() {
        drain();
        claim.give_up();
        store_before_load();
    }
}
