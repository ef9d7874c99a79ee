//! The pool against a model: whatever threads ask for, blocks are aligned, large enough, apart from each other, and keep
//! what was written to them; the statistics add up.

use std::sync::mpsc;
use std::thread;

use partyline::pool::{self, stats};
use proptest::prelude::*;

/// A block filled with bytes that depend on when it was made.
struct Block {
    at: *mut u8,
    size: usize,
    mark: u8,
}

// SAFETY: the block goes where this value goes.
unsafe impl Send for Block {}

impl Block {
    fn new(at: *mut u8, size: usize, mark: u8) -> Block {
        assert!(!at.is_null());
        assert_eq!(at as usize % if size <= 8 { 8 } else { 16 }, 0, "{size}");
        // SAFETY: a block of at least this size.
        unsafe {
            assert!(pool::usable_size(at) >= size);
            at.write_bytes(mark, size);
        }
        Block { at, size, mark }
    }

    fn check(&self) {
        // SAFETY: the block is live and has `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(self.at, self.size) };
        assert!(bytes.iter().all(|&byte| byte == self.mark), "block of {} changed", self.size);
    }

    fn free(self) {
        self.check();
        // SAFETY: a live block of the pool.
        unsafe { pool::free(self.at) };
    }

    fn resize(&mut self, size: usize, mark: u8) {
        // SAFETY: a live block of the pool.
        let at = unsafe { pool::realloc(self.at, size) };
        Block { at, size: size.min(self.size), mark: self.mark }.check();
        *self = Block::new(at, size, mark);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Malloc(usize),
    Calloc(usize),
    Realloc(usize, usize),
    Free(usize),
    /// To the next thread.
    Send(usize),
    Receive,
    Trim,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 0usize..100,
        4 => 100usize..2000,
        2 => 2000usize..40_000,
        2 => 8_000usize..40_000,
        1 => 40_000usize..400_000,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => size().prop_map(Step::Malloc),
        5 => size().prop_map(Step::Calloc),
        8 => (any::<usize>(), 1usize..50_000).prop_map(|(at, size)| Step::Realloc(at, size)),
        20 => any::<usize>().prop_map(Step::Free),
        15 => any::<usize>().prop_map(Step::Send),
        5 => Just(Step::Receive),
        1 => Just(Step::Trim),
    ]
}

fn run(steps: &[Step], inbox: &mpsc::Receiver<Block>, outbox: &mpsc::Sender<Block>) {
    let mut blocks: Vec<Block> = Vec::new();
    for (n, step) in steps.iter().enumerate() {
        let mark = n as u8 ^ 0x5a;
        let pick = |at: usize, len: usize| if len == 0 { None } else { Some(at % len) };
        match *step {
            Step::Malloc(size) => blocks.push(Block::new(pool::malloc(size), size, mark)),
            Step::Calloc(size) => {
                let at = pool::calloc(size, 1);
                Block { at, size, mark: 0 }.check();
                blocks.push(Block::new(at, size, mark));
            }
            Step::Realloc(at, size) => {
                if let Some(at) = pick(at, blocks.len()) {
                    blocks[at].resize(size, mark);
                }
            }
            Step::Free(at) => {
                if let Some(at) = pick(at, blocks.len()) {
                    blocks.swap_remove(at).free();
                }
            }
            Step::Send(at) => {
                if let Some(at) = pick(at, blocks.len()) {
                    // The other thread may have ended.
                    if let Err(mpsc::SendError(block)) = outbox.send(blocks.swap_remove(at)) {
                        block.free();
                    }
                }
            }
            Step::Receive => blocks.extend(inbox.try_iter()),
            Step::Trim => pool::trim(),
        }
    }
    blocks.into_iter().for_each(Block::free);
}

fn adds_up() {
    let stats = stats::read();
    assert_eq!(stats.allocated, stats.freed + stats.live);
    for class in &stats.classes {
        assert_eq!(class.allocated, class.freed + class.live, "{class:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn threads_that_pass_blocks_around(
        each in prop::collection::vec(prop::collection::vec(step(), 1..400), 1..4)
    ) {
        let (senders, receivers): (Vec<_>, Vec<_>) = each.iter().map(|_| mpsc::channel::<Block>()).unzip();
        let threads: Vec<_> = each
            .into_iter()
            .zip(receivers)
            .enumerate()
            .map(|(n, (steps, inbox))| {
                let outbox = senders[(n + 1) % senders.len()].clone();
                thread::spawn(move || {
                    run(&steps, &inbox, &outbox);
                    inbox
                })
            })
            .collect();
        drop(senders);
        let left: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        adds_up();
        left.iter().flat_map(|inbox| inbox.try_iter()).for_each(Block::free);
        adds_up();
    }
}

#[test]
fn null_and_zero_are_libcs() {
    // SAFETY: null and live blocks only.
    unsafe {
        let zero = pool::malloc(0);
        let other = pool::malloc(0);
        assert!(!zero.is_null() && zero != other);
        pool::free(zero);
        pool::free(std::ptr::null_mut());
        let grown = pool::realloc(other, 100);
        assert!(pool::realloc(grown, 0).is_null());
        let fresh = pool::realloc(std::ptr::null_mut(), 10);
        assert!(!fresh.is_null());
        pool::free(fresh);
    }
    assert!(pool::calloc(usize::MAX / 2, 3).is_null());
    assert!(pool::malloc(usize::MAX).is_null());
    assert!(pool::malloc(usize::MAX - 100).is_null());
}

#[test]
fn libcs_blocks_are_passed_on() {
    // SAFETY: live blocks of libc, freed once.
    unsafe {
        let block = libc::malloc(40).cast::<u8>();
        block.write_bytes(7, 40);
        let moved = pool::realloc(block, 4000);
        assert!((0..40).all(|n| *moved.add(n) == 7));
        assert!(pool::usable_size(moved) >= 4000);
        pool::free(moved);
    }
}

#[test]
fn realloc_stays_where_the_class_allows() {
    // SAFETY: a live block.
    unsafe {
        let block = pool::malloc(100);
        assert_eq!(pool::realloc(block, 112), block);
        assert_eq!(pool::realloc(block, 60), block);
        let moved = pool::realloc(block, 20);
        assert_ne!(moved, block);
        pool::free(moved);
    }
}

#[test]
fn runs_grow_and_shrink_where_they_are() {
    // A thread of its own, so that nobody else's blocks lie behind.
    thread::spawn(|| {
        let first = pool::malloc(20_000);
        let before = stats::read();
        // SAFETY: a live block.
        unsafe {
            first.write_bytes(5, 20_000);
            for size in [60_000usize, 9_000, 30_000, 200_000, 100_000] {
                assert_eq!(pool::realloc(first, size), first, "{size}");
                assert_eq!(pool::usable_size(first), size.next_multiple_of(1024));
                assert!((0..9_000).all(|n| *first.add(n) == 5));
            }
            pool::free(first);
        }
        let after = stats::read();
        assert!(after.allocated - before.allocated >= 5);
    })
    .join()
    .unwrap();
    adds_up();
}

/// Many blocks of odd sizes in a few regions, freed in every order: what is free is joined again, so that the whole fits
/// into little more than is live.
#[test]
fn free_runs_are_joined() {
    thread::spawn(|| {
        let mut state = 1u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let mut blocks: Vec<Block> = Vec::new();
        for n in 0..30_000 {
            let size = 8_193 + random(120_000);
            blocks.push(Block::new(pool::malloc(size), size, n as u8));
            if blocks.len() > 200 {
                blocks.swap_remove(random(200)).free();
            }
        }
        let stats = stats::read();
        assert!(stats.used_bytes < stats.live_bytes * 5 / 4 + (8 << 20), "{} {}", stats.used_bytes, stats.live_bytes);
        blocks.into_iter().for_each(Block::free);
    })
    .join()
    .unwrap();
    adds_up();
}

#[test]
fn rust_layouts_are_honoured() {
    use std::alloc::{GlobalAlloc, Layout};
    let alloc = pool::PoolAlloc;
    for align in (0..=16).map(|shift| 1usize << shift) {
        for size in [1usize, 7, 8, 9, 24, 100, 1000, 5000, 70_000, 200_000] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: a layout of a size above 0; blocks are freed with the layout they have.
            unsafe {
                let block = alloc.alloc_zeroed(layout);
                assert!(!block.is_null() && block as usize % align == 0, "{size} {align}");
                assert!((0..size).all(|n| *block.add(n) == 0));
                block.write_bytes(0xaa, size);
                let grown = alloc.realloc(block, layout, size * 2);
                assert!(grown as usize % align == 0, "{size} {align}");
                assert!((0..size).all(|n| *grown.add(n) == 0xaa));
                alloc.dealloc(grown, Layout::from_size_align(size * 2, align).unwrap());
            }
        }
    }
}

#[test]
fn what_one_thread_allocates_another_frees() {
    let (send, receive) = mpsc::channel::<Vec<Block>>();
    let consumer = thread::spawn(move || {
        for batch in receive {
            batch.into_iter().for_each(Block::free);
        }
    });
    for round in 0..200u32 {
        let batch = (0..300usize).map(|n| Block::new(pool::malloc(n % 90), n % 90, round as u8)).collect();
        send.send(batch).unwrap();
    }
    drop(send);
    consumer.join().unwrap();
    adds_up();
    assert!(stats::read().cross_thread > 0);
}
