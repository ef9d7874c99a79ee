//! What the pool asks of the operating system. Nothing here allocates, panics or calls back into the pool.

use core::cell::UnsafeCell;
use core::fmt::Write as _;
use core::ptr::null_mut;

/// A mutex for slow paths. pthread's, because it never allocates, may be held across `fork`, and is known to
/// ThreadSanitizer.
pub struct Lock(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a pthread mutex is made to be shared.
unsafe impl Sync for Lock {}

#[allow(clippy::new_without_default, reason = "made in statics, which need a const fn")]
impl Lock {
    pub const fn new() -> Self {
        Lock(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER))
    }

    pub fn lock(&self) {
        // SAFETY: statically initialised, never destroyed, never moved (every Lock is a static).
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
    }

    pub fn unlock(&self) {
        // SAFETY: as above; called by the thread that locked it.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }

    pub fn with<R>(&self, body: impl FnOnce() -> R) -> R {
        self.lock();
        let result = body();
        self.unlock();
        result
    }
}

/// Address space without memory behind it.
pub fn reserve(bytes: usize) -> Option<usize> {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of anyone's.
    let at = unsafe {
        libc::mmap(
            null_mut(),
            bytes,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    (at != libc::MAP_FAILED).then_some(at as usize)
}

pub fn unreserve(at: usize, bytes: usize) {
    // SAFETY: callers pass a part of a reservation of theirs that nothing points into.
    unsafe { libc::munmap(at as *mut _, bytes) };
}

/// Makes a part of a reservation usable; its memory reads as zeros.
pub fn commit(at: usize, bytes: usize) -> bool {
    // SAFETY: callers pass a part of a reservation of theirs.
    unsafe { libc::mprotect(at as *mut _, bytes, libc::PROT_READ | libc::PROT_WRITE) == 0 }
}

/// Makes pages inaccessible (guard pages).
pub fn protect(at: usize, bytes: usize) -> bool {
    // SAFETY: callers pass committed memory of theirs that holds nothing.
    unsafe { libc::mprotect(at as *mut _, bytes, libc::PROT_NONE) == 0 }
}

/// Gives the memory back and keeps the address space: it reads as zeros when touched again.
pub fn purge(at: usize, bytes: usize) {
    // SAFETY: callers pass committed memory of theirs that holds nothing.
    unsafe { libc::madvise(at as *mut _, bytes, libc::MADV_DONTNEED) };
}

/// Milliseconds of a coarse monotonic clock: no system call.
pub fn now_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the struct given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// The soft limit on address space, if there is one.
pub fn address_space_limit() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the struct given.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    (got == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur as usize)
}

/// A number that differs from process to process: the kernel's gift to every program, no system call.
pub fn seed() -> u64 {
    // SAFETY: AT_RANDOM is the address of 16 bytes, or 0.
    unsafe {
        let at = libc::getauxval(libc::AT_RANDOM) as *const u64;
        if at.is_null() {
            0x5bd1_e995_97f4_a7c1
        } else {
            at.read_unaligned() ^ at.add(1).read_unaligned().rotate_left(32)
        }
    }
}

unsafe extern "C" {
    fn secure_getenv(name: *const core::ffi::c_char) -> *const core::ffi::c_char;
}

/// The value of an environment variable, not in a setuid program.
pub fn env(name: &core::ffi::CStr) -> Option<&'static [u8]> {
    // SAFETY: the name is a C string; the answer is NULL or a C string in the environment, which the pool reads once,
    // at start.
    unsafe {
        let value = secure_getenv(name.as_ptr());
        if value.is_null() { None } else { Some(core::ffi::CStr::from_ptr(value).to_bytes()) }
    }
}

/// Text in a buffer on the stack, for messages where nothing may be allocated. What does not fit is cut off.
pub struct Line<const N: usize> {
    text: [u8; N],
    len: usize,
}

#[allow(clippy::new_without_default, reason = "there is no default length")]
impl<const N: usize> Line<N> {
    pub const fn new() -> Self {
        Line { text: [0; N], len: 0 }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }

    pub fn put(&mut self, args: core::fmt::Arguments<'_>) -> &mut Self {
        // Never fails: write_str below cuts.
        let _ = self.write_fmt(args);
        self
    }

    /// To stderr, in one write.
    pub fn say(&self) {
        // SAFETY: the buffer and its length are ours.
        unsafe { libc::write(2, self.text.as_ptr().cast(), self.len) };
    }
}

impl<const N: usize> core::fmt::Write for Line<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = N - self.len;
        let take = text.len().min(room);
        self.text[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
        Ok(())
    }
}

/// One line to stderr.
macro_rules! pool_say {
    ($($arg:tt)*) => {
        $crate::pool::os::Line::<512>::new().put(format_args!($($arg)*)).put(format_args!("\n")).say()
    };
}
