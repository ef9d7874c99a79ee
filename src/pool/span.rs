//! A span: a slice cut into blocks of one class. Its descriptor also serves for whatever else a slice can be: part of a
//! region of runs (see `runs.rs`), a large block, free address space.
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
//! A link is the next block's offset in the slice, 16 bits, four times over, combined with a key that is drawn anew each
//! time the span is set up. So a word is a link iff, with the key taken off, a rotation by 16 bits leaves it as it is: any
//! write of fewer than 8 bytes that changes it is noticed for certain, other words pass with a chance of 2^-48, and
//! whatever passes leads into the slice. That finds a write after free when the block would be handed out, and a double
//! free when a block that is being freed begins with a link. `malloc` clears the word.

use core::cell::Cell;
use core::ptr::null_mut;

use super::heap::Heap;
use super::misuse;
use super::remote::{Linked, RemoteList};
use super::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use core::sync::atomic::AtomicU8;

/// log2 of the size of a descriptor.
pub const SPAN_SHIFT: usize = 8;

const FOUR: u64 = 0x0001_0001_0001_0001;
/// What a list's last link names. Not a block: those begin at multiples of 8.
const END: u64 = 0xffff;

/// What a slice's descriptor describes.
pub mod kind {
    /// Not the first slice of anything (or never used).
    pub const INNER: u8 = 0;
    /// First slice of a span of blocks.
    pub const BLOCKS: u8 = 1;
    /// A later slice of a region; `back` slices before it is the first.
    pub const PART: u8 = 2;
    /// First slice of a large block.
    pub const LARGE: u8 = 3;
    /// A block of its own against a guard page (checked mode).
    pub const GUARDED: u8 = 5;
    /// First or last slice of a free run of slices.
    pub const FREE: u8 = 4;
    /// First slice of a region of runs.
    pub const REGION: u8 = 6;
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

/// All that `malloc` needs.
#[repr(C, align(64))]
pub struct OwnerLine {
    /// First free block; odd where there is none.
    pub head: Cell<usize>,
    /// Copies of those in [`FixedLine`].
    pub base: Cell<usize>,
    pub key: Cell<u64>,
    /// Blocks handed out and blocks back since the span was set up. Written by the owner alone, read for statistics.
    pub allocs: AtomicU64,
    pub frees: AtomicU64,
    /// The owner looks at the span's state when `frees` reaches this.
    pub trigger: Cell<u64>,
    /// Of `frees`, those that came through the remote list.
    pub from_remote: AtomicU64,
    pub keep: Cell<Keep>,
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
    /// What was handed out at some time ends here. Changes once a page at most, so it may stand here.
    pub fresh: AtomicU32,
    /// Slices in the run.
    pub slices: AtomicU32,
    pub back: Cell<u32>,
    pub kind: AtomicU8,
    pub class: AtomicU8,
    /// log2 of what a link counts in: bytes in spans of blocks, grains in regions.
    pub unit: Cell<u8>,
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
    /// Freed blocks that are not to be handed out soon (the modes that look at every block), as `head`.
    pub later: Cell<usize>,
    pub later_count: Cell<u32>,
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

/// Stands in every table where there is no span: it has no free block.
pub static NO_SPAN: Span = Span {
    own: OwnerLine {
        head: Cell::new(1),
        base: Cell::new(0),
        key: Cell::new(0),
        allocs: AtomicU64::new(0),
        frees: AtomicU64::new(0),
        trigger: Cell::new(u64::MAX),
        from_remote: AtomicU64::new(0),
        keep: Cell::new(Keep::Current),
    },
    fixed: FixedLine {
        owner: AtomicPtr::new(null_mut()),
        base: Cell::new(0),
        bytes: Cell::new(0),
        key: Cell::new(0),
        size: Cell::new(1),
        magic: Cell::new(0),
        fresh: AtomicU32::new(0),
        slices: AtomicU32::new(0),
        back: Cell::new(0),
        kind: AtomicU8::new(kind::INNER),
        class: AtomicU8::new(0),
        unit: Cell::new(0),
    },
    shared: SharedLine { remote: RemoteList(AtomicU64::new(0)), notified: AtomicPtr::new(null_mut()) },
    list: ListLine {
        next: Cell::new(null_mut()),
        prev: Cell::new(null_mut()),
        older: Cell::new(null_mut()),
        newer: Cell::new(null_mut()),
        since: Cell::new(0),
        dirty: Cell::new(false),
        later: Cell::new(1),
        later_count: Cell::new(0),
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

/// Whether a word is a link, once the key is taken off.
#[inline(always)]
fn is_link(plain: u64) -> bool {
    plain.rotate_right(16) == plain
}

impl Span {
    /// The link to a block of the span or region, or to `base + END`.
    #[inline(always)]
    pub fn encode(&self, address: usize) -> u64 {
        let place = (address - self.fixed.base.get()) >> self.fixed.unit.get();
        (place as u64 & END).wrapping_mul(FOUR) ^ self.fixed.key.get()
    }

    /// What a list's last block begins with.
    #[inline(always)]
    pub fn end_word(&self) -> u64 {
        END.wrapping_mul(FOUR) ^ self.fixed.key.get()
    }

    /// The block that a link leads to. None: the word is no link to a block.
    pub fn decode(&self, word: u64) -> Option<usize> {
        let plain = word ^ self.fixed.key.get();
        let place = ((plain & END) as usize) << self.fixed.unit.get();
        (is_link(plain) && place < self.fixed.bytes.get()).then(|| self.fixed.base.get() + place)
    }

    /// Whether `word` is what a freed block begins with.
    pub fn looks_free(&self, word: u64) -> bool {
        self.decode(word).is_some() || word == self.end_word()
    }

    /// The same, nearly: true for every such word, and for one in 2^48 others.
    #[inline(always)]
    pub fn may_be_free(&self, word: u64) -> bool {
        is_link(word ^ self.fixed.key.get())
    }

    /// Takes the first free block. None: there is none. A block that was written to while it was free ends the program.
    ///
    /// # Safety
    /// The caller is the owner's thread, and the span is a set up one of blocks (or [`NO_SPAN`]).
    #[inline(always)]
    pub unsafe fn pop(&self) -> Option<*mut u8> {
        let address = self.own.head.get();
        if address & 1 != 0 {
            return None;
        }
        let block = address as *mut u64;
        // SAFETY: the head is one of our span's blocks and free, at least 8 bytes long; nobody else writes to it.
        unsafe {
            let plain = *block ^ self.own.key.get();
            if !is_link(plain) {
                misuse::corrupted_block(address);
            }
            // A list's end gives an odd address: slices begin at even ones.
            let next = self.own.base.get() + (plain & END) as usize;
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
    /// The caller is the owner's thread and `block` a block of this span of blocks that is handed out.
    #[inline(always)]
    pub unsafe fn push(&self, block: *mut u8) -> u64 {
        let word = (self.own.head.get() as u64 & END).wrapping_mul(FOUR) ^ self.own.key.get();
        // SAFETY: the block is the caller's to give up, and at least 8 bytes long and aligned.
        unsafe { *block.cast::<u64>() = word };
        self.own.head.set(block as usize);
        bump(&self.own.frees, 1)
    }

    /// Puts a block aside, for [`Span::take_later`], and returns how many have come back.
    ///
    /// # Safety
    /// As [`Span::push`].
    #[inline(always)]
    pub unsafe fn push_later(&self, block: *mut u8) -> u64 {
        let word = (self.list.later.get() as u64 & END).wrapping_mul(FOUR) ^ self.own.key.get();
        // SAFETY: as in `push`.
        unsafe { *block.cast::<u64>() = word };
        self.list.later.set(block as usize);
        self.list.later_count.set(self.list.later_count.get() + 1);
        bump(&self.own.frees, 1)
    }

    /// Makes the blocks that were put aside the free list, which is empty, if there are so many. Returns whether it did.
    pub fn take_later(&self, least: u32) -> bool {
        let taken = self.list.later_count.get() >= least;
        if taken {
            self.own.head.set(self.list.later.get());
            self.none_later();
        }
        taken
    }

    pub fn none_later(&self) {
        self.list.later.set(self.fixed.base.get() + END as usize);
        self.list.later_count.set(0);
    }

    /// Whether the offset in the slice is that of a block that was handed out at some time.
    #[inline(always)]
    pub fn is_block(&self, offset: usize) -> bool {
        let magic = self.fixed.magic.get();
        (offset as u32) < self.fixed.fresh.load(Ordering::Relaxed) && (offset as u32).wrapping_mul(magic) < magic
    }

    /// Whether there is a block in the free list.
    pub fn has_free(&self) -> bool {
        self.own.head.get() & 1 == 0
    }

    pub fn no_free(&self) {
        self.own.head.set(self.fixed.base.get() + END as usize);
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
