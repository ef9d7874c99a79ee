//! A span: a run of slices cut into blocks of one class, or one large block, or free address space.
//!
//! Descriptors stand in a table beside the slices (entry n describes slice n), so that a program that writes past a
//! block does not hit them, and "what is this pointer?" is a shift and one load. The fields are grouped by who writes
//! them, a cache line each: the owner at every call; nobody while the span is in use; other threads.
//!
//! ```text
//!  head ──► block ──► block ──► end      free blocks; the first word of each names the next
//!  remote ─► block ──► ... ──────┘       freed by other threads, see remote.rs
//!  base ... base + bytes                 blocks; from base + fresh on they were never handed out
//! ```
//! # Encoded links
//! The link in a free block is `(next ^ key) * odd`, with a key that is drawn anew each time the span is set up. A
//! word that decodes to an address within the span is a link; anything that a program wrote decodes to one with a
//! chance of 2^-47. So one comparison, which also notices the end of the list, finds a write after free when the block
//! would be handed out, and a double free when a block that is being freed holds a link. `malloc` clears the word.

use core::cell::Cell;
use core::ptr::null_mut;

use super::heap::Heap;
use super::misuse;
use super::remote::{Linked, RemoteList};
use super::sync::{AtomicPtr, AtomicU64, Ordering};
use core::sync::atomic::{AtomicU8, AtomicU32};

/// log2 of the size of a descriptor.
pub const SPAN_SHIFT: usize = 8;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const INVERSE: u64 = {
    // Newton's iteration doubles the correct bits; an odd number is its own inverse modulo 8.
    let mut x = MULTIPLIER;
    let mut i = 0;
    while i < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(MULTIPLIER.wrapping_mul(x)));
        i += 1;
    }
    assert!(x.wrapping_mul(MULTIPLIER) == 1);
    x
};

/// What a slice's descriptor describes.
pub mod kind {
    /// Not the first slice of anything (or never used).
    pub const INNER: u8 = 0;
    /// First slice of a span of blocks.
    pub const BLOCKS: u8 = 1;
    /// A later slice of a span of blocks; `back` slices before it is the first.
    pub const PART: u8 = 2;
    /// First slice of a large block.
    pub const LARGE: u8 = 3;
    /// A block of its own against a guard page (checked mode).
    pub const GUARDED: u8 = 5;
    /// First or last slice of a free run.
    pub const FREE: u8 = 4;
}

/// How the owner keeps a span of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Keep {
    /// The one that its class allocates from.
    Current,
    /// In the class's list: has free blocks.
    Available,
    /// In no list: no free block.
    Full,
}

#[repr(C, align(64))]
pub struct OwnerLine {
    /// First free block, and what stands for none: the address just behind the blocks.
    pub head: Cell<usize>,
    pub end: Cell<usize>,
    /// Blocks handed out and blocks back since the span was set up. Written by the owner alone, read for statistics.
    pub allocs: AtomicU64,
    pub frees: AtomicU64,
    /// The owner looks at the span's state when `frees` reaches this.
    pub trigger: Cell<u64>,
    pub fresh: Cell<u32>,
    pub keep: Cell<Keep>,
    /// Of `frees`, those that came through the remote list.
    pub from_remote: AtomicU64,
}

/// Read by whoever frees a block.
#[repr(C, align(64))]
pub struct FixedLine {
    pub owner: AtomicPtr<Heap>,
    pub base: Cell<usize>,
    /// Length of the part that holds blocks: a multiple of the block size.
    pub bytes: Cell<usize>,
    pub key: Cell<u64>,
    pub size: Cell<u32>,
    pub magic: Cell<u32>,
    /// Slices in the run.
    pub slices: AtomicU32,
    pub back: Cell<u32>,
    pub kind: AtomicU8,
    pub class: AtomicU8,
}

#[repr(C, align(64))]
pub struct SharedLine {
    pub remote: RemoteList,
    pub notified: AtomicPtr<Span>,
}

/// Links of the owner's list of available spans, or of the page heap's lists.
#[repr(C, align(64))]
pub struct ListLine {
    pub next: Cell<*mut Span>,
    pub prev: Cell<*mut Span>,
    pub older: Cell<*mut Span>,
    pub newer: Cell<*mut Span>,
    pub since: Cell<u64>,
    pub dirty: Cell<bool>,
}

#[repr(C, align(256))]
pub struct Span {
    pub own: OwnerLine,
    pub fixed: FixedLine,
    pub shared: SharedLine,
    pub list: ListLine,
}

const _: () = assert!(size_of::<Span>() == 1 << SPAN_SHIFT);

// SAFETY: `own` and `list` are touched by the owning heap's thread or under the page heap's lock, `fixed` is written
// before the span's first block is handed out, the rest is atomic.
unsafe impl Sync for Span {}

impl Linked for Span {
    fn link(&self) -> &AtomicPtr<Span> {
        &self.shared.notified
    }
}

/// Stands in every table where there is no span: nothing decodes to an address within it.
pub static NO_SPAN: Span = Span {
    own: OwnerLine {
        head: Cell::new(0),
        end: Cell::new(0),
        allocs: AtomicU64::new(0),
        frees: AtomicU64::new(0),
        trigger: Cell::new(u64::MAX),
        fresh: Cell::new(0),
        keep: Cell::new(Keep::Current),
        from_remote: AtomicU64::new(0),
    },
    fixed: FixedLine {
        owner: AtomicPtr::new(null_mut()),
        base: Cell::new(0),
        bytes: Cell::new(0),
        key: Cell::new(0),
        size: Cell::new(1),
        magic: Cell::new(0),
        slices: AtomicU32::new(0),
        back: Cell::new(0),
        kind: AtomicU8::new(kind::INNER),
        class: AtomicU8::new(0),
    },
    shared: SharedLine { remote: RemoteList(AtomicU64::new(0)), notified: AtomicPtr::new(null_mut()) },
    list: ListLine {
        next: Cell::new(null_mut()),
        prev: Cell::new(null_mut()),
        older: Cell::new(null_mut()),
        newer: Cell::new(null_mut()),
        since: Cell::new(0),
        dirty: Cell::new(false),
    },
};

pub fn no_span() -> *mut Span {
    (&raw const NO_SPAN).cast_mut()
}

/// Adds to a counter that one thread writes and others read: a plain add, no locked instruction.
#[inline(always)]
pub fn bump(counter: &AtomicU64, by: u64) -> u64 {
    let now = counter.load(Ordering::Relaxed).wrapping_add(by);
    counter.store(now, Ordering::Relaxed);
    now
}

#[inline(always)]
fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; no address is wrong.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address as *const i8)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

impl Span {
    #[inline(always)]
    pub fn encode(&self, address: usize) -> u64 {
        (address as u64 ^ self.fixed.key.get()).wrapping_mul(MULTIPLIER)
    }

    #[inline(always)]
    pub fn decode(&self, word: u64) -> usize {
        (word.wrapping_mul(INVERSE) ^ self.fixed.key.get()) as usize
    }

    /// The link of the last block in a list.
    #[inline(always)]
    pub fn end_word(&self) -> u64 {
        self.encode(self.own.end.get())
    }

    /// Whether `word` is a link to one of the span's blocks.
    #[inline(always)]
    pub fn links(&self, word: u64) -> bool {
        self.decode(word).wrapping_sub(self.fixed.base.get()) < self.fixed.bytes.get()
    }

    /// Whether `word` is a link or the end of a list: what a freed block begins with.
    #[inline(always)]
    pub fn looks_free(&self, word: u64) -> bool {
        self.decode(word).wrapping_sub(self.fixed.base.get()) <= self.fixed.bytes.get()
    }

    /// Takes the first free block. None: there is none. A block that was written to while it was free ends the program.
    ///
    /// # Safety
    /// The caller is the owner's thread, and the span is set up (or [`NO_SPAN`]).
    #[inline(always)]
    pub unsafe fn pop(&self) -> Option<*mut u8> {
        let address = self.own.head.get();
        if address == self.own.end.get() {
            return None;
        }
        let block = address as *mut u64;
        // SAFETY: the head is one of our span's blocks and free, at least 8 bytes long; nobody else writes to it.
        unsafe {
            let next = self.decode(*block);
            if next.wrapping_sub(self.fixed.base.get()) > self.fixed.bytes.get() {
                misuse::corrupted_block(address);
            }
            // The next block may have been freed by another thread and lie in its processor's cache.
            prefetch(next);
            self.own.head.set(next);
            *block = 0;
        }
        bump(&self.own.allocs, 1);
        Some(block.cast())
    }

    /// Puts a block in front of the list and returns how many have come back.
    ///
    /// # Safety
    /// The caller is the owner's thread and `block` a block of this span that is handed out.
    #[inline(always)]
    pub unsafe fn push(&self, block: *mut u8) -> u64 {
        // SAFETY: the block is the caller's to give up, and at least 8 bytes long and aligned.
        unsafe { *block.cast::<u64>() = self.encode(self.own.head.get()) };
        self.own.head.set(block as usize);
        bump(&self.own.frees, 1)
    }

    /// Whether `block` is the beginning of a block. Exact for the first slice only.
    #[inline(always)]
    pub fn is_start(&self, offset: usize) -> bool {
        let magic = self.fixed.magic.get();
        (offset as u32).wrapping_mul(magic) < magic
    }

    pub fn index_of(&self, block: usize) -> u32 {
        ((block - self.fixed.base.get()) / 8) as u32
    }

    pub fn at_index(&self, index: u32) -> usize {
        self.fixed.base.get() + index as usize * 8
    }

    pub fn kind(&self) -> u8 {
        self.fixed.kind.load(Ordering::Acquire)
    }

    pub fn slices(&self) -> usize {
        self.fixed.slices.load(Ordering::Relaxed) as usize
    }

    pub fn class(&self) -> usize {
        self.fixed.class.load(Ordering::Relaxed) as usize
    }

    /// Blocks handed out and not back yet (those on their way through a remote list are still out).
    pub fn out(&self) -> u64 {
        self.own.allocs.load(Ordering::Relaxed).wrapping_sub(self.own.frees.load(Ordering::Relaxed))
    }
}
