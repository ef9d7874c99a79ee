//! Memory for transactions, of which most is never touched.
//!
//! In osip2 5 a transaction is 15 kB, 14.9 of them an SRV record that only a resolver fills in. Stock allocates and
//! zeroes all of it. Here a transaction's first fields lie at the end of a page, the record on the pages behind it, which
//! read as zeros and cost nothing until they are written, and the last fields at the beginning of the page on which the
//! next transaction begins:
//!
//! ```text
//!  page 0          page 1      page 2      page 3      page 4 = page 0 of the next
//!  [.. tail | head][  record   |  record   |  record   ][record, tail | ....| head of the next]
//! ```
//!
//! So a live transaction costs one page. What was written into the record is zeroed when the transaction is freed. Beads
//! of different slots begin at different cache lines, or all heads would share a few sets of the cache.

use core::ffi::{c_int, c_void};
use core::mem::size_of;
use core::ops::Range;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::glue::{self, Transaction};
use super::side::Side;

const PAGE: usize = 4096;
const LINE: usize = 64;
/// Slots are handed out from reserved address space; past this many, transactions come from the allocator.
const MOST: usize = 1 << 22;
/// Slots whose pages are entered at once.
const AT_ONCE: usize = 64;
/// Below this nothing is won.
const WORTH: usize = 2 * PAGE;

struct State {
    layout: Option<Layout>,
    tried: bool,
    top: usize,
    idle: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Layout {
    slots: usize,
    base: usize,
    sides: usize,
    stride: usize,
    first: usize,
    colours: usize,
}

impl Layout {
    /// Where the slot's transaction begins.
    fn slot(&self, slot: usize) -> usize {
        self.base + slot * self.stride + self.first - (slot % self.colours) * LINE
    }
}

static STATE: Mutex<State> = Mutex::new(State { layout: None, tried: false, top: 0, idle: Vec::new() });
/// Read without the lock; 0 until there is a slab.
static BASE: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
static SIDES: AtomicUsize = AtomicUsize::new(0);
static STRIDE: AtomicUsize = AtomicUsize::new(1);

fn map(bytes: usize) -> Option<usize> {
    // SAFETY: an anonymous mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return None;
    }
    // A huge page would be memory for everything that is meant to stay untouched.
    // SAFETY: the mapping just made.
    unsafe { libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE) };
    Some(at as usize)
}

/// Enters the kernel's page of zeros for what will be read when the transactions are freed: one call for many, and not a
/// fault for each page. Where the kernel does not know how (before 5.14) the faults come. The heads are written first: over a
/// page of zeros that is there already, the write costs the processor's other translations as well.
fn touch(at: &Layout, slots: Range<usize>) {
    const MADV_POPULATE_READ: c_int = 22;
    for slot in slots.clone() {
        // SAFETY: a slot that has not been handed out, which is zeros.
        unsafe { (at.slot(slot) as *mut u8).write_volatile(0) };
    }
    let (from, bytes) = (at.base + slots.start * at.stride, slots.len() * at.stride + PAGE);
    // SAFETY: memory of the mapping, whose contents stay.
    unsafe { libc::madvise(from as *mut c_void, bytes, MADV_POPULATE_READ) };
}

fn layout() -> Option<Layout> {
    // SAFETY: constants of the glue.
    let (size, head) = unsafe { (glue::partyline_glue_transaction_size, glue::partyline_glue_idle_from) };
    if size < WORTH || head == 0 {
        return None;
    }
    let head = head.next_multiple_of(LINE);
    let stride = (size - head).next_multiple_of(PAGE);
    let stride = if stride - (size - head) < head + LINE { stride + PAGE } else { stride };
    let colours = ((stride - size) / LINE).clamp(1, 16);
    // Less where the address space is limited.
    for slots in [MOST, MOST / 16, MOST / 256] {
        let Some(base) = map(slots * stride + 2 * PAGE) else { continue };
        let Some(sides) = map(slots * size_of::<Side>()) else {
            // SAFETY: the mapping just made, which nothing uses.
            unsafe { libc::munmap(base as *mut c_void, slots * stride + 2 * PAGE) };
            continue;
        };
        return Some(Layout { slots, base, sides, stride, first: PAGE - head, colours });
    }
    None
}

/// Zeroed memory for a transaction, and its side. `None` where the allocator has to be asked.
pub fn alloc() -> Option<(*mut Transaction, *mut Side)> {
    let mut state = STATE.lock();
    if !state.tried {
        state.tried = true;
        state.layout = layout();
        if let Some(at) = state.layout {
            STRIDE.store(at.stride, Ordering::Relaxed);
            SIDES.store(at.sides, Ordering::Relaxed);
            END.store(at.base + at.slots * at.stride + 2 * PAGE, Ordering::Relaxed);
            BASE.store(at.base, Ordering::Release);
        }
    }
    let at = state.layout?;
    let (slot, fresh) = match state.idle.pop() {
        Some(slot) => (slot as usize, false),
        None if state.top < at.slots => {
            if state.top % AT_ONCE == 0 {
                touch(&at, state.top..(state.top + AT_ONCE).min(at.slots));
            }
            state.top += 1;
            (state.top - 1, true)
        }
        None => return None,
    };
    drop(state);
    let tr = at.slot(slot);
    let side = (at.sides as *mut Side).wrapping_add(slot);
    // SAFETY: the slot is in the mapping and is nobody else's; the record is zero already, see `free`.
    unsafe {
        if !fresh {
            let from = glue::partyline_glue_idle_from;
            let to = glue::partyline_glue_idle_to;
            core::ptr::write_bytes(tr as *mut u8, 0, from);
            core::ptr::write_bytes((tr + to) as *mut u8, 0, glue::partyline_glue_transaction_size - to);
        }
        side.write(Side::new());
        (*side).tr = tr as *mut Transaction;
    }
    Some((tr as *mut Transaction, side))
}

/// The side of the slot at this address, if it is in the slab.
pub fn side(tr: usize) -> Option<*mut Side> {
    let base = BASE.load(Ordering::Acquire);
    if base == 0 || tr < base || tr >= END.load(Ordering::Relaxed) {
        return None;
    }
    let slot = (tr - base) / STRIDE.load(Ordering::Relaxed);
    Some((SIDES.load(Ordering::Relaxed) as *mut Side).wrapping_add(slot))
}

/// Takes a slot back; false if it is not one.
///
/// # Safety
/// The transaction is in no lane and nobody uses it any more.
pub unsafe fn free(tr: *mut Transaction) -> bool {
    let Some(side) = side(tr as usize) else { return false };
    // SAFETY: constants of the glue; the record is inside the slot.
    unsafe {
        let from = tr as usize + glue::partyline_glue_idle_from;
        wipe(from.next_multiple_of(8), (tr as usize + glue::partyline_glue_idle_to) & !7);
        (*side).tr = null_mut();
        (*side).freed.store(false, Ordering::Relaxed);
    }
    let slot = (side as usize - SIDES.load(Ordering::Relaxed)) / size_of::<Side>();
    STATE.lock().idle.push(slot as u32);
    true
}

/// Zeroes what is not zero: reading an untouched page maps the kernel's one page of zeros and costs no memory.
///
/// # Safety
/// `from..to` are aligned addresses of memory of ours.
unsafe fn wipe(from: usize, to: usize) {
    // SAFETY: the caller's promise; pages are zeros or were written by the program as bytes.
    let words = unsafe { core::slice::from_raw_parts_mut(from as *mut u64, (to - from) / 8) };
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it.
        return unsafe { wipe_avx2(words) };
    }
    wipe_words(words);
}

/// A third of the time of the same with what every x86-64 has: 15 kB for each transaction that is freed.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn wipe_avx2(words: &mut [u64]) {
    wipe_words(words);
}

#[inline(always)]
fn wipe_words(words: &mut [u64]) {
    for block in words.chunks_mut(64) {
        if block.iter().fold(0, |any, word| any | *word) != 0 {
            block.fill(0);
        }
    }
}
