//! How the pool starts, what mode it runs in, and how threads and `fork` meet it.
//!
//! The pool starts at the first call, which may come before any constructor has run. It starts no thread. Read from the
//! environment (with `secure_getenv`):
//!
//! | variable | meaning |
//! |---|---|
//! | `PARTYLINE_POOL=libc` (or `off`) | libc serves everything, so that valgrind and ASan see each block |
//! | `PARTYLINE_POOL=checked` | canaries, quarantine and guard pages, see `watch.rs` |
//! | `PARTYLINE_POOL=leaks` | live blocks are listed at exit |
//! | `PARTYLINE_POOL_SAMPLE=n` | in `checked` mode, one block in n gets a guard page; 0: none |
//! | `PARTYLINE_POOL_LIMIT=n[k|m|g]` | past that many bytes `osip_malloc` gives NULL |

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};

use super::heap::{self, Heap};
use super::os::{self, Lock};
use super::pages::PAGES;
use super::tls::{self, State};
use super::{guarded, range, watch};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mode {
    Unstarted,
    Pool,
    Libc,
    Checked,
    Leaks,
}

static MODE: AtomicU8 = AtomicU8::new(Mode::Unstarted as u8);
static START: Lock = Lock::new();
static EXIT_KEY: AtomicU32 = AtomicU32::new(u32::MAX);

static LATE_LOCK: Lock = Lock::new();
static LATE: AtomicPtr<Heap> = AtomicPtr::new(null_mut());

/// Where a call goes that the fast path does not serve.
pub enum Entry {
    /// The thread's heap.
    Heap(*mut Heap),
    /// The thread's heap in a mode that looks at every block.
    Watched(*mut Heap),
    /// The thread's exit destructor has run: the heap under the lock serves.
    Late,
    Libc,
}

pub fn mode() -> Mode {
    match MODE.load(Ordering::Acquire) {
        1 => Mode::Pool,
        2 => Mode::Libc,
        3 => Mode::Checked,
        4 => Mode::Leaks,
        _ => Mode::Unstarted,
    }
}

/// Whether blocks carry what `watch.rs` adds to them.
#[inline(always)]
pub fn watched() -> bool {
    MODE.load(Ordering::Relaxed) >= Mode::Checked as u8
}

/// The calling thread's way in; gives it a heap if it has none.
#[inline]
pub fn enter() -> Entry {
    let own = tls::tls().own.get();
    if !own.is_null() {
        return if watched() { Entry::Watched(own) } else { Entry::Heap(own) };
    }
    enter_slow()
}

#[cold]
fn enter_slow() -> Entry {
    let mode = match mode() {
        Mode::Unstarted => start(),
        mode => mode,
    };
    if mode == Mode::Libc {
        return Entry::Libc;
    }
    let tls = tls::tls();
    let mut own = tls.own.get();
    if own.is_null() {
        if tls.state.get() == State::Left {
            return Entry::Late;
        }
        own = heap::claim();
        if own.is_null() {
            return Entry::Libc;
        }
        tls.own.set(own);
        tls.state.set(State::Entered);
        if mode == Mode::Pool {
            tls.heap.set(own);
        }
        os::set_exit_value(EXIT_KEY.load(Ordering::Relaxed), own.cast());
    }
    if mode == Mode::Pool { Entry::Heap(own) } else { Entry::Watched(own) }
}

/// Starts the pool, if nobody has yet.
pub fn start() -> Mode {
    START.with(|| {
        if mode() != Mode::Unstarted {
            return mode();
        }
        let mut mode = match os::env(c"PARTYLINE_POOL") {
            None | Some(b"" | b"on" | b"pool") => Mode::Pool,
            Some(b"libc" | b"off") => Mode::Libc,
            Some(b"checked") => Mode::Checked,
            Some(b"leaks") => Mode::Leaks,
            Some(_) => {
                pool_say!("partyline: PARTYLINE_POOL is none of on, off, libc, checked, leaks; taken as on");
                Mode::Pool
            }
        };
        if let Some(text) = os::env(c"PARTYLINE_POOL_LIMIT") {
            match parse_bytes(text) {
                Some(limit) => PAGES.with(|pages| pages.limit = limit),
                None => {
                    pool_say!("partyline: PARTYLINE_POOL_LIMIT is no number of bytes (n, nk, nm, ng); no limit is set")
                }
            }
        }
        if mode != Mode::Libc {
            let slices = range::reserve();
            match if slices == 0 { None } else { os::on_thread_exit(thread_exits) } {
                None => mode = Mode::Libc,
                Some(key) => {
                    EXIT_KEY.store(key, Ordering::Relaxed);
                    PAGES.with(|pages| pages.start(slices));
                    os::on_fork(before_fork, after_fork);
                    watch::init(mode);
                }
            }
        }
        MODE.store(mode as u8, Ordering::Release);
        mode
    })
}

/// A number of bytes with an optional k, m or g.
pub fn parse_bytes(text: &[u8]) -> Option<usize> {
    let (digits, shift) = match text.split_last()? {
        (b'k' | b'K', rest) => (rest, 10),
        (b'm' | b'M', rest) => (rest, 20),
        (b'g' | b'G', rest) => (rest, 30),
        _ => (text, 0),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value = 0usize;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(usize::from(digit - b'0'))?;
    }
    value.checked_mul(1 << shift)
}

/// Runs `body` with the heap that serves threads whose exit destructor has run.
pub fn with_late_heap<R>(body: impl FnOnce(*mut Heap) -> R) -> R
where
    R: LateFallback,
{
    LATE_LOCK.with(|| {
        let mut late = LATE.load(Ordering::Relaxed);
        if late.is_null() {
            late = heap::claim();
            if late.is_null() {
                return R::fallback();
            }
            LATE.store(late, Ordering::Relaxed);
        }
        body(late)
    })
}

/// What a late call gives where there is no memory for a heap.
pub trait LateFallback {
    fn fallback() -> Self;
}

impl LateFallback for *mut u8 {
    fn fallback() -> Self {
        null_mut()
    }
}

impl LateFallback for () {
    fn fallback() {}
}

/// The system calls this when a thread that has a heap exits.
unsafe extern "C" fn thread_exits(own: *mut libc::c_void) {
    let tls = tls::tls();
    let rounds = tls.rounds.get() + 1;
    tls.rounds.set(rounds);
    if rounds < os::EXIT_ROUNDS {
        os::set_exit_value(EXIT_KEY.load(Ordering::Relaxed), own);
        return;
    }
    tls.heap.set(tls::empty());
    tls.own.set(null_mut());
    tls.state.set(State::Left);
    // SAFETY: this thread's heap, which it has just forgotten.
    unsafe { heap::abandon(own.cast()) };
}

/// The child gets the locks free and what they guard whole. Heaps of threads that the child does not have stay claimed
/// for ever: one of them may have been in the middle of a change. Blocks in them can still be used and freed.
unsafe extern "C" fn before_fork() {
    START.lock();
    LATE_LOCK.lock();
    guarded::lock_for_fork();
    PAGES.lock_for_fork();
}

unsafe extern "C" fn after_fork() {
    PAGES.unlock_after_fork();
    guarded::unlock_after_fork();
    LATE_LOCK.unlock();
    START.unlock();
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn limits_are_read() {
        assert_eq!(parse_bytes(b"4096"), Some(4096));
        assert_eq!(parse_bytes(b"64k"), Some(65536));
        assert_eq!(parse_bytes(b"3G"), Some(3 << 30));
        assert_eq!(parse_bytes(b""), None);
        assert_eq!(parse_bytes(b"k"), None);
        assert_eq!(parse_bytes(b"1x"), None);
        assert_eq!(parse_bytes(b"99999999999999999999"), None);
    }
}
