//! Every interleaving of what threads do to each other's heaps: `RUSTFLAGS="--cfg loom" cargo test --release --test
//! pool_loom`. The code under test is `src/pool/remote.rs` itself, with loom's atomics in place of the real ones.
#![cfg(loom)]

mod sync {
    pub use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

    /// Loom takes sequentially consistent operations for acquire and release ones; the order between them is this.
    pub fn store_before_load() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

#[path = "../src/pool/remote.rs"]
#[allow(dead_code, reason = "statistics are not modelled")]
mod remote;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use remote::{Claim, Linked, Notified, RemoteList};
use sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

const END: u32 = u32::MAX;

/// Two spans of three blocks each. A block is its link to the next; loom's cell complains when two threads touch it
/// without an order between them.
struct Span {
    list: RemoteList,
    notified: AtomicPtr<Span>,
    blocks: [UnsafeCell<u32>; 3],
}

impl Linked for Span {
    fn link(&self) -> &AtomicPtr<Span> {
        &self.notified
    }
}

struct Heap {
    spans: [Box<Span>; 2],
    stack: Notified<Span>,
    claim: Claim,
    /// What the owner has got back, by span. Only the claim orders accesses to it.
    got: UnsafeCell<[u32; 2]>,
}

// SAFETY: what is not atomic is loom's to check.
unsafe impl Send for Heap {}
// SAFETY: as above.
unsafe impl Sync for Heap {}

impl Heap {
    fn new(claimed: u32) -> Arc<Heap> {
        let span = || {
            Box::new(Span {
                list: RemoteList(AtomicU64::new(0)),
                notified: AtomicPtr::new(std::ptr::null_mut()),
                blocks: [UnsafeCell::new(7), UnsafeCell::new(7), UnsafeCell::new(7)],
            })
        };
        Arc::new(Heap {
            spans: [span(), span()],
            stack: Notified(AtomicPtr::new(std::ptr::null_mut())),
            claim: Claim(AtomicU32::new(claimed)),
            got: UnsafeCell::new([0; 2]),
        })
    }

    /// What a freeing thread does with one block.
    fn free(&self, span: usize, block: u32) {
        let at = &self.spans[span];
        let notify = at.list.push(block, 1, |before| {
            at.blocks[block as usize].with_mut(|link| {
                // SAFETY: the block is this thread's until the push has happened.
                unsafe { *link = before.unwrap_or(END) }
            });
        });
        if notify {
            // SAFETY: the heap outlives the threads; whoever is told to notify is the only one who does.
            unsafe { self.stack.push((&raw const **at).cast_mut()) };
            self.take_in();
        }
    }

    /// What whoever sent something to a heap does, and whoever gave one up.
    fn take_in(&self) {
        remote::take_in(&self.claim, &self.stack, || self.drain());
    }

    fn accept(&self, span: usize, taken: Option<remote::Taken>) {
        let Some(taken) = taken else { return };
        let mut at = taken.head;
        for _ in 0..taken.count {
            assert_ne!(at, END, "the chain is shorter than its count");
            // SAFETY: taken blocks are the owner's.
            at = self.spans[span].blocks[at as usize].with_mut(|link| unsafe { std::mem::replace(&mut *link, 7) });
            assert_ne!(at, 7, "a block came twice");
        }
        assert_eq!(at, END, "the chain is longer than its count");
        // SAFETY: the caller has the claim.
        self.got.with_mut(|got| unsafe { (*got)[span] += taken.count });
    }

    /// The owner's direct way: the span stays on the stack, if it is there.
    fn take(&self, span: usize) {
        self.accept(span, self.spans[span].list.take());
    }

    fn drain(&self) {
        let mut at = self.stack.take_all();
        while !at.is_null() {
            // SAFETY: spans on the stack are the heap's.
            let (next, list) = unsafe { ((*at).notified.load(Ordering::Relaxed), &(*at).list) };
            let span = usize::from(!std::ptr::eq(at, &raw const *self.spans[0]));
            self.accept(span, list.take_notified());
            at = next;
        }
    }

    fn got(&self) -> [u32; 2] {
        // SAFETY: the caller has the claim, or all threads are joined.
        self.got.with(|got| unsafe { *got })
    }
}

#[test]
fn nothing_is_lost_between_two_freeing_threads_and_the_owner() {
    loom::model(|| {
        let heap = Heap::new(1);
        let threads: Vec<_> = (0..2u32)
            .map(|n| {
                let heap = heap.clone();
                thread::spawn(move || {
                    heap.free(0, n);
                    if n == 0 {
                        heap.free(1, 0);
                    }
                })
            })
            .collect();
        // A direct take races with the pushes and with the notifications.
        heap.take(0);
        heap.drain();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        heap.drain();
        assert_eq!(heap.got(), [2, 1]);
        assert!(!heap.spans[0].list.is_notified() && !heap.spans[1].list.is_notified());
    });
}

#[test]
fn a_span_is_notified_again_after_it_was_drained() {
    loom::model(|| {
        let heap = Heap::new(1);
        let other = heap.clone();
        let thread = thread::spawn(move || {
            other.free(0, 0);
            other.free(0, 1);
            other.free(0, 2);
        });
        heap.drain();
        heap.take(0);
        heap.drain();
        thread.join().unwrap();
        heap.drain();
        assert_eq!(heap.got(), [3, 0]);
    });
}

#[test]
fn an_adopted_heap_is_whole() {
    loom::model(|| {
        let heap = Heap::new(1);
        let freer = {
            let heap = heap.clone();
            thread::spawn(move || heap.free(0, 0))
        };
        let heir = {
            let heap = heap.clone();
            thread::spawn(move || {
                if heap.claim.try_take() {
                    heap.drain();
                    heap.claim.give_up();
                }
            })
        };
        heap.free(1, 0);
        heap.drain();
        heap.claim.give_up();
        heir.join().unwrap();
        freer.join().unwrap();
        assert!(heap.claim.try_take(), "the claim was lost");
        heap.drain();
        assert_eq!(heap.got(), [1, 1]);
    });
}

#[test]
fn of_two_heirs_one_at_a_time_has_the_heap() {
    loom::model(|| {
        let heap = Heap::new(1);
        heap.free(0, 0);
        let heirs: Vec<_> = (0..2)
            .map(|_| {
                let heap = heap.clone();
                thread::spawn(move || {
                    if heap.claim.try_take() {
                        heap.drain();
                        heap.claim.give_up();
                    }
                })
            })
            .collect();
        heap.claim.give_up();
        heirs.into_iter().for_each(|heir| heir.join().unwrap());
        assert!(heap.claim.try_take(), "the claim was lost");
        heap.drain();
        assert_eq!(heap.got(), [1, 0]);
    });
}

/// What is sent while the owner leaves is taken in by the sender or by the leaver, without anybody coming after them.
#[test]
fn nothing_is_left_in_a_heap_that_is_left() {
    loom::model(|| {
        let heap = Heap::new(1);
        let freer = {
            let heap = heap.clone();
            thread::spawn(move || heap.free(0, 0))
        };
        heap.drain();
        heap.claim.give_up();
        heap.take_in();
        freer.join().unwrap();
        assert!(heap.claim.is_free());
        assert_eq!(heap.got(), [1, 0]);
    });
}

#[test]
fn two_senders_leave_nothing_in_a_heap_that_nobody_has() {
    loom::model(|| {
        let heap = Heap::new(0);
        let threads: Vec<_> = (0..2u32)
            .map(|n| {
                let heap = heap.clone();
                thread::spawn(move || heap.free(n as usize, 0))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(heap.claim.is_free());
        assert_eq!(heap.got(), [1, 1]);
    });
}
